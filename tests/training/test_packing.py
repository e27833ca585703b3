"""Rows and texts as bytes, and back."""

import pytest
import torch
from curate.training.packing import packed, packed_texts, unpacked, unpacked_texts, width_of


@pytest.mark.parametrize("n", [0, 1, 5])
def test_rows_of_any_types_come_back_as_they_were(n):
    rows = torch.Generator().manual_seed(n)
    columns = [
        torch.randint(0, 256, (n, 3, 2, 3), dtype=torch.uint8, generator=rows),
        torch.randn(n, generator=rows),
        torch.randint(-9, 9, (n, 7), generator=rows),
        torch.rand(n, generator=rows) < 0.5,
        torch.randn(n, 0, generator=rows),
        torch.randn(n, 5, generator=rows).half().T.contiguous().T,
    ]
    content = packed(columns)
    assert content.dtype == torch.uint8 and content.shape == (n, 18 + 4 + 56 + 1 + 0 + 10)
    for back, column in zip(unpacked(content, [column[:0] for column in columns]), columns, strict=True):
        assert back.dtype == column.dtype and torch.equal(back, column)


@pytest.mark.parametrize("texts", [[], [""], ["a\0", "\0", "", "é" * 40, "\udcff.tar", "ends with a dot."]])
def test_texts_of_any_kind_come_back_as_they_were(texts):
    rows = packed_texts(texts, width_of(texts) + 3)
    assert rows.shape == (len(texts), width_of(texts) + 3)
    assert unpacked_texts(rows) == texts
