"""FLOPs of a forward pass and of a training step, measured with torch's FlopCounterMode.

Convention: FLOPs = 2 x multiply-adds. Operators without a formula count as zero. They are listed by name, so that
anybody can judge what is missing (usually normalisation, activations and reductions).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ..errors import SpecError
from ..ledger import LINES, Ledger, StepCost, steps_within
from ..units import parse_flops
from .fit import meta_inputs, on_meta
from .gradients import Loss, add_gradients
from .models import Model
from .tables.lookup import ScoreTable

# Views and copies do no arithmetic. Listing them would hide the operators that matter.
NO_ARITHMETIC = frozenset(
    """view _unsafe_view reshape permute transpose t expand slice select unsqueeze squeeze split split_with_sizes
    detach clone copy_ _to_copy empty empty_like empty_strided new_empty new_empty_strided zeros zeros_like ones
    ones_like full full_like fill_ zero_ arange cat stack as_strided alias lift_fresh index gather scatter embedding
    unbind contiguous new_zeros scalar_tensor is_same_size _local_scalar_dense slice_backward select_backward
    index_put argmax eye""".split()
)
# A few FLOPs for each value, beside products that have hundreds: what usual models have.
FEW = frozenset(
    """_log_softmax _log_softmax_backward_data _safe_softmax _softmax _softmax_backward_data avg_pool2d avg_pool2d_backward
    _adaptive_avg_pool2d _adaptive_avg_pool2d_backward max_pool2d_with_indices max_pool2d_with_indices_backward mean sum amax
    amin any all max min var var_mean cumsum linalg_vector_norm native_batch_norm native_batch_norm_backward
    _native_batch_norm_legit native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward
    native_dropout native_dropout_backward nll_loss_forward nll_loss_backward bernoulli_ randint constant_pad_nd roll topk sort
    embedding_dense_backward""".split()
)


@dataclass(frozen=True)
class Flops:
    """Measured FLOPs of one pass over `examples` examples; `uncounted` are operators without a formula."""

    total: int
    examples: int
    uncounted: tuple[str, ...] = ()

    @property
    def per_example(self) -> float:
        return self.total / self.examples


class _OperatorNames(TorchDispatchMode):
    """Records every operator that runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func._overloadpacket)
        return func(*args, **(kwargs or {}))


# Which attention kernels are allowed is a switch of the whole process.
_KERNELS = threading.Lock()


def count(run: Callable[[], Any], examples: int) -> Flops:
    """Count one call of `run`.

    Attention runs as plain matrix products, for which the counter has a formula on every device. A fused kernel without a
    formula would count as zero. Other threads' attention is slower meanwhile; `count_on_meta` leaves them alone.
    """
    with _KERNELS, sdpa_kernel(SDPBackend.MATH):
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # nn.MultiheadAttention's own fused kernel
        try:
            return count_on_meta(run, examples)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def count_on_meta(run: Callable[[], Any], examples: int) -> Flops:
    """Count one call of `run`, whose tensors have no storage: for those, attention is always plain matrix products."""
    names = _OperatorNames()
    with FlopCounterMode(display=False) as counter, names:
        run()
    uncounted = {op.__name__ for op in names.seen if op not in flop_registry}
    return Flops(int(counter.get_total_flops()), examples, tuple(sorted(uncounted - NO_ARITHMETIC)))


def unusual(uncounted: Iterable[str]) -> list[str]:
    """Those of the uncounted operators that may do more than a few FLOPs for each value, such as a kernel of one's own."""

    def pointwise(name: str) -> bool:
        packet = getattr(torch.ops.aten, name, None)
        return packet is not None and any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())

    return [name for name in uncounted if name not in FEW and not pointwise(name)]


def forward_flops(model: Model, batch_size: int = 2) -> Flops:
    """FLOPs of scoring `batch_size` examples: one forward pass in evaluation mode."""
    module, (images, targets) = on_meta(model.module).eval(), meta_inputs(model, batch_size)

    def run() -> None:
        with torch.no_grad():
            model.task.infer(module, images, targets)

    return count_on_meta(run, batch_size)


def train_flops(model: Model, loss: Loss, batch_size: int, accumulate: int = 1) -> Flops:
    """FLOPs of one training step on `batch_size` examples, in `accumulate` parts: forward, loss, backward.

    What is computed twice, to save memory, is counted twice. The optimizer's own arithmetic (a few FLOPs a weight, whatever
    the batch) is not counted, as is the convention.
    """
    module, (images, targets) = on_meta(model.module).train(), meta_inputs(model, batch_size)
    meta = Model(model.spec, model.task, module, model.preprocessing, model.tokenizer)
    return count_on_meta(
        lambda: add_gradients(meta, module, loss, images.__getitem__, targets, accumulate=accumulate), batch_size
    )


