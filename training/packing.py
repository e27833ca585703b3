"""Rows of several tensors, and texts, as rows of bytes: ranks send them in one message."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch


def packed(columns: Sequence[torch.Tensor]) -> torch.Tensor:
    """uint8 [n, bytes of a row] of tensors [n, ...], one or more, on one device."""
    rows = [column.reshape(len(column), numbers_of_row(column)).contiguous() for column in columns]
    return torch.cat([row.view(torch.uint8) for row in rows], dim=1)


def unpacked(rows: torch.Tensor, alike: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors [n, ...] of which `packed` made these n rows, given others [m, ...] of their types and widths."""
    parts = rows.split([bytes_of_row(column) for column in alike], dim=1)
    return [
        part.reshape(-1).clone().view(column.dtype).reshape(len(rows), *column.shape[1:])
        for part, column in zip(parts, alike, strict=True)
    ]


def numbers_of_row(column: torch.Tensor) -> int:
    return math.prod(column.shape[1:])


def bytes_of_row(column: torch.Tensor) -> int:
    return numbers_of_row(column) * column.element_size()


def packed_texts(texts: Sequence[str], width: int) -> torch.Tensor:
    """uint8 [n, width] of n texts of at most this `width_of`."""
    rows = np.array([_encoded(text) for text in texts], dtype=f"S{width}")
    return torch.from_numpy(rows.view(np.uint8).reshape(len(texts), width))


def unpacked_texts(rows: torch.Tensor) -> list[str]:
    """The n texts of which `packed_texts` made these rows."""
    found = rows.numpy().view(f"S{rows.shape[1]}").reshape(len(rows)).tolist()
    return [text[:-1].decode("utf-8", "surrogatepass") for text in found]


def width_of(texts: Iterable[str]) -> int:
    """The bytes that the longest of the texts takes; 1 for none."""
    return max((len(_encoded(text)) for text in texts), default=1)


def _encoded(text: str) -> bytes:
    """Ends with a byte that is no 0, since numpy cuts zeros off."""
    return text.encode("utf-8", "surrogatepass") + b"."
