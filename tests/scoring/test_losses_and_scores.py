import math

import numpy as np
import pytest
import torch
from curate.errors import SpecError
from curate.scoring import Losses, easy_reference, find_policy, hard_learner, learnability, losses
from hypothesis import given, settings
from hypothesis import strategies as st


@given(st.integers(1, 20), st.integers(2, 12), st.integers(0, 2**31))
@settings(deadline=None)
def test_cross_entropy_equals_float64(B, C, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 5, (B, C)), rng.integers(0, C, B)
    expected = [math.log(sum(math.exp(x - row[y]) for x in row)) for row, y in zip(logits, labels, strict=True)]
    got = losses.cross_entropy(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=2e-6)


def test_cross_entropy_of_bf16_logits_is_computed_in_float32():
    logits = torch.randn(8, 10).bfloat16()
    got = losses.cross_entropy(logits, torch.arange(8))
    assert got.dtype == torch.float32
    assert torch.equal(got, losses.cross_entropy(logits.float(), torch.arange(8)))


def test_negative_dot_product_is_of_each_pair_alone():
    image = torch.nn.functional.normalize(torch.randn(6, 16), dim=-1)
    text = torch.nn.functional.normalize(torch.randn(6, 16), dim=-1)
    expected = [-float(np.dot(i.double().numpy(), t.double().numpy())) for i, t in zip(image, text, strict=True)]
    np.testing.assert_allclose(losses.negative_dot_product(image, text).numpy(), expected, atol=1e-6)
    alone = torch.cat([losses.negative_dot_product(image[i : i + 1], text[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(losses.negative_dot_product(image, text), alone)


def test_scores_by_policy():
    online, reference = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])
    assert hard_learner(online).tolist() == [3.0, 1.0]
    assert easy_reference(reference).tolist() == [-1.0, -2.0]
    assert learnability(online, reference).tolist() == [2.0, -1.0]
    known = Losses(online, reference)
    assert find_policy("rho").score(known).tolist() == [2.0, -1.0]
    assert find_policy("hard-learner").score(known).tolist() == [3.0, 1.0]
    assert find_policy("small-loss").score(known).tolist() == [-3.0, -1.0]
    assert find_policy("easy-reference").score(known).tolist() == [-1.0, -2.0]


@pytest.mark.parametrize(
    ("policy", "given", "missing"),
    [("learnability", "online_B", "reference_loss"), ("hard-learner", "reference_B", "online_loss")],
)
def test_a_score_without_its_losses_is_refused(policy, given, missing):
    with pytest.raises(SpecError, match=missing):
        find_policy(policy).score(Losses(**{given: torch.ones(2)}))


@pytest.mark.parametrize("q", [1e-4, 0.7, 1.0])
def test_generalised_cross_entropy_is_that_of_the_formula_and_lies_between_two_others(q):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 5, generator=generator, requires_grad=True), torch.arange(6) % 5
    p = logits.softmax(-1)[torch.arange(6), labels]
    found = losses.generalised_cross_entropy(logits, labels, q, "none")
    if q >= 0.5:
        torch.testing.assert_close(found, (1 - p**q) / q)
    else:
        torch.testing.assert_close(found, losses.cross_entropy(logits, labels), rtol=1e-3, atol=1e-3)
    assert float(losses.generalised_cross_entropy(logits, labels, q)) == pytest.approx(float(found.mean()))
    (own,) = torch.autograd.grad(found.sum(), logits, retain_graph=True)
    (plain,) = torch.autograd.grad(losses.cross_entropy(logits, labels).sum(), logits)
    torch.testing.assert_close(own, plain * (p**q)[:, None].detach())