def step_cost(
    learner: Model,
    online: Model | None,
    scorer: Model | None,
    *,
    sub_batch: int,
    super_batch: int,
    label_smoothing: float = 0.0,
    accumulate: int = 1,
    choosing: float = 0.0,
    reference: Model | None = None,
    reference_scorer: Model | None = None,
) -> tuple[StepCost, list[str]]:
    """FLOPs of one step of a run, measured once on the shapes; and the operators that were not counted.

    `scorer` is the model that scores the super-batch, at the resolution at which it scores. Both models train on the
    sub-batch in `accumulate` parts. `choosing` are the FLOPs of a joint policy's selection; they are added to those of the
    online score. A `reference` trains in the run on the whole super-batch, in as many parts, and scores it as
    `reference_scorer`.
    """
    counted = [_train_flops(m, label_smoothing, sub_batch, accumulate) for m in (learner, online) if m]
    scoring = [forward_flops(scorer)] if scorer is not None else []
    moving = [] if reference is None else [_train_flops(reference, label_smoothing, super_batch, accumulate)]
    moving_scoring = [] if reference_scorer is None else [forward_flops(reference_scorer)]
    cost = StepCost(
        learner_train=float(counted[0].total),
        online_score=sum(one.per_example * super_batch for one in scoring) + choosing,
        online_train=float(sum(one.total for one in counted[1:])),
        reference_score=float(sum(one.per_example * super_batch for one in moving_scoring)),
        reference_train=float(sum(one.total for one in moving)),
    )
    every = (*counted, *scoring, *moving, *moving_scoring)
    return cost, sorted({name for one in every for name in one.uncounted})


def _train_flops(model: Model, label_smoothing: float, batch_size: int, accumulate: int) -> Flops:
    return train_flops(model, model.task.training_loss(model, label_smoothing), batch_size, accumulate)


class ComputeLedger(Ledger):
    """A ledger for a loop of your own: measures each part of a step once, adds up steps, and stops a budget.

        ledger = curate.Ledger()
        ledger.measure("online_score", lambda: losses(online, batch))
        ledger.measure("learner_train", lambda: criterion(learner(images), labels).backward())
        for step in range(ledger.steps_within("20TF")):
            ...
            ledger.add_step()

    It begins with what the reference cost, if a score `table` is given that has it.
    """

    def __init__(self, table: ScoreTable | None = None) -> None:
        flops = table.manifest["flops"] if table is not None else {}
        super().__init__(
            reference_score=flops.get("reference_score") or 0.0, reference_train=flops.get("reference_train", 0.0)
        )
        self.cost = StepCost()
        self.uncounted: tuple[str, ...] = ()

    def measure(self, line: str, run: Callable[[], Any], times_per_step: float = 1.0) -> float:
        """Call `run` once and count its FLOPs; returns them. Its shapes must be those of a real step.

        `line` is a line of the ledger: learner_train, online_score, online_train or, of a reference that trains in the
        loop, reference_score and reference_train. Several parts of one line add up.
        `times_per_step` multiplies a part that runs more than once. Operators without a formula are listed in
        `uncounted`. Raises SpecError for another line.
        """
        if line not in STEP_LINES:
            raise SpecError(f"a step has no line '{line}'; expected {', '.join(STEP_LINES)}")
        if not 0 < times_per_step < math.inf:
            raise SpecError(f"times_per_step is {times_per_step}, expected a number above 0")
        counted = count(run, 1)
        self.uncounted = tuple(sorted({*self.uncounted, *counted.uncounted}))
        flops = counted.total * times_per_step
        self.cost = replace(self.cost, **{line: getattr(self.cost, line) + flops})
        return flops

    def add_step(self, cost: StepCost | None = None) -> None:
        """Add a step's FLOPs: what was measured, or `cost`."""
        super().add_step(self._measured() if cost is None else cost)

    def steps_within(self, budget: float | str) -> int:
        """Whole steps that a budget pays for, such as "20TF" or 2e13. Raises BudgetError where it is not even one."""
        flops = parse_flops(budget) if isinstance(budget, str) else budget
        return steps_within(flops, self._measured().total)

    def _measured(self) -> StepCost:
        if not self.cost.total:
            why = f" whose FLOPs are known (only {', '.join(self.uncounted)})" if self.uncounted else ""
            raise SpecError(
                f"nothing was measured{why}; call measure for each part of a step first, also after a resume"
            )
        return self.cost


STEP_LINES = tuple(field.name for field in fields(StepCost) if field.name in LINES)
