"""A model that is being trained: its module, optimizer, training loss and augmentation."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm.optim
import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3

from ..errors import ModelError, SpecError, first_line
from ..options import flag
from ..scoring.fit import some_unused
from ..scoring.forward import autocast
from ..scoring.gradients import (
    add_gradients,
    batch_norms,
    checkpoint_activations,
    still_statistics,
)
from ..scoring.models import Model
from ..scoring.settings import Precision, Reduction
from .batch import SuperBatch
from .distill import Taught, blended
from .group import Group, unshared
from .weighing import Weighed, WeighedLoss

MAX_LOGIT_SCALE = math.log(100)
Targets = torch.Tensor | Taught | Weighed


@dataclass(frozen=True)
class TraineeState:
    """What a trainee's checkpoint holds: states of its module, its optimizer, and the average of its weights.

    Of `weights` those in `finite` must be finite. `gradients` are those of a batch that is not complete.
    """

    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    average: Mapping[str, torch.Tensor] | None
    finite: frozenset[str]
    gradients: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def result(self) -> Mapping[str, torch.Tensor]:
        """The weights that are evaluated and kept."""
        return self.weights if self.average is None else self.average


class Trainee:
    """The learner, or the online model: both take the same steps on the same sub-batches.

    `lr` is the peak of the learning rate. `beta1`, `beta2` and `eps` default to the optimizer's own. With `layer_decay`,
    each layer's rate is so many times that of the layer above. Gradients are clipped to a norm of `clip_grad`. A
    batch is computed in `accumulate` parts, one after another, and with `grad_checkpointing` activations are computed again
    in the backward pass: both save memory. `ema` is the decay of a moving average of the weights. With `distill` above 0
    so much of the loss is of a teacher's probabilities, at `distill_temperature`: `step` is then given `Taught` targets. With
    `gce` the loss is the generalised cross-entropy of this q. One that `weighs` multiplies each example's loss by its weight:
    `step` is given `Weighed` targets, and `weighed.of_batch()` has the losses themselves.

    In a `group` of ranks each steps on its part of the batch, and all have the gradients of the whole batch; call `join` on
    all of them before the first step. `forward` scores on one rank alone. With `fsdp` each rank then holds a shard of the
    weights and of all that belongs to them; blocks are gathered in this number format, and `forward` is called within
    `whole()`. With `sync_bn`,
    BatchNorm layers normalise over what all ranks compute at a time.

    Raises SpecError for an optimizer that timm does not know or that lacks what is set, and where BatchNorm cannot be
    synchronised, and ModelError for a model that cannot do what is asked.
    """

    def __init__(
        self,
        model: Model,
        *,
        lr: float,
        optimizer: str = "adamw",
        weight_decay: float = 0.05,
        beta1: float | None = None,
        beta2: float | None = None,
        eps: float | None = None,
        layer_decay: float | None = None,
        clip_grad: float | None = None,
        label_smoothing: float = 0.0,
        gce: float | None = None,
        weighs: bool = False,
        accumulate: int = 1,
        grad_checkpointing: bool = False,
        ema: float | None = None,
        ema_warmup: bool = False,
        distill: float = 0.0,
        distill_temperature: float = 1.0,
        compiled: bool = False,
        device: torch.device,
        precision: Precision = "fp32",
        group: Group | None = None,
        fsdp: Precision | None = None,
        sync_bn: bool = False,
    ) -> None:
        self.model = model.to(device)
        self.module = model.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.lr, self.precision, self.compiled = lr, precision, compiled
        self.accumulate, self.grad_checkpointing, self.clip_grad = accumulate, grad_checkpointing, clip_grad
        if grad_checkpointing:
            checkpoint_activations(model)
        self.forward: Any = torch.compile(self.module) if compiled else self.module
        self.group = group or Group()
        self.sync_bn = sync_bn and self.group.size > 1 and bool(batch_norms(self.module))
        if self.sync_bn and device.type == "cpu":
            raise SpecError(
                "--sync-bn: torch's SyncBatchNorm runs on GPUs alone, and this run is on the CPU; leave it out"
            )
        self._run = self.forward
        self.fsdp = fsdp
        self._sharded: Any = None
        self._averaged: Any = None  # the average in shards
        losses: Any = partial(model.task.training_loss, model, label_smoothing, self.group, gce)
        self.loss = losses()
        self.distill = distill
        kind: Reduction = "none" if weighs else "mean"
        each: Any = losses(kind)
        self.step_loss: Any = blended(each, distill, distill_temperature, kind) if distill else each
        self.weighed = WeighedLoss(self.step_loss) if weighs else None
        self.make_optimizer = partial(
            make_optimizer,
            name=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            layer_decay=layer_decay,
        )
        self.optimizer = self.make_optimizer(model)
        self.steps = 0
        self.average = None if ema is None else ModelEmaV3(self.module, decay=ema, use_warmup=ema_warmup)

    @property
    def result(self) -> Model:
        """The model that is evaluated and kept: the average of the weights where there is one, else the model itself."""
        if self.average is None:
            return self.model
        made = copy.copy(self.model)
        made.module = self.average.module
        return made

    def join(self, rows: int) -> None:
        """Share the steps with the other ranks of the group, each on `rows` examples or more. A collective.

        A first pass over blank images settles in which order gradients are averaged. Otherwise that order would be another
        one in the first step of a process, and a resumed run would differ in its last bits.
        """
        if self.group.size == 1:
            return
        if self.sync_bn:
            if rows < self.accumulate:  # else ranks would synchronise other numbers of parts, and wait for ever
                raise SpecError(
                    f"--accumulate is {self.accumulate}, and with --sync-bn expected at most {rows}, the examples of a rank"
                )
            # Timm's, since torch's own would lose the activation of timm's layers. Parameters stay the same tensors.
            convert_sync_batchnorm(self.module)
        if self.fsdp is not None:
            self._shard(self.fsdp)
        else:
            shared: Any = self.group.divide(self.module, some_unused=some_unused(self.model))
            self._run = torch.compile(shared) if self.compiled else shared
        device = next(self.module.parameters()).device
        size = self.model.geometry.size
        blank = torch.zeros(rows, size, size, 3, dtype=torch.uint8, device=device)
        targets = self.model.targets([self.model.task.blank()] * rows).to(device)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), still_statistics(self.module):
            self._add_gradients(blank, targets, self.loss, 1.0)
        self.module.zero_grad(set_to_none=True)

    def _shard(self, precision: Precision) -> None:
        from .sharding import Sharded  # its imports take a while

        try:
            self._sharded = Sharded(self.module, self.group, precision)
        except (NotImplementedError, ValueError) as e:
            raise self.group.alike(
                ModelError(
                    f"model '{self.model.spec.name}' cannot be cut into shards ({first_line(e)}); leave --fsdp out"
                )
            ) from e
        if self.average is not None:
            self._averaged = Sharded(self.average.module, self.group, "fp32")
        self.optimizer = self.make_optimizer(self.model)
        self._sharded.take(self.optimizer)

    def whole(self, *, result: bool = False) -> AbstractContextManager[None]:
        """Within, the weights, or those of `result`, are whole on every rank, so that each may score alone. A collective."""
        shards = self._averaged if result and self._averaged is not None else self._sharded
        return nullcontext() if shards is None else shards.whole()

    def state(self, *, optimizer: bool = True) -> TraineeState:
        """What a checkpoint holds, with `optimizer` or without. With shards it is a collective, and on rank 0 alone has it
        tensors, on the CPU."""
        shards = self._sharded
        named = {name for name, _ in self.module.named_parameters()}
        # Other buffers may hold infinities of their own, such as masks of attention.
        named |= {name for name, _ in self.module.named_buffers() if name.endswith(("running_mean", "running_var"))}
        if not optimizer:
            state: Mapping[str, Any] = {}
        else:
            state = self.optimizer.state_dict() if shards is None else shards.optimizer_state(self.optimizer)
        average: Any = None
        if self.average is not None:
            average = self.average.module.state_dict() if self._averaged is None else self._averaged.weights()
        weights = self.module.state_dict() if shards is None else shards.weights()
        gradients = {n: p.grad for n, p in self.module.named_parameters() if shards is None and p.grad is not None}
        return TraineeState(weights, state, average, frozenset(named), gradients)

    def parts_of(self, weights: Mapping[str, torch.Tensor], *, average: bool = False) -> Mapping[str, torch.Tensor]:
        """Whole tensors as the module, or the average of its weights, loads them."""
        shards = self._averaged if average else self._sharded
        return weights if shards is None else shards.parts_of(weights)

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        """Load an optimizer's state of `state`, of this trainee or of one with other shards or none."""
        if self._sharded is None:
            self.optimizer.load_state_dict(dict(state))
        else:
            self._sharded.load_optimizer(self.optimizer, state)

    def load_gradients(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Continue a batch that is not complete."""
        for name, parameter in self.module.named_parameters():
            if name in gradients:
                parameter.grad = gradients[name].to(parameter.device)

    def targets_of(self, batch: SuperBatch, name: str) -> Targets:
        """What `step` takes beside the images of a batch."""
        targets = Taught.of(batch, name) if self.distill else batch.model_targets(name)
        if self.weighed is None:
            return targets
        weights: torch.Tensor | None = getattr(batch, "weights", None)
        device = targets.device
        return Weighed(targets, torch.ones(len(targets), device=device) if weights is None else weights.to(device))

    def step(
        self, pixels_BHWC: torch.Tensor, targets: Targets, lr_share: float = 1.0, weight: float = 1.0
    ) -> torch.Tensor:
        """One optimizer step on a batch on the device, at this share of the peak rate. Returns the detached loss.

        In a group, this rank's part of the batch: `weight` times its mean loss, averaged over the ranks, is the mean over
        the batch. So weighted is what is returned.
        """
        loss = self.add(pixels_BHWC, targets, weight)
        self.update(lr_share)
        return loss

    def add(self, pixels_BHWC: torch.Tensor, targets: Targets, weight: float = 1.0) -> torch.Tensor:
        """The first half of `step`. Called several times before `update`, it adds batches up, each with its weight."""
        with self.group.averaging():
            loss = self.weighed.start() if self.weighed else self.step_loss
            return self._add_gradients(pixels_BHWC, targets, loss, weight)

    def update(self, lr_share: float = 1.0) -> None:
        """The second half of `step`: the optimizer's."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr_share * self.lr * group.get("lr_scale", 1.0)
        if self._sharded is not None:
            with self.group.averaging():
                self._sharded.step(self.optimizer, self.clip_grad)
        else:
            if self.clip_grad is not None:
                torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_grad)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)  # now, so that none are held while the next batch is scored
        scale = getattr(self.module, "logit_scale", None)
        if scale is not None:
            with torch.no_grad():
                scale.clamp_(0, MAX_LOGIT_SCALE)
        self.steps += 1
        if self.average is not None and self._averaged is not None:
            self._averaged.move_to(self.module, 1.0 - self.average.get_decay(self.steps))
        elif self.average is not None:
            self.average.update(self.module, step=self.steps)

    def _add_gradients(self, pixels_BHWC: torch.Tensor, targets: Any, loss: Any, weight: float) -> torch.Tensor:
        self.module.train()
        return add_gradients(
            self.model,
            self._run,
            loss,
            lambda part: self.model.normalize(pixels_BHWC[part]),
            targets,
            accumulate=self.accumulate,
            recomputes=self.grad_checkpointing,
            computing=lambda: autocast(pixels_BHWC.device, self.precision),
            weight=weight,
            unshared=lambda: unshared(self._run),
        )


