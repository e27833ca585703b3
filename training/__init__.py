"""Super-batch join, loop, ledger, evaluation, checkpoints: the one room that needs a backward pass."""

from ..ledger import Ledger
from ..units import parse_flops, parse_share
from .options import TrainOptions
from .run import train

__all__ = ["Ledger", "TrainOptions", "parse_flops", "parse_share", "train"]
