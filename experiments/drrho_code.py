"""DRRho-CLIP's public code as `beside_drrho_clip.py` calls it, and its loss beside `reweight` and the paper's formula.

Nothing of theirs is here: the src of a clone must be on sys.path.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from curate.scoring.losses import Pairs
from curate.scoring.selection import reweight

CPU = torch.device("cpu")
PUBLISHED: dict[str, Any] = {"rho": 11.0, "eps": 1e-4, "multiply_tau": True}
# Theirs where no command sets it, and how many pairs the check has.
DEFAULT_EPS, PAIRS, CHUNKS = 1e-14, 128, 2


@cache
def their_loss_class() -> Any:
    """Their loss, which keeps the difference of each pair, so that one can ask for its gradient: the pair's weight."""
    from fast_clip.loss import SogCLRLoss  # type: ignore[import-not-found]

    class Kept(SogCLRLoss):  # type: ignore[misc]
        def pairwise_loss(self, *given: Any, **named: Any) -> Any:
            self.pairs = super().pairwise_loss(*given, **named)
            return self.pairs

    return Kept


def their_loss(n: int, **settings: Any) -> Any:
    """For batches of n pairs. With gamma = 1, as published, nothing is kept from one batch to the next."""
    known = {**PUBLISHED, "gamma": 1.0, "gamma_decay_epochs": 1, **settings}
    return their_loss_class()(data_size=n, device=CPU, **known)


@contextmanager
def process_group() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def their_sample(online: Pairs, reference: Pairs, b: int) -> torch.Tensor:
    """The places of the `b` pairs that their sampler draws, ascending, by torch's own random numbers. Within `process_group`."""
    from training.train import jointly_sample_batch_softmax  # type: ignore[import-not-found]

    drawn: torch.Tensor = jointly_sample_batch_softmax(
        *([pairs.image_BD.float(), pairs.text_BD.float()] for pairs in (reference, online)),
        *({"t": pairs.scale} for pairs in (reference, online)),
        n_chunks=CHUNKS,
        filter_ratio=1 - b / len(online),
    )
    return drawn.sort().values


def check() -> dict[str, Any]:
    """Their loss beside `reweight` and beside the paper's risk in float64: the greatest difference between the weights of all
    pairs and between gradients, as a share of the greatest; and the mean sum of an anchor's weights, 1 for a softmax."""
    started, cases = time.perf_counter(), []
    for temperature in (0.01, 0.07):
        for eps in (DEFAULT_EPS, PUBLISHED["eps"]):
            for learned in (False, True):
                found = compared(temperature, eps, learned)
                cases.append({"temperature": temperature, "eps": eps, "learned": learned, **found})
    return {"cases": cases, "seconds": time.perf_counter() - started}


def compared(temperature: float, eps: float, learned: bool) -> dict[str, float]:
    """Embeddings are random; those of a `learned` batch have each image beside its text."""
    random, n = torch.Generator().manual_seed(0), PAIRS

    def embeddings() -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(n, 64, generator=random, dtype=torch.float64), dim=-1)

    image, text, image_r, text_r = (embeddings() for _ in range(4))
    if learned:
        image = torch.nn.functional.normalize(text + 0.3 * image, dim=-1)
    exact = image.clone().requires_grad_()
    risk(exact, text, image_r, text_r, temperature).backward()
    image_f = image.float().requires_grad_()
    loss = their_loss(n, eps=eps)
    features, reference = (image_f, text.float()), (image_r.float(), text_r.float())
    places, scale = torch.arange(n), torch.tensor(1 / temperature)
    value = loss(features, (places, places), scale, 0, ref_features=reference)[0]
    difference_nn = loss.pairs["diff_image"]
    (weight_nn,) = torch.autograd.grad(value, difference_nn, retain_graph=True)
    value.backward()
    others_nn = ~torch.eye(n, dtype=torch.bool)
    score_nn = (difference_nn.detach() * temperature)[others_nn].reshape(n, n - 1)
    ours_nn = torch.stack([reweight(row, temperature) for row in score_nn])
    # Their sum below the fraction is divided by n, the one above it by n - 1: all weights are n / (n - 1) of a softmax's.
    surplus = n / (n - 1)
    theirs_nn = weight_nn[others_nn].reshape(n, n - 1) * (n * (n - 1) / temperature / surplus)
    assert exact.grad is not None and image_f.grad is not None
    return {
        "weights": distance(theirs_nn, ours_nn),
        "gradient": distance(image_f.grad.double() / surplus, exact.grad),
        "total": float(theirs_nn.mean()),
    }


def risk(
    image: torch.Tensor, text: torch.Tensor, image_r: torch.Tensor, text_r: torch.Tensor, temperature: float
) -> torch.Tensor:
    """DRRho's (arXiv 2505.06699): T log mean exp((loss - loss(reference)) / T) over the pairs of each anchor, both ways; a pair's
    loss is its similarity less the anchor's own."""

    def of(z: torch.Tensor, z_r: torch.Tensor) -> torch.Tensor:
        n = len(z)
        excess_nn = (z - z.diagonal()[:, None]) - (z_r - z_r.diagonal()[:, None])
        others_nn = excess_nn[~torch.eye(n, dtype=torch.bool)].reshape(n, n - 1)
        each: torch.Tensor = temperature * ((others_nn / temperature).logsumexp(1) - math.log(n - 1))
        return each.mean()

    z, z_r = image @ text.T, image_r @ text_r.T
    return of(z, z_r) + of(z.T, z_r.T)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())
