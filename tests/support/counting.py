"""A counter of FLOPs of its own, beside the ledger's."""

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class OfRealTensors(FlopCounterMode):
    """Leaves out passes over shapes alone, by which a run checks its models and measures a step: they are no arithmetic."""

    def _count_flops(self, func_packet, out, args, kwargs):
        if any(isinstance(value, torch.Tensor) and value.is_meta for value in tree_leaves((out, args))):
            return out
        return super()._count_flops(func_packet, out, args, kwargs)
