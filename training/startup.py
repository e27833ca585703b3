"""Before the first step: what follows from the options together with the data, the models, the tables and the disk."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.shards import Shard, list_shards
from ..datasets.spec import Config, DatasetSpec, find_dataset
from ..errors import RunError, SpecError, TableError
from ..ledger import Ledger, StepCost, steps_within
from ..scoring.flops import forward_flops
from ..scoring.forward import embedding_width
from ..scoring.joint import selection_flops
from ..scoring.models import Model
from ..scoring.settings import Coarse, ContrastiveLoss, Precision
from ..scoring.tables.check import check_table
from ..scoring.tables.counts import all_counts, scoring_flops
from ..scoring.tables.keep import Kept, keep_best
from ..scoring.tables.lookup import ScoreTable, open_scores
from ..units import Report, format_flops
from . import checkpoint, frozen
from .folder import SELECTION_BYTES, SELECTIONS_BUDGET
from .keeping import BEST_KEPT
from .mixture import Mix, refuse_unlike
from .options import RunOptions
from .refreshed import RefreshedTable
from .replay import RecordedRun
from .selection_options import SelectionOptions

# Adam's two moments, in weights.
OPTIMIZER_STATE = 2
# They treat each weight by itself, so they need not see all of a tensor.
SHARDED_OPTIMIZERS = ("adam", "adamw", "sgd", "momentum")


def stream_seed(seed: int, name: str) -> int:
    """A seed of its own for each use of random numbers, so that neighbouring seeds share none."""
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)[0]) >> 1


def refuse_shards(options: RunOptions, ranks: int) -> None:
    """Raises SpecError where --fsdp does not go with the other options, or with so many ranks."""
    asked = options.optimization
    if not options.sharing.fsdp:
        return
    if ranks == 1:
        raise SpecError("--fsdp divides the learner among several processes; start them with torchrun, or leave it out")
    online = options.selection.chosen_policy.online
    if options.selection.score_ahead and (online == "learner" or (online == "either" and not options.selection.online)):
        raise SpecError("--score-ahead copies the learner, which --fsdp divides; leave one of them out")
    if options.sharing.sync_bn:
        raise SpecError("--fsdp was not tried with --sync-bn; leave one of them out")
    if options.selection.reference_online:
        raise SpecError("--fsdp was not tried with --reference-online; leave one of them out")
    if asked.compile:
        raise SpecError("--fsdp was not tried with torch.compile; leave --compile out")
    if asked.optimizer not in SHARDED_OPTIMIZERS:
        raise SpecError(
            f"--optimizer {asked.optimizer} was not tried with --fsdp; take one of {', '.join(SHARDED_OPTIMIZERS)}"
        )
    if asked.accumulate > asked.batch_size // ranks:
        raise SpecError(
            f"--accumulate is {asked.accumulate}; with --fsdp expected at most a process's share of --batch-size, "
            f"{asked.batch_size // ranks}"
        )


def missing_share(table: ScoreTable | None, shards: Sequence[Shard]) -> float:
    """The share of the examples that a table lacks: by rows where all shards know theirs, else by bytes."""
    if table is None:
        return 0.0
    by_rows = all(shard.rows is not None for shard in shards)
    sizes = {shard.name: (shard.rows or 0) if by_rows else shard.bytes for shard in shards}
    return sum(size for name, size in sizes.items() if not table.holds(name)) / max(1, sum(sizes.values()))


def steps_of(options: RunOptions, cost: StepCost, charged: float, missing: float = 0.0) -> int:
    """How many steps the budget buys, each with `missing` FLOPs on average for losses that the table lacks.

    Raises BudgetError where it is not even one.
    """
    budget = options.budget
    if budget.steps is not None:
        return budget.steps
    if budget.examples is not None:
        return steps_within(budget.examples, options.optimization.batch_size)
    assert budget.budget_flops is not None
    return steps_within(budget.budget_flops, cost.total + missing, charged)


def mix_of(
    options: RunOptions, dataset: DatasetSpec, config: Config, recorded: RecordedRun | None = None
) -> Mix | None:
    """The data set that is mixed in, opened; from which step on follows later. A replay reads the table that the `recorded`
    run read. Raises CurateError."""
    if options.data.mixture is None:
        return None
    name, share = options.data.mixture
    other = find_dataset(name, config)
    refuse_unlike(dataset, other)
    reads = options.uses_table or (recorded is not None and recorded.reads_mixed_table)
    path = options.data.mix_scores if reads else None
    scores = open_scores(path) if path else None
    found = Mix(data=other, share=share, scores=scores, shards=list_shards(other))
    found.rows(options.super_batch_size)
    return found


def mix_first(options: RunOptions, steps: int, recorded: RecordedRun | None) -> int:
    """From which step on a run of so many steps mixes: as the run that it replays did, whatever the steps of this one."""
    if recorded is not None:
        return recorded.mix_first
    return steps - max(1, round(options.data.mix_last * steps)) + 1


def mix_begun(mix: Mix | None, options: RunOptions, first: int, log: Report) -> Mix | None:
    """The mixture of a run that mixes from step `first` on, said once."""
    if mix is None:
        return None
    assert isinstance(mix.data, DatasetSpec)
    begun = replace(mix, first=first)
    when = f" from step {begun.first:,} on" if begun.first > 1 else ""
    size = options.super_batch_size
    log(f"{mix.rows(size):,} of the {size:,} examples of every super-batch are of data set '{mix.data.name}'{when}")
    return begun


def prior_of(options: RunOptions, dataset: DatasetSpec, shards: Sequence[Shard], verify: bool) -> ScoreTable | None:
    """The table of a second reference, checked, where the policy subtracts two. Raises TableError."""
    selection = options.selection
    if not selection.chosen_policy.prior or selection.prior_scores is None:
        return None
    table = open_scores(selection.prior_scores)
    if verify:
        check_table(table, dataset, shards, selection.on_missing, options.super_batch_size)
    return table


def refuse_other_reference(table: ScoreTable | None, mix: Mix | None) -> None:
    """Raises TableError where another reference scored what is mixed in."""
    other = mix.scores if mix else None
    if table is None or not isinstance(other, ScoreTable):
        return
    if table.reference_fingerprint != other.reference_fingerprint:
        raise TableError(
            f"{other.folder}: was scored by reference {other.reference_fingerprint[:8]}, {table.folder} by "
            f"{table.reference_fingerprint[:8]}; losses of one reference are needed: score both data sets with it"
        )


def scored_flops(table: ScoreTable, grows: bool) -> float:
    """What a table's scores cost. While one `grows`, its manifest does not know: then the shards that it has say it."""
    if grows:
        return scoring_flops(table.manifest, all_counts(table.folder).values())
    return float(table.manifest["flops"].get("reference_score") or 0.0)


