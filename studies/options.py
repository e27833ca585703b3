"""What the user chose for a plan, a probe and a comparison, checked before anything is opened.

The string below a field is its help text; the command line is made from these fields and from those of a run.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from ..errors import SpecError
from ..ledger import BASELINE
from ..options import (
    Flops,
    Multiple,
    Multiples,
    Numbers,
    Options,
    Ratio,
    Share,
    Text,
    Values,
    check_least,
    check_local,
    flag,
    options_of,
)
from ..scoring.policies import LEARNABILITY, POLICIES, Policy, find_policy
from ..training.data_options import DataOptions
from ..training.options import (
    MOVING_MIXTURE,
    BudgetOptions,
    OptimizationOptions,
    RecordOptions,
    RunOptions,
)
from ..training.selection_options import SelectionOptions
from ..training.unused import unused_line
from ..units import parse_names

Policies = Annotated[
    tuple[str | Policy, ...],
    Text(parse_names, ",".join, "<names>"),
    Values({policy.name: policy.help for policy in POLICIES.values()}),
]
# Uniform's rungs, in budgets of the probe: savings are read between them, from a loss of half to a gain of half.
PROBE_LADDER = (0.5, 2.0)
# What a plan is made of.
OF_A_RATIO = frozenset({"ratio", "runs", "expected_saving", "filter_ratio"})
OF_MODELS = frozenset(
    {
        *("learner", "dataset", "budget_flops", "data_size", "reference_steps", "runs", "expected_saving"),
        *("online", "reference_scores", "prior_scores", "reference", "trust_table", "reference_online", "filter_ratio"),
        *("score_size", "score_patch_dropout", "batch_size", "label_smoothing", "accumulate", "grad_checkpointing"),
        *("mix", "mix_last", "mix_scores"),
    }
)


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Options):
    """What is to be planned: either `ratio` alone, or a learner, an online model and a data set with `budget_flops`.

    `runs` share one reference. The concerns are those of a run: they say what the plan's run and its probe would do.
    """

    ratio: Ratio | None = None
    """Plan from this ratio of the models' FLOPs, online / learner, such as 1/49, instead of from models."""
    learner: str | None = None
    """Plan for this learner: a name in curate.toml, a timm or open_clip name, or a run's folder."""
    dataset: str | None = None
    """Plan for this data set: a name in curate.toml, or shards such as 'path/{000..099}.tar'."""
    budget_flops: Flops | None = None
    """Plan a run that spends this many FLOPs, such as 2e13, 20TF or 1EF."""
    data_size: int | None = None
    """Let the reference score this many examples once. Default: it scores every super-batch of every run."""
    reference_steps: int | None = None
    """Train the reference for this many steps of batch-size examples. Default: as recorded, or as long as uniform."""
    runs: int = 1
    """Share the reference and its score table among this many runs."""
    expected_saving: Share | None = None
    """Expect to save this share of the learner's updates, such as 25%, and say what that saves in all."""
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    data: DataOptions = field(default_factory=DataOptions)
    records: RecordOptions = field(default_factory=RecordOptions)

    def __post_init__(self) -> None:
        given = {name for name, value in self.to_dict().items() if value is not None}
        if self.ratio is None and self.learner is None:
            raise SpecError("nothing to plan; give --ratio 1/49, or --learner NAME with --online and --dataset")
        if self.ratio is not None:
            if not 0 < self.ratio < math.inf:
                raise SpecError(f"--ratio is {self.ratio:g}, expected more than 0, such as 1/49")
            models_only = "learner online reference reference_scores dataset data_size budget_flops reference_steps"
            for option in (*models_only.split(), "reference_online", "score_size", "score_patch_dropout"):
                if option in given:
                    raise SpecError(
                        f"--ratio and {flag(option)} are both given; a bare ratio takes no models, drop one"
                    )
        else:
            for option in ("online", "dataset", "budget_flops"):
                if option not in given:
                    raise SpecError(f"--learner is given without {flag(option)}; add it")
        if self.selection.reference_scores is not None:
            for option in ("reference", "data_size"):
                if option in given:
                    raise SpecError(
                        f"--reference-scores and {flag(option)} are both given; the table knows it, drop one"
                    )
        if self.selection.reference_online is not None:
            for option in ("data_size", "reference_steps"):
                if option in given:
                    raise SpecError(
                        f"--reference-online and {flag(option)} are both given; a reference that trains in the run scores "
                        "every super-batch, and trains as long as the run: drop one"
                    )
            if self.data.mix_scores is not None:
                raise SpecError(MOVING_MIXTURE)
        check_least(self, 1, "runs", "data_size")
        check_least(self, 0, "reference_steps")
        if self.expected_saving is not None and not 0 < self.expected_saving < 1:
            raise SpecError(f"--expected-saving is {self.expected_saving:g}, expected above 0 % and below 100 %")

    def unused(self) -> list[str]:
        """Options that are not at their defaults, and of which a plan says nothing: those of the runs that --probe and
        --measure make."""
        used = OF_A_RATIO if self.ratio is not None else OF_MODELS
        values, known = self.to_dict(), options_of(PlanOptions)
        return [name for name in known if name not in used and values[name] != known[name].default]


