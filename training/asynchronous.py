"""Options of a run whose examples are scored by others while the learner trains: by actors, or by some of its ranks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib.util import find_spec

from ..errors import ActorError, SpecError
from ..options import Concern, Share, check_least, flag, refuse_with
from ..scoring.policies import NO_SCORER
from ..scoring.settings import REWEIGHT
from .selection_options import SelectionOptions
from .sharing import SharingOptions

# Super-batches that the pool holds by default.
POOL_SUPER_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class AsynchronousOptions(Concern):
    """Scoring by others than the learner's processes: by actors, here and on other machines, or by ranks of the run."""

    actors: int = 0
    """Score in this many processes beside the learner, which draws from a pool of what they scored (Ray). More may join from
    other machines: curate actor. The choice is not the same at every run, but --replay repeats it."""
    scorers: int = 0
    """Let the last N of the processes that torchrun started read and score, and the others train. A super-batch is scored while
    the step before its own is taken, so losses are 1 to --refresh steps old. A resumed run makes the same choices."""
    refresh: int = 10
    """Send new weights of the scoring model to the --actors or --scorers every N steps. Fewer steps make losses fresher, and copy
    the model more often."""
    max_age: int = 64
    """Drop an example from the pool when the weights that scored it are this many steps old. A smaller age wastes more of what
    was scored."""
    samples_per_insert: Share | None = None
    """Train on this share of what actors score; the side that is ahead waits. A smaller share costs more scoring. Default: 1 -
    filter-ratio, as without actors."""
    pool_size: int | None = None
    """Hold this many scored examples at most. A larger pool gives more to choose from, of older losses. Default: four
    super-batches."""

    def __post_init__(self) -> None:
        check_least(self, 0, "actors", "scorers")
        if self.actors and self.scorers:
            raise SpecError("--actors and --scorers are two ways to score beside the learner; leave one of them out")
        for field in fields(self):
            name, of_both = field.name, field.name == "refresh"
            served = self.actors or name in ("actors", "scorers") or (of_both and self.scorers)
            if not served and getattr(self, name) != field.default:
                who, give = ("actors and scorers", " or --scorers N") if of_both else ("actors", "")
                raise SpecError(f"{flag(name)} is for {who}; give --actors N{give} too")
        check_least(self, 1, "refresh", "max_age", "pool_size")
        if self.samples_per_insert is not None and not 0 < self.samples_per_insert <= 1:
            raise SpecError(
                f"--samples-per-insert is {self.samples_per_insert:g}, expected the share that is trained on, above 0 to 1"
            )
        if self.actors and self.max_age < self.refresh:
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
        refuse_with("actors", reasons)
        if self.samples_per_insert is None and b == B:
            raise SpecError(
                "--actors score what is chosen from, and --filter-ratio 0 trains on all; leave --actors out"
            )
        if self.held(B) < B:
            raise SpecError(f"--pool-size is {self.pool_size}, expected at least a super-batch of {B:,} examples")

    def refuse_scorers(
        self, selection: SelectionOptions, sharing: SharingOptions, distill: float, b: int, B: int
    ) -> None:
        """Raises SpecError for what does not go together with ranks that score. b of B examples are chosen."""
        if not self.scorers:
            return
        policy = selection.chosen_policy
        useless = {
            f"--replay {selection.replay} scores nothing": selection.replay is not None,
            f"policy '{policy}' asks no model of the run": policy.online in NO_SCORER,
            "--filter-ratio 0 trains on all": b == B,
        }
        for why, is_so in useless.items():
            if is_so:
                raise SpecError(f"{why}, so --scorers would have nothing to do; leave --scorers out")
        untried = {
            f"policy '{policy}', which compares pairs of one super-batch": policy.joint,
            "--score-ahead: they score ahead anyway": selection.score_ahead > 0,
            "--on-missing score": selection.on_missing == "score",
            "--reference-online, which learns from whole super-batches": selection.reference_online is not None,
            "--distill": distill > 0,
            "--selection local": sharing.local,
            "--fsdp": sharing.fsdp,
            "--sync-bn": sharing.sync_bn,
        }
        refuse_with("scorers", untried)

    def check_here(self, ranks: int, b: int) -> None:
        """Raises where those who score cannot be: SpecError where actors meet torchrun, or scorers do not or leave too few
        or too many ranks to train on b examples; ActorError without Ray."""
        if self.scorers and ranks == 1:
            raise SpecError(
                "--scorers are some of several processes, and one was started; start it with torchrun, or take --score-ahead 1"
            )
        if self.scorers and self.scorers >= ranks:
            raise SpecError(f"--scorers is {self.scorers} of {ranks} processes, and none is left to train; give fewer")
        if self.scorers and ranks - self.scorers > b:
            raise SpecError(
                f"--scorers is {self.scorers} of {ranks} processes, and {ranks - self.scorers} would train on a batch of {b} "
                f"(--batch-size); give at least {ranks - b}"
            )
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
