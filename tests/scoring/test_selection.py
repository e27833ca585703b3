"""Selection against slow, obvious second ways of computing, and its laws."""

from itertools import permutations

import numpy as np
import pytest
import torch
from curate.errors import SpecError
from curate.scoring import Selector, select, sub_batch_size, super_batch_size
from curate.scoring.selection import prune
from hypothesis import given, settings
from hypothesis import strategies as st

finite = st.floats(-50, 50, allow_nan=False, width=32)


def exact_inclusion(scores: list[float], b: int) -> np.ndarray:
    """Inclusion probabilities of b draws without replacement, by summing over every ordered draw, in float64."""
    weights = np.exp(np.array(scores, dtype=np.float64) - max(scores))
    inclusion = np.zeros(len(scores))
    for draw in permutations(range(len(scores)), b):
        probability, left = 1.0, weights.sum()
        for i in draw:
            probability *= weights[i] / left
            left -= weights[i]
        inclusion[list(draw)] += probability
    return inclusion


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize(("scores", "b"), [([0.0, 1.0, 2.0, -1.0], 2), ([3.0, 0.0, 0.0, 0.0, 0.5], 3), ([1.0, 0.0], 1)])
def test_softmax_draws_with_the_exact_inclusion_frequencies(scores, b, temperature):
    draws = 8_000
    generator = torch.Generator().manual_seed(0)
    counts = np.zeros(len(scores))
    for _ in range(draws):
        counts[select(torch.tensor(scores), b, temperature=temperature, generator=generator).numpy()] += 1
    expected = exact_inclusion([s / temperature for s in scores], b)
    # Five standard deviations of a binomial share.
    assert np.all(np.abs(counts / draws - expected) < 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-9)


def test_exact_inclusion_itself_sums_to_b_and_is_uniform_for_equal_scores():
    np.testing.assert_allclose(exact_inclusion([0.3, 0.3, 0.3, 0.3, 0.3], 2), 0.4)
    assert exact_inclusion([0.0, 1.0, 5.0], 2).sum() == pytest.approx(2)


@given(st.lists(finite, min_size=1, max_size=60), st.data())
@settings(deadline=None)
def test_topk_equals_a_stable_sort_in_float64(scores, data):
    b = data.draw(st.integers(1, len(scores)))
    order = sorted(range(len(scores)), key=lambda i: (-float(np.float32(scores[i])), i))
    assert select(torch.tensor(scores), b, sampler="topk").tolist() == sorted(order[:b])


@given(
    st.lists(finite, min_size=1, max_size=60), st.integers(0, 2**31), st.sampled_from(["softmax", "topk"]), st.data()
)
@settings(deadline=None)
def test_chooses_exactly_b_and_none_twice(scores, seed, sampler, data):
    b = data.draw(st.integers(1, len(scores)))
    chosen = select(torch.tensor(scores), b, sampler=sampler, generator=torch.Generator().manual_seed(seed)).tolist()
    assert len(chosen) == b == len(set(chosen))
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(range(len(scores)))


