"""Options of a run that several processes share."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SpecError
from ..options import Concern, check_choice
from ..scoring.policies import Policy
from ..scoring.settings import Choice


@dataclass(frozen=True, kw_only=True)
class SharingOptions(Concern):
    """How several processes share one run. In a run of one process they change nothing."""

    selection: Choice = "global"
    """Where several processes share the run: choose among all B examples (global), or let each process choose its share
    among its own (local). Local exchanges nothing, and chooses otherwise with another number of processes."""

    fsdp: bool = False
    """Cut the learner's weights, gradients, optimizer state and moving average into shards, one for each process (FSDP2)."""
    sync_bn: bool = False
    """Let BatchNorm layers normalise over the examples of all processes (SyncBatchNorm), not over those of each by itself. Needs
    GPUs."""

    def __post_init__(self) -> None:
        check_choice(self, "selection")

    @property
    def local(self) -> bool:
        return self.selection == "local"

    @property
    def asked(self) -> list[str]:
        """The options that only several processes heed, as they are typed."""
        return ["--selection local"] * self.local + ["--sync-bn"] * self.sync_bn

    def refuse_local(self, policy: Policy, replay: str | None, score_ahead: int, weighs: bool = False) -> None:
        """Raises SpecError where a choice cannot be local."""
        if self.local and score_ahead:
            raise SpecError("--selection local chooses by the present weights; leave --score-ahead out")
        if self.local and weighs:
            raise SpecError("--selection local knows the weights of one process's examples alone; leave it out")
        if self.local and replay is not None:
            raise SpecError(f"--replay {replay} trains on what that run chose; leave --selection local out")
        if self.local and policy.joint:
            raise SpecError(
                f"policy '{policy}' compares all pairs of the super-batch, and --selection local has those of one process; "
                "leave it out"
            )