def reference_ledger(
    table: ScoreTable | None, mix: Mix | None = None, prior: ScoreTable | None = None, *, grows: bool = False
) -> Ledger:
    """A ledger that begins with what the reference cost: its training once, its scores of both data sets; and the same of a
    second reference, or of a newer one. The table `grows` where the data set is followed."""
    if table is None:
        return Ledger()
    newer = [table.newer] if isinstance(table, RefreshedTable) else []
    tables = [table, *([prior] if prior else []), *newer]
    scored = [*tables, *([mix.scores] if mix is not None and isinstance(mix.scores, ScoreTable) else [])]
    trained = [one.manifest["flops"]["reference_train"] for one in tables]
    return Ledger(
        reference_score=sum(scored_flops(one, grows or one in newer) for one in scored),
        reference_train=None if None in trained else sum(trained),
    )


def charged_to(options: RunOptions, ledger: Ledger, table: ScoreTable | None) -> float:
    """FLOPs of the reference that the budget pays for. Raises TableError where nobody recorded them."""
    if not options.budget.charge_reference or table is None:
        return 0.0
    if ledger.reference_train is None:
        raise TableError(
            f"{table.folder}: does not know what training its reference cost; leave --charge-reference out"
        )
    return ledger.reference_score + ledger.reference_train


def coarse_of(selection: SelectionOptions, table: ScoreTable | None) -> Coarse:
    """How the run's own model scores: as the reference did, or as the user says where there is none to agree with."""
    asked = selection.coarse
    if table is None:
        return asked
    stored = Coarse.from_dict(table.manifest["reference"]["model"].get("coarse", {}))
    if asked and asked != stored:
        raise TableError(
            f"{table.folder}: its reference scored with {stored}, this run is to score with {asked}; both losses must be "
            "made alike: leave --score-size and --score-patch-dropout out, or run score-reference with them"
        )
    return stored


def check_policy(options: RunOptions, learner: Model, table: ScoreTable | None) -> None:
    """Raises SpecError and TableError where the policy does not suit the task, or lacks what it needs."""
    policy = options.selection.chosen_policy
    if policy.tasks and learner.task.name not in policy.tasks:
        raise SpecError(f"policy '{policy}' is for {' and '.join(policy.tasks)}; this data set is {learner.task.name}")
    if options.optimization.distill:
        assert table is not None
        if table.logit_width != learner.outputs:
            raise TableError(
                f"{table.folder}: holds {table.logit_width} logits an example, learner '{learner.spec.name}' gives "
                f"{learner.outputs}; both must know the same classes"
            )
    if not policy.joint:
        return
    assert table is not None
    if options.selection.joint_loss == "sigmoid" and table.manifest["bias"] is None:
        raise TableError(f"{table.folder}: its reference has no bias, which --joint-loss sigmoid needs; use softmax")
    own, reference = forward_flops(learner).per_example, table.manifest["flops"]["forward_per_example"]
    if policy.larger_reference and reference <= own:
        raise SpecError(
            f"policy '{policy}' needs a reference larger than the learner; this one takes {format_flops(reference)} a "
            f"forward pass, the learner {format_flops(own)}; take another joint policy"
        )


