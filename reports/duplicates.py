"""Near duplicates: examples whose embeddings point almost the same way."""

from __future__ import annotations

import numpy as np

# Rows of a block of products: 200 MB with 10^5 columns.
BLOCK = 512


def nearest_earlier(vectors_ND: np.ndarray, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """For each of N unit vectors the most similar one before it: (similarity float32 [N], its index [N]).

    Exact: every pair is compared, a block at a time, in N^2 D multiply-adds over two. The first has similarity -inf.
    """
    vectors = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    similarity, index = np.full(len(vectors), -np.inf, np.float32), np.zeros(len(vectors), np.int64)
    for start in range(0, len(vectors), block):
        end = min(start + block, len(vectors))
        products = vectors[start:end] @ vectors[:end].T
        rows = np.arange(end - start)
        products[:, start:][np.triu_indices(end - start)] = -np.inf  # itself, and those after it
        index[start:end] = products.argmax(axis=1)
        similarity[start:end] = products[rows, index[start:end]]
    return similarity, index


def groups_of(similarity_N: np.ndarray, index_N: np.ndarray, least: float) -> list[list[int]]:
    """Groups of two or more, largest first: each member but the first has its nearest earlier one, at least `least`
    similar, in the same group."""
    first = list(range(len(index_N)))
    groups: dict[int, list[int]] = {}
    for i, (similarity, before) in enumerate(zip(similarity_N.tolist(), index_N.tolist(), strict=True)):
        if i and similarity >= least:
            first[i] = first[before]
            groups.setdefault(first[i], [first[i]]).append(i)
    return sorted(groups.values(), key=len, reverse=True)
