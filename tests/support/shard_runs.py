"""Training steps of a model in shards in tests. It stands here because a new process can import it by name."""

import os
import signal

import torch
from curate.errors import WriteError
from curate.scoring.policies import Policy
from curate.training import checkpoint, scorer
from curate.training.trainee import Trainee

from support.rank_runs import CAPTIONS, ends, model_of, terminates_1, train_in


def own_loss(known):
    return known.online_B


# No policy of curate's has the learner score without a reference.
HARDEST = Policy("hardest", own_loss, online="learner", help="loss(learner)")
# (kind of model, what its trainee is given)
CASES = [
    ("classes", {"optimizer": "adamw", "layer_decay": 0.5, "ema": 0.6, "ema_warmup": True}),
    ("classes", {"optimizer": "adam", "clip_grad": 0.05, "accumulate": 2, "grad_checkpointing": True}),
    ("softmax", {"optimizer": "sgd", "clip_grad": 0.1}),
    ("sigmoid", {"optimizer": "momentum", "accumulate": 3, "clip_grad": 0.1}),
]


def all_steps(group, own):
    """What `steps_of` finds for each case, with shards where there are several ranks."""
    return [steps_of(group, own, kind, more) for kind, more in CASES]


def steps_of(group, own, kind, more):
    """(the whole batch's losses, the weights after three steps on rank 0, the losses that score, values that this rank
    trains)."""
    torch.manual_seed(0)
    fsdp = "fp32" if group.size > 1 else None
    model = model_of(kind)
    model.module.double()
    model.normalize = lambda rows: rows.double().permute(0, 3, 1, 2) / 255 - 0.5
    trainee = Trainee(model, lr=0.01, device=torch.device("cpu"), group=group, fsdp=fsdp, **more)
    size = model.geometry.size
    pixels = torch.randint(0, 255, (7, size, size, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    targets = model.targets(CAPTIONS if model.task.compares else range(7))
    rows = torch.tensor(own[group.rank])
    trainee.join(len(rows))
    losses = []
    for step in range(3):
        loss = trainee.step(pixels[rows], targets[rows], lr_share=1 - step / 4, weight=len(rows) * group.size / 7)
        losses.append(float(group.sum(loss) / group.size))
    with trainee.whole(), torch.inference_mode(), torch.random.fork_rng():
        scored = []
        for row in rows.tolist():  # ranks take unequal numbers of passes
            outputs = model.task.infer(trainee.forward, model.normalize(pixels[row : row + 1]), targets[row : row + 1])
            scored.append(float(model.task.scored(outputs, targets[row : row + 1]).loss))
    state = trainee.state()
    weights = {name: state.weights[name].numpy() for name in state.finite} if group.is_first else None
    if weights is not None and state.average is not None:
        weights |= {f"average of {name}": state.average[name].numpy() for name in state.finite}
    held = sum(value.numel() for part in trainee.optimizer.param_groups for value in part["params"])
    return losses, weights, dict(zip(rows.tolist(), scored, strict=True)), held


def cannot_score_1(group):
    def fails(*_, **__):
        raise WriteError("no more scores")

    if group.rank == 1:
        scorer.score_batch = fails


def kills_next_save(group):
    """Rank 0, when a checkpoint's tensors are written and its state is not."""
    if group.is_first:
        checkpoint._checksum = lambda path: os.kill(os.getpid(), signal.SIGKILL)


def troubles_of(group, folder, changes):
    """How runs end that a signal and an error on one rank stop."""
    how = [("stopped", terminates_1), ("failed", cannot_score_1)]
    return [ends(group, folder, False, 5, then, {**changes, "name": name}) for name, then in how]


def legs_of(group, folder, legs):
    """Runs, or parts of runs, one after another: (changes, the step after which it is cut off). What was reported."""
    return [train_in(group, folder, True, until, None, changes)[1] for changes, until in legs]
