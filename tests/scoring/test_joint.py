"""Joint selection against the whole loss matrices in float64, and against every order of drawing on small cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from curate.scoring.joint import chunk_sizes, select_jointly, selection_flops
from curate.scoring.losses import Pairs
from curate.scoring.selection import select
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

LOSSES = ("sigmoid", "softmax")


def pairs(seed, B, D=6, scale=4.0, bias=-2.0, groups=None):
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.nn.functional.normalize(torch.randn(B, D, generator=generator), dim=-1) for _ in range(2))
    return Pairs(image, text, scale, bias, None if groups is None else torch.tensor(groups))


def slow_losses(model, chosen, loss):
    """Losses of every pair beside those `chosen` (None: the first chunk), one pair at a time in float64."""
    image, text = model.image_BD.double().numpy(), model.text_BD.double().numpy()
    z = model.scale * image @ text.T + model.bias
    B = len(z)
    group = range(B) if model.group_B is None else model.group_B.tolist()
    losses = []
    for k in range(B):
        beside = range(B) if chosen is None and loss == "softmax" else chosen or ()
        negatives = [j for j in beside if group[j] != group[k]]
        if loss == "sigmoid":
            value = np.log1p(np.exp(-z[k, k]))
            value += sum(np.log1p(np.exp(z[k, j])) + np.log1p(np.exp(z[j, k])) for j in negatives)
        else:
            row = np.exp(z[k, k]) + sum(np.exp(z[k, j]) for j in negatives)
            column = np.exp(z[k, k]) + sum(np.exp(z[j, k]) for j in negatives)
            value = (np.log(row) + np.log(column)) / 2 - z[k, k]
        losses.append(value)
    return np.array(losses)


def slow_scores(online, reference, chosen, loss):
    score = np.zeros(len(online or reference))
    if online is not None:
        score += slow_losses(online, chosen, loss)
    if reference is not None:
        score -= slow_losses(reference, chosen, loss)
    return score


def slow_greedy(online, reference, b, loss, n_chunks):
    """topk: no chance in it."""
    chosen = []
    for size in chunk_sizes(b, n_chunks):
        score = slow_scores(online, reference, chosen or None, loss)
        score[chosen] = -np.inf
        chosen += np.argsort(-score, kind="stable")[:size].tolist()
    return sorted(chosen)


def exact_inclusion(online, reference, b, loss, n_chunks, temperature):
    """Probability of every set, by walking through all orders in which its members can be drawn."""
    B, sets = len(online), {}
    sizes = chunk_sizes(b, n_chunks)
    bounds = list(itertools.accumulate(sizes, initial=0))
    for order in itertools.permutations(range(B), b):
        probability = 1.0
        for start, end in itertools.pairwise(bounds):
            weights = np.exp(slow_scores(online, reference, list(order[:start]) or None, loss) / temperature)
            gone = list(order[:start])
            for drawn in order[start:end]:
                probability *= weights[drawn] / (weights.sum() - weights[gone].sum())
                gone.append(drawn)
        sets[tuple(sorted(order))] = sets.get(tuple(sorted(order)), 0.0) + probability
    return sets


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("which", ["both", "reference", "online"])
@pytest.mark.parametrize("groups", [None, [0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8]])
def test_topk_against_the_slow_form(loss, which, groups):
    online = pairs(1, 12, groups=groups) if which != "reference" else None
    reference = pairs(2, 12, D=9, scale=7.0, groups=groups) if which != "online" else None
    for b, n_chunks in ((1, 16), (5, 3), (7, 7), (6, 1), (12, 4)):
        choice = select_jointly(online, reference, b, loss=loss, n_chunks=n_chunks, sampler="topk")
        assert choice.index.tolist() == slow_greedy(online, reference, b, loss, n_chunks)
        first = slow_scores(online, reference, None, loss)
        np.testing.assert_allclose(choice.score.numpy(), first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_softmax_sampling_has_the_exact_probabilities(loss):
    online, reference, draws = pairs(3, 5), pairs(4, 5), 2000
    exact = exact_inclusion(online, reference, 3, loss, 2, 0.7)
    assert math.isclose(sum(exact.values()), 1.0, rel_tol=1e-9)
    generator = torch.Generator().manual_seed(0)
    seen = dict.fromkeys(exact, 0)
    for _ in range(draws):
        choice = select_jointly(online, reference, 3, loss=loss, n_chunks=2, temperature=0.7, generator=generator)
        seen[tuple(choice.index.tolist())] += 1
    for chosen, probability in exact.items():
        spread = math.sqrt(probability * (1 - probability) / draws)
        assert abs(seen[chosen] / draws - probability) < 4.5 * spread + 1e-9


@settings(max_examples=60, deadline=None)
@given(
    loss=st.sampled_from(LOSSES),
    B=st.integers(1, 24),
    data=st.data(),
    n_chunks=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_laws(loss, B, data, n_chunks, seed):
    b = data.draw(st.integers(1, B))
    online, reference = pairs(seed, B), pairs(seed + 1, B)
    generator = torch.Generator().manual_seed(seed)
    chosen = select_jointly(online, reference, b, loss=loss, n_chunks=n_chunks, generator=generator).index.tolist()
    assert len(chosen) == b == len(set(chosen)) and chosen == sorted(chosen)
    assert all(0 <= i < B for i in chosen)
    if b == B:
        assert chosen == list(range(B))
    # Whatever the order of the super-batch, the same pairs are chosen.
    order = torch.randperm(B, generator=generator)
    turned = [Pairs(m.image_BD[order], m.text_BD[order], m.scale, m.bias) for m in (online, reference)]
    greedy = select_jointly(online, reference, b, loss=loss, n_chunks=n_chunks, sampler="topk")
    greedy_turned = select_jointly(*turned, b, loss=loss, n_chunks=n_chunks, sampler="topk")
    assert sorted(order[greedy_turned.index].tolist()) == greedy.index.tolist()


@pytest.mark.parametrize("loss", LOSSES)
def test_blocks_of_columns_change_nothing(loss, monkeypatch):
    online, reference = pairs(5, 40), pairs(6, 40)
    whole = select_jointly(online, reference, 24, loss=loss, n_chunks=2, sampler="topk")
    monkeypatch.setattr("curate.scoring.joint.BLOCK", 3)
    blocks = select_jointly(online, reference, 24, loss=loss, n_chunks=2, sampler="topk")
    assert whole.index.tolist() == blocks.index.tolist()
    torch.testing.assert_close(whole.score, blocks.score)


def learnability_within(online, reference, chosen, loss):
    """Of the sub-batch as a batch of its own, the mean over its pairs."""
    total = 0.0
    for k in chosen:
        beside = [j for j in chosen if j != k]
        total += slow_losses(online, beside, loss)[k] - slow_losses(reference, beside, loss)[k]
    return total / len(chosen)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_jointly_chosen_batch_is_more_learnable_than_one_chosen_pair_by_pair(loss):
    generator = torch.Generator().manual_seed(0)
    joint, independent = [], []
    for seed in range(12):
        online, reference = pairs(10 + seed, 48, scale=8.0), pairs(100 + seed, 48, scale=8.0)
        choice = select_jointly(online, reference, 16, loss=loss, n_chunks=8, generator=generator)
        joint.append(learnability_within(online, reference, choice.index.tolist(), loss))
        alone = select(choice.score, 16, generator=generator)
        independent.append(learnability_within(online, reference, alone.tolist(), loss))
    assert np.mean(joint) > np.mean(independent)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("B", "b", "n_chunks"), [(32, 16, 16), (32, 7, 3), (10, 10, 1), (9, 1, 16)])
def test_flops_are_those_of_the_matrix_products(loss, B, b, n_chunks):
    online, reference = pairs(1, B, D=6), pairs(2, B, D=10)
    with FlopCounterMode(display=False) as counter:
        select_jointly(online, reference, b, loss=loss, n_chunks=n_chunks)
    assert counter.get_total_flops() == selection_flops(B, b, (6, 10), loss, n_chunks)


def test_memory_stays_off_the_square():
    """The largest tensor of one selection, counted as it is made, is a block of columns and never [B, B]."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple) else (out,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return out

    B = 4096
    online, reference = pairs(1, B), pairs(2, B)
    with Sizes():
        select_jointly(online, reference, B // 2, loss="softmax")
    assert largest == B * 1024


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None, None, 1), "nothing to score with"),
        ((pairs(0, 4), pairs(0, 5), 1), "4 and 5 pairs"),
        ((pairs(0, 4), None, 5), "b=5 of 4"),
        ((pairs(0, 4), None, 0), "b=0 of 4"),
    ],
)
def test_what_cannot_be_selected_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        select_jointly(*arguments, loss="sigmoid")
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"scale is {scale}"):
            select_jointly(pairs(0, 4), None, 2, loss="sigmoid", scale=scale)
    with pytest.raises(ValueError, match="n_chunks is 0"):
        select_jointly(pairs(0, 4), None, 2, loss="sigmoid", n_chunks=0)
