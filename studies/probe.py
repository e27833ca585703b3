"""`curate plan --probe`: a few short, complete runs, uniform and learnability in pairs, before a budget is spent."""

from __future__ import annotations

from dataclasses import dataclass

from ..datasets.spec import Config
from ..errors import SpecError
from ..ledger import BASELINE
from ..scoring.policies import LEARNABILITY
from ..training.options import RunOptions
from ..units import Report, format_flops
from .comparison import Compared, CompareOptions, compare_runs, planned
from .plan import PlanOptions

POLICY = LEARNABILITY.name
# Uniform's rungs, in budgets of the probe: savings are read between them, from a loss of half to a gain of half.
LADDER = (0.5, 2.0)


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """What `share` of the plan's budget every probing run spends, and what the plan itself does not say of a run."""

    plan: PlanOptions
    share: float
    seeds: int = 2
    lr: float | None = None
    online_lr: float | None = None
    temperature: float = 1.0
    jobs: int = 1
    out: str = "probe"

    def __post_init__(self) -> None:
        if self.plan.ratio is not None:
            raise SpecError("--probe trains real models; give --learner, --online and --dataset instead of --ratio")
        if self.plan.reference_scores is None:
            raise SpecError(
                "--probe joins the reference's scores; run 'curate score-reference', then --reference-scores"
            )
        if self.plan.expected_saving is not None:
            raise SpecError("--probe and --expected-saving are both given; the probe measures the saving, drop one")
        if not 0 < self.share <= 1:
            raise SpecError(f"--probe is {self.share:g}, expected a share of the budget above 0, such as 1%")

    @property
    def comparison(self) -> CompareOptions:
        """Uniform at half, once and twice the probe's budget; learnability at once."""
        plan = self.plan
        assert plan.learner and plan.online and plan.dataset and plan.budget_flops
        base = RunOptions.of(
            dataset=plan.dataset,
            learner=plan.learner,
            online=plan.online,
            reference_scores=plan.reference_scores,
            budget_flops=self.share * plan.budget_flops,
            batch_size=plan.batch_size,
            filter_ratio=plan.filter_ratio,
            lr=self.lr,
            online_lr=self.online_lr,
            temperature=self.temperature,
        )
        return CompareOptions(
            base=base,
            policies=(BASELINE, POLICY),
            budgets=(1.0,),
            ladder=LADDER,
            seeds=self.seeds,
            jobs=self.jobs,
            out=self.out,
        )


def run_probe(options: ProbeOptions, *, config: Config, report: Report = print) -> Compared:
    """Make what is missing of the probing runs. Every one is complete: its learning rate ends at its own budget.

    Raises CurateError as `compare_runs` does.
    """
    comparison = options.comparison
    cost = sum(run.budget.budget_flops or 0.0 for run in planned(comparison, 0.0))
    assert options.plan.budget_flops
    report(f"probe: runs of {format_flops(cost)} in all, {cost / options.plan.budget_flops:.1%} of the budget")
    return compare_runs(comparison, config=config, report=report)