@given(st.lists(finite, min_size=2, max_size=30), st.floats(-20, 20), st.integers(0, 2**31))
@settings(deadline=None)
def test_softmax_does_not_see_a_constant_added_to_all_scores(scores, constant, seed):
    scores = torch.tensor(scores, dtype=torch.float64)
    first = select(scores, len(scores) // 2, generator=torch.Generator().manual_seed(seed))
    second = select(scores + constant, len(scores) // 2, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(first, second)


def test_same_seed_same_choice_and_other_seed_another():
    scores = torch.linspace(0, 1, 500)
    draw = [select(scores, 100, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def test_a_lower_temperature_chooses_higher_scores():
    scores = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    means = [
        scores[select(scores, 400, temperature=t, generator=torch.Generator().manual_seed(1))].mean()
        for t in (10, 1, 0.1)
    ]
    top = scores[select(scores, 400, sampler="topk")].mean()
    assert means[0] < means[1] < means[2] <= top


@pytest.mark.parametrize(
    ("scores", "b", "options", "message"),
    [
        ([1.0, 2.0], 3, {}, "b=3"),
        ([1.0, 2.0], 0, {}, "b=0"),
        ([1.0, float("nan")], 1, {}, "score 1 is nan"),
        ([float("-inf"), 1.0], 1, {}, "score 0 is -inf"),
        *(([1.0, 2.0], 1, {"temperature": t}, f"temperature is {t}") for t in (0.0, -1.0, float("nan"), float("inf"))),
        ([1.0, 2.0], 1, {"sampler": "best"}, "sampler is 'best'"),
    ],
)
def test_refuses(scores, b, options, message):
    with pytest.raises(ValueError, match=message):
        select(torch.tensor(scores), b, **options)


@pytest.mark.parametrize(("b", "f", "B"), [(128, 0.5, 256), (128, 0.8, 640), (100, 0.9, 1000), (64, 0.0, 64)])
def test_filter_ratio_is_the_share_dropped(b, f, B):
    assert super_batch_size(b, f) == B
    assert sub_batch_size(B, f) == b


@pytest.mark.parametrize("f", [-0.1, 1.0, 1.5])
def test_filter_ratio_outside_its_range_is_refused(f):
    with pytest.raises(ValueError, match="share dropped"):
        super_batch_size(10, f)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("setting", ["scale", "temperature"])
def test_a_selector_refuses_scales_and_temperatures_that_choose_nothing(setting, bad):
    with pytest.raises(SpecError, match=f"{setting} is {bad}"):
        Selector("hard-learner", 1, **{setting: bad})


def test_pruning_gives_every_example_the_same_expected_weight_and_exactly_b():
    """InfoBatch: 1 where nothing else is dropped, and the share that is drawn where more is to go."""
    scores = torch.tensor([-3.0, -2.0, -1.0, -0.5, -0.1, -4.0, 0.0, 1.0, 2.0, 5.0])
    for b, rate, wanted in ((8, 0.5, 1.0), (7, 0.5, 1.0), (5, 0.5, 5 / 7), (9, 0.1, 9 / 10)):
        generator = torch.Generator().manual_seed(0)
        total, draws = torch.zeros(10), 1500
        for _ in range(draws):
            index, weight = prune(scores, b, rate=rate, generator=generator)
            assert index.tolist() == sorted({*index.tolist()})
            assert len(index) == b
            assert (weight[6:] == 1).all()
            total[index] += weight[index]
        dropped = min(10 - b, int(rate * 6))
        assert weight[:6].unique().tolist() == [pytest.approx(6 / (6 - dropped))]
        # Five standard deviations of a mean of 0s and weights.
        assert (total / draws - wanted).abs().max() < 5 * float(weight.max()) / np.sqrt(draws)


def test_pruning_drops_only_what_is_below_the_mean_as_long_as_that_is_enough():
    scores = torch.tensor([1.0, -1.0, 2.0, -1.0, -1.0, -1.0, 3.0, 0.0])
    index, _ = prune(scores, 6, generator=torch.Generator().manual_seed(1))
    assert {0, 2, 6, 7} <= {*index.tolist()}
    index, weight = prune(torch.zeros(8), 3)
    assert (len(index), weight.unique().tolist()) == (3, [1.0])
    for bad in (dict(b=9), dict(b=3, rate=1.0)):
        with pytest.raises(ValueError, match="cannot choose"):
            prune(scores, **bad)
    with pytest.raises(ValueError, match="nan"):
        prune(torch.tensor([1.0, float("nan")]), 1)


def test_reweighting_drops_nothing_and_weighs_by_the_softmax():
    online, reference = torch.tensor([1.0, 3.0, 0.5]), torch.tensor([1.0, 0.5, 2.0])
    found = Selector("learnability", 3, sampler="reweight", temperature=2.0)(
        online_loss=online, reference_loss=reference
    )
    score = [(a - b) / 2 for a, b in zip(online.tolist(), reference.tolist(), strict=True)]
    total = sum(np.exp(s) for s in score)
    assert found.index.tolist() == [0, 1, 2]
    assert found.weight.tolist() == pytest.approx([3 * np.exp(s) / total for s in score])
    with pytest.raises(SpecError, match="drops nothing"):
        Selector("hard-learner", 2, sampler="reweight")(online_loss=online)
    with pytest.raises(SpecError, match="no example by itself"):
        Selector("jest", 2, sampler="reweight")
    assert Selector("uniform", 2, sampler="reweight")(online_loss=online).weight is None


def test_reweighting_is_the_gradient_of_drrhos_risk():
    """DRRho (arXiv 2505.06699): T log mean exp((loss - loss(reference)) / T)."""
    generator = torch.Generator().manual_seed(0)
    loss = (3 * torch.rand(7, dtype=torch.float64, generator=generator)).requires_grad_()
    reference = 2 * torch.rand(7, dtype=torch.float64, generator=generator)
    for temperature in (0.1, 1.0, 4.0):
        risk = temperature * ((loss - reference) / temperature).exp().mean().log()
        (expected,) = torch.autograd.grad(risk, loss)
        selector = Selector("rho", 7, sampler="reweight", temperature=temperature)
        weight = selector(online_loss=loss.detach(), reference_loss=reference).weight
        np.testing.assert_allclose(weight.numpy() / 7, expected.numpy(), rtol=1e-6)


def test_rho_loss_takes_the_tenth_with_the_highest_reducible_loss():
    """Algorithm 1 of arXiv 2206.07137."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        loss, irreducible = rng.exponential(2, 320), rng.exponential(1, 320)
        expected = {*np.argsort(loss - irreducible)[-32:].tolist()}
        selector = Selector("rho", 32, sampler="topk")
        chosen = selector(online_loss=torch.tensor(loss), reference_loss=torch.tensor(irreducible)).index
        assert {*chosen.tolist()} == expected