def _words(command: str) -> list[str]:
    """The words of a command; none where a quote is left open."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """One comparison. `base` is the run that all share: data set, models, table, filter ratio, `budget_flops` = 1x.

    Savings of the other policies are read on uniform's `ladder`, so it has to reach further up than `budgets`. Every
    policy uses the best rate of `search_lr`: the baseline gets its own best one, the others take what suits it. What the
    headline is read at is fixed before the runs: the best of many pairs would be a saving by chance alone.
    """

    base: RunOptions
    policies: Policies = (BASELINE, LEARNABILITY.name)
    """Compare these policies, separated by commas. Uniform must be one of them."""
    budgets: Multiples = (0.5, 1.0, 2.0)
    """Run every policy at these multiples of the budget. Every one is a complete run."""
    ladder: Multiples = (4.0,)
    """Run uniform at these multiples as well. Savings are read up to its largest budget."""
    seeds: int = 3
    """Repeat every run with this many seeds: 0, 1, ..."""
    headline_budget: Multiple = 1.0
    """Read the headline at this one of the budgets. It is fixed once the comparison has begun."""
    headline_policy: str | None = None
    """Read the headline for this policy, fixed as its budget is. Default: the first of the policies that is not uniform."""
    search_lr: Numbers = ()
    """Try these learning rates with uniform, seed 0, and measure them on the validation split, or a held-out tenth of train."""
    tune_every_rung: bool = False
    """Search the learning rate at every budget, and use its best there. Default: at 1x alone, for all budgets."""
    jobs: int = 1
    """Make this many runs at a time, each on its share of the cores."""
    launcher: str | None = None
    """Start each run by this command, in processes that share it, such as 'torchrun --standalone --nproc-per-node 2'. Each of
    --jobs has its share of the GPUs. Default: one process for each run."""
    out: str = "comparison"
    """Write the comparison to this folder. The same folder again runs only what is missing."""

    def __post_init__(self) -> None:
        names = [str(policy) for policy in self.policies]
        if BASELINE not in names:
            raise SpecError(f"--policies must name {BASELINE}: without it nothing can be said of savings")
        if len(set(names)) != len(names):
            raise SpecError(f"--policies names one twice: {', '.join(names)}")
        if 1.0 not in self.budgets:
            raise SpecError("--budgets must name 1x, the budget that --budget-flops gives")
        if not all(0 < x < math.inf for x in self.budgets + self.ladder):
            raise SpecError("--budgets and --ladder are multiples of --budget-flops above 0, such as 0.5x,1x,2x")
        if self.headline_budget not in self.budgets:
            raise SpecError(f"--headline-budget is {self.headline_budget:g}x, expected one of --budgets")
        if self.headline_policy is not None and self.headline_policy not in set(names) - {BASELINE}:
            raise SpecError(
                f"--headline-policy is '{self.headline_policy}', expected one of --policies, not {BASELINE}"
            )
        if self.search_lr and self.base.optimization.lr is not None:
            raise SpecError("--lr and --search-lr both say the learning rate; leave one of them out")
        if self.tune_every_rung and not self.search_lr:
            raise SpecError("--tune-every-rung needs --search-lr, the learning rates to try")
        check_least(self, 1, "seeds", "jobs")
        check_local(self, "out")
        if self.launcher is not None and not _words(self.launcher):
            raise SpecError(
                f"--launcher is '{self.launcher}', expected a command such as 'torchrun --standalone --nproc-per-node 2'"
            )
        if self.base.sharing.fsdp and self.launcher is None:
            raise SpecError("--fsdp divides the learner among several processes; give --launcher, or leave it out")
        if self.base.budget.budget_flops is None:
            raise SpecError("a comparison needs --budget-flops, the budget that 1x stands for")
        for policy in self.policies:
            if self.launcher is not None and find_policy(policy).probes:
                raise SpecError(f"policy '{policy}' probes in one process; leave --launcher or the policy out")
            self.base.but(policy=policy)  # raises where a policy lacks its online model or its table

    @property
    def runs(self) -> Path:
        return Path(self.out, "runs")

    @property
    def multiples(self) -> list[float]:
        """All budgets, uniform's ladder with them, ascending."""
        return sorted({*self.budgets, *self.ladder})


