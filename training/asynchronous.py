"""Options of a run whose examples are scored by actors while the learner trains."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib.util import find_spec

from ..errors import ActorError, SpecError
from ..options import Concern, Share, check_least, flag
from ..scoring.policies import NO_SCORER
from ..scoring.settings import REWEIGHT
from .selection_options import SelectionOptions

# Super-batches that the pool holds by default.
POOL_SUPER_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class AsynchronousOptions(Concern):
    """Scoring by actors: processes that score ahead of the learner, here and on other machines."""

    actors: int = 0
    """Score in this many processes beside the learner, which draws from a pool of what they scored (Ray). More may join from
    other machines: curate actor. The choice is not the same at every run, but --replay repeats it."""
    refresh: int = 10
    """Send the actors new weights of the scoring model each time after this many steps. Fewer steps make losses fresher, and
    copy the model more often."""
    max_age: int = 64
    """Drop an example from the pool when the weights that scored it are this many steps old. A smaller age wastes more of what
    was scored."""
    samples_per_insert: Share | None = None
    """Train on this share of what actors score; whoever is ahead waits. Less costs more scoring. Default: 1 - filter-ratio, as
    without actors."""
    pool_size: int | None = None
    """Hold this many scored examples at most. A larger pool gives more to choose from, of older losses. Default: four
    super-batches."""

    def __post_init__(self) -> None:
        check_least(self, 0, "actors")
        defaults = {field.name: field.default for field in fields(self)}
        given = [name for name, default in defaults.items() if getattr(self, name) != default]
        if given and not self.actors:
            raise SpecError(f"{flag(given[0])} is for actors; give --actors N too")
        check_least(self, 1, "refresh", "max_age", "pool_size")
        if self.samples_per_insert is not None and not 0 < self.samples_per_insert <= 1:
            raise SpecError(
                f"--samples-per-insert is {self.samples_per_insert:g}, expected the share that is trained on, above 0 to 1"
            )
        if self.max_age < self.refresh:
            raise SpecError(
                f"--max-age is {self.max_age} and --refresh {self.refresh}: losses would be too old before new weights come; "
                "raise --max-age"
            )

    def refuse(self, selection: SelectionOptions, distill: float, follow: bool, b: int, B: int) -> None:
        """Raises SpecError for what does not go together with actors. b of B examples are chosen."""
        if not self.actors:
            return
        policy = selection.chosen_policy
        reasons = {
            f"--replay {selection.replay}, which scores nothing": selection.replay is not None,
            f"policy '{policy}', for which no model scores": policy.online in NO_SCORER,
            f"--sampler {REWEIGHT}": selection.weighs,
            f"policy '{policy}', which compares pairs of one super-batch": policy.joint,
            "--score-ahead: they score ahead anyway": selection.score_ahead > 0,
            "--on-missing score": selection.on_missing == "score",
            "--distill": distill > 0,
            "--reference-online, which learns from whole super-batches": selection.reference_online is not None,
            "--follow: their plan has the rows of the beginning": follow,
        }
        for what, is_so in reasons.items():
            if is_so:
                raise SpecError(f"--actors cannot be with {what}; leave one of them out")
        if self.samples_per_insert is None and b == B:
            raise SpecError(
                "--actors score what is chosen from, and --filter-ratio 0 trains on all; leave --actors out"
            )
        if self.held(B) < B:
            raise SpecError(f"--pool-size is {self.pool_size}, expected at least a super-batch of {B:,} examples")

    def check_here(self, ranks: int) -> None:
        """Raises where actors cannot be: SpecError under torchrun, ActorError without Ray."""
        if self.actors and ranks > 1:
            raise SpecError(f"--actors serve one learner process, and {ranks} were started; start it without torchrun")
        if self.actors and find_spec("ray") is None:
            raise ActorError("--actors needs Ray; run: pip install 'curate[actors]'")

    def held(self, B: int) -> int:
        """The most examples in the pool, with super-batches of B."""
        return self.pool_size or POOL_SUPER_BATCHES * B

    def scored_per_step(self, b: int, B: int) -> int:
        """How many examples are scored for each step that trains on b, with super-batches of B."""
        return B if not self.actors or self.samples_per_insert is None else round(b / self.samples_per_insert)