def align(trainees: Sequence[Trainee]) -> None:
    """Give all ranks of their group rank 0's BatchNorm statistics, since each counts its own part of a batch. A collective."""
    group = trainees[0].group
    if group.size > 1:
        layers = [layer for trainee in trainees for layer in batch_norms(trainee.module)]
        group.broadcast([b for layer in layers for b in layer.buffers() if b.is_floating_point()])


def make_optimizer(
    model: Model,
    *,
    name: str,
    lr: float,
    weight_decay: float,
    beta1: float | None = None,
    beta2: float | None = None,
    eps: float | None = None,
    layer_decay: float | None = None,
) -> torch.optim.Optimizer:
    """timm's optimizer of this name. Vectors and scalars (biases, gains, a logit scale) do not decay, nor does what the
    model's own `no_weight_decay` lists (position embeddings).

    Raises SpecError where the optimizer is unknown or lacks what is set, ModelError where a model's layers have no order.
    """
    if name not in timm.optim.list_optimizers():
        raise SpecError(f"--optimizer is '{name}', expected one of timm's: adamw, sgd, lamb, lion, ...")
    info = timm.optim.get_optimizer_info(name)
    for option, value, known in (
        ("beta1", beta1, info.has_betas),
        ("beta2", beta2, info.has_betas),
        ("eps", eps, info.has_eps),
    ):
        if value is not None and not known:
            raise SpecError(f"{flag(option)} is {value:g}, but --optimizer {name} has none; leave it out")
    settings: dict[str, Any] = {"opt": name, "lr": lr, "weight_decay": weight_decay, "layer_decay": layer_decay}
    if eps is not None:
        settings["eps"] = eps
    made: torch.optim.Optimizer = timm.optim.create_optimizer_v2(model.module, **settings)
    if layer_decay is not None and len({group["lr_scale"] for group in made.param_groups}) == 1:
        raise ModelError(
            f"model '{model.spec.name}' ({model.spec.architecture}) does not tell timm the order of its layers (it has no "
            "group_matcher); leave --layer-decay out"
        )
    if beta1 is None and beta2 is None:
        return made
    first, second, *more = made.defaults["betas"]
    betas = (first if beta1 is None else beta1, second if beta2 is None else beta2, *more)
    made = timm.optim.create_optimizer_v2(model.module, **settings, betas=betas)
    return made