def kept_of(
    options: RunOptions, table: ScoreTable | None, prior: ScoreTable | None, shards: Sequence[Shard], log: Report
) -> Kept | None:
    """What a policy that filters keeps of the data set, said once; None for the others."""
    selection = options.selection
    if not selection.chosen_policy.filters:
        return None
    assert table is not None
    names = [shard.name for shard in shards]
    kept = keep_best(
        table, selection.keep, by=selection.keep_by, policy=selection.chosen_policy, shards=names, prior=prior
    )
    log(kept.line())
    return kept


def joint_loss_of(options: RunOptions, scorer: Model, table: ScoreTable | None) -> ContrastiveLoss:
    """The contrastive loss of a joint policy: the user's, or sigmoid where both models have a bias."""
    if options.selection.joint_loss is not None:
        return options.selection.joint_loss
    own_bias = getattr(scorer.module, "logit_bias", None)
    stored_bias = table.manifest.get("bias") if table is not None else None
    return "sigmoid" if own_bias is not None and stored_bias is not None else "softmax"


def joint_flops(options: RunOptions, scorer: Model | None, loss: ContrastiveLoss, table: ScoreTable | None) -> float:
    """FLOPs of the matrix products with which a joint policy chooses at one step; 0 for the others."""
    if not options.selection.joint:
        return 0.0
    assert table is not None
    widths = [table.embedding_width] + ([embedding_width(scorer)] if scorer is not None else [])
    return float(
        selection_flops(
            options.super_batch_size, options.optimization.batch_size, widths, loss, options.selection.chunks
        )
    )


def check_disk(run: Path, models: Collection[Model], options: RunOptions, steps: int, selections_every: int) -> None:
    """Refuse what would fill the disk hours later: the checkpoints that are kept and a new one, which is whole before an
    old one goes, the final weights, all with the learner's average, the learner's weights that are kept on the way, and
    the selections. What a resumed run wrote before is there already."""
    checkpoints, rest = disk_bytes(models, options, steps, selections_every)
    needed = checkpoints - min(checkpoints, checkpoint.size(run)) + rest
    free = shutil.disk_usage(run).free
    if free < needed:
        raise RunError(
            f"{run}: needs about {needed / 1e9:.3g} GB for checkpoints, weights and selections, {free / 1e9:.3g} GB are "
            "free; free space, choose another --out, or raise --selections-every or --keep-every"
        )


def disk_bytes(
    models: Collection[Model], options: RunOptions, steps: int, selections_every: int | None
) -> tuple[int, int]:
    """Bytes of (checkpoints, all else that a run writes). `models` begin with the learner, and end with a reference that trains
    in the run. If `selections_every` is None, selections take SELECTIONS_BUDGET at most."""
    weights = sum(4 * p.numel() for m in models for p in m.module.parameters())
    learner = sum(4 * p.numel() for p in next(iter(models)).module.parameters())
    average = learner if options.optimization.ema is not None else 0
    kept = learner * (BEST_KEPT * (options.records.evaluate_every is not None))
    kept += learner * (steps // options.records.keep_every if options.records.keep_every else 0)
    rows = options.selection.selects * (steps // (selections_every or 1)) * options.super_batch_size
    recorded = SELECTION_BYTES * rows
    if selections_every is None:
        recorded = min(recorded, SELECTIONS_BUDGET)
    # A reference that trains in the run, the last of the models, may be in the middle of a batch.
    pending = sum(4 * p.numel() for p in [*models][-1].module.parameters()) if options.selection.reference_online else 0
    checkpoints = (checkpoint.KEPT + 1) * ((1 + OPTIMIZER_STATE) * weights + average + pending)
    return checkpoints, weights + average + kept + recorded


def manifest_of(
    dataset: DatasetSpec,
    shards: Sequence[Shard],
    models: Mapping[str, Model],
    table: ScoreTable | None,
    device: torch.device,
    precision: Precision,
    cost: StepCost,
    uncounted: list[str],
    began: Mapping[str, Any],
) -> dict[str, Any]:
    """What ran, on what, with which versions: manifest.json. `began` is what a resume compares beside."""
    return {
        "versions": frozen.versions(),
        "hardware": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {os.cpu_count()} cores",
        "precision": precision,
        "dataset": frozen.dataset_of(dataset, shards),
        "models": frozen.models_of(models),
        "score_table": table
        and {
            "folder": table.folder,
            "reference": table.manifest["reference"],
            "flops_per_example": table.manifest["flops"]["forward_per_example"],
        },
        "flops_per_step": cost.to_dict(),
        "operators_not_counted": uncounted,
        "began": dict(began),
    }
