"""Near duplicates beside the obvious computation."""

import numpy as np
import pytest
from curate.reports.duplicates import groups_of, nearest_earlier


def unit(rows, seed=0, width=16):
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 200])
def test_every_pair_is_compared_across_blocks(rows):
    vectors = unit(rows)
    similarity, index = nearest_earlier(vectors.astype(np.float16), block=64)
    assert similarity[0] == -np.inf
    exact = vectors.astype(np.float16).astype(np.float64)
    for i in range(1, rows):
        products = exact[:i] @ exact[i]
        assert index[i] == products.argmax()
        assert similarity[i] == pytest.approx(products.max(), abs=1e-5)


def test_copies_are_one_group_and_the_largest_stands_first():
    vectors = unit(40)
    vectors[[5, 17, 30]] = vectors[2]
    vectors[39] = vectors[38]
    assert groups_of(*nearest_earlier(vectors, block=8), 0.999) == [[2, 5, 17, 30], [38, 39]]
    assert groups_of(*nearest_earlier(unit(40)), 0.999) == []