def unused_in_plan(options: PlanOptions, probing: Mapping[str, Any], measures: bool) -> list[str]:
    """A line for what was given and only --probe or --measure would heed. `probing` are the options of a probe."""
    if probing["probe"] is not None:
        return []
    known = options_of(ProbeOptions)
    of_a_probe = [name for name, value in probing.items() if name != "probe" and value != known[name].default]
    lines = [unused_line(of_a_probe, "without --probe")] if of_a_probe else []
    of_runs = [] if measures else options.unused()
    return [*lines, unused_line(of_runs, "without --probe or --measure")] if of_runs else lines


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Short runs that measure what a plan would save. How they train is what the plan's concerns say."""

    plan: PlanOptions
    probe: Share
    """Measure the saving by short complete runs, each of which spends this share of the budget, such as 1%."""
    policies: Policies = (LEARNABILITY.name,)
    """Probe these policies beside uniform, separated by commas, such as learnability,filter. The plan is about the first."""
    curated: str | None = None
    """Probe uniform on this data set alone too, and with half of every batch from it: the clean examples that the reference was
    trained on, say. The answer may be to train on them."""
    seeds: int = 2
    """Repeat every run of the probe with this many seeds: 0, 1, ..."""
    jobs: int = 1
    """Make this many runs of the probe at a time, each on its share of the cores."""
    out: str = "probe"
    """Write the probe's runs to this folder. The same folder again runs only what is missing."""

    def __post_init__(self) -> None:
        if self.plan.ratio is not None:
            raise SpecError("--probe trains real models; give --learner, --online and --dataset instead of --ratio")
        if self.plan.selection.reference_scores is None:
            raise SpecError(
                "--probe joins the reference's scores; run 'curate score-reference', then --reference-scores"
            )
        if self.plan.expected_saving is not None:
            raise SpecError("--probe and --expected-saving are both given; the probe measures the saving, drop one")
        check_local(self, "out")
        if self.curated is not None and self.plan.data.mix is not None:
            raise SpecError("--curated mixes that data set into every batch itself; leave --mix out")
        if self.curated is not None and self.curated == self.plan.dataset:
            raise SpecError(f"--curated is '{self.curated}', the data set itself; name one that is better")
        if not 0 < self.probe <= 1:
            raise SpecError(f"--probe is {self.probe:g}, expected a share of the budget above 0, such as 1%")
        if not self.policies or BASELINE in map(str, self.policies):
            raise SpecError(f"--policies are those to probe beside {BASELINE}, which always runs; name others")

    @property
    def comparison(self) -> CompareOptions:
        """Uniform at half, once and twice the probe's budget; the other policies at once."""
        plan = self.plan
        assert plan.learner and plan.dataset and plan.budget_flops
        base = RunOptions(
            dataset=plan.dataset,
            learner=plan.learner,
            budget=BudgetOptions(budget_flops=self.probe * plan.budget_flops),
            selection=plan.selection,
            optimization=plan.optimization,
            data=plan.data,
            records=plan.records,
        )
        return CompareOptions(
            base=base,
            policies=(BASELINE, *self.policies),
            headline_policy=str(self.policies[0]),
            budgets=(1.0,),
            ladder=PROBE_LADDER,
            seeds=self.seeds,
            jobs=self.jobs,
            out=self.out,
        )
