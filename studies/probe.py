"""`curate plan --probe`: a few short, complete runs, uniform and other policies in pairs, before a budget is spent."""

from __future__ import annotations

from dataclasses import replace

from ..datasets.spec import Config, find_dataset
from ..errors import SpecError
from ..ledger import BASELINE
from ..training.options import RunOptions
from ..units import Report, format_flops
from .comparison import Compared, compare_runs, is_finished, planned, run_all
from .options import ProbeOptions

# The share of every batch that is curated, in the arm that mixes.
MIXED = "50%"


def run_probe(options: ProbeOptions, *, config: Config, report: Report = print) -> Compared:
    """Make what is missing of the probing runs. Every one is complete: its learning rate ends at its own budget.

    Raises CurateError as `compare_runs` does, and SpecError for curated examples that are none of this data set's kind.
    """
    comparison = options.comparison
    testing = _tested_alike(options, config) if options.curated else config
    cost = sum(run.budget.budget_flops or 0.0 for run in planned(comparison, dict.fromkeys(comparison.multiples, 0.0)))
    cost += sum(run.budget.budget_flops or 0.0 for runs in curated_runs(options).values() for run in runs)
    assert options.plan.budget_flops
    report(f"probe: runs of {format_flops(cost)} in all, {100 * cost / options.plan.budget_flops:.1f} % of the budget")
    compared = compare_runs(comparison, config=config, report=report)
    rate = compared.learning_rates[1.0]
    more = [run.but(lr=rate) for runs in curated_runs(options).values() for run in runs]
    run_all([run for run in more if not is_finished(run)], options.jobs, testing, compared.quality, report)
    return compared


def curated_runs(options: ProbeOptions) -> dict[str, list[RunOptions]]:
    """The runs of uniform that train on the curated examples, by what they are: on them alone, and with half of every batch."""
    if options.curated is None:
        return {}
    base = options.comparison.base.but(policy=BASELINE, online=None, reference_scores=None, evaluate=True)
    arms = {
        f"{options.curated} alone": ("alone", {"dataset": options.curated}),
        f"half of every batch from {options.curated}": ("mixed", {"mix": f"{options.curated}:{MIXED}"}),
    }
    return {
        arm: [
            base.but(**changes, seed=seed, out=str(options.comparison.runs), name=f"curated-{name}-1x-seed{seed}")
            for seed in range(options.seeds)
        ]
        for arm, (name, changes) in arms.items()
    }


def curated_names(options: ProbeOptions) -> dict[str, list[str]]:
    """The names of these runs, by what they are."""
    return {arm: [str(run.records.name) for run in runs] for arm, runs in curated_runs(options).items()}


def _tested_alike(options: ProbeOptions, config: Config) -> Config:
    """The configuration in which the curated data set has the test split of the plan's."""
    assert options.curated is not None and options.plan.dataset is not None
    if options.curated not in config.datasets:
        find_dataset(options.curated, config)  # raises where it is no path either
        raise SpecError(f"--curated is '{options.curated}', expected the name of a data set; add it to curate.toml")
    bulk, curated = (find_dataset(name, config) for name in (options.plan.dataset, options.curated))
    if curated.fingerprint != bulk.fingerprint:
        raise SpecError(
            f"--curated: data set '{curated.name}' has other fields or classes than '{bulk.name}', whose test split "
            "is to measure both; give its entry in curate.toml the same task, format, image, label or text, and classes"
        )
    entry = {**config.datasets[options.curated], "test": list(bulk.test)}
    return replace(config, datasets={**config.datasets, options.curated: entry})
