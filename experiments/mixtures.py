"""Mixtures of sources: what an example's source is, mixtures written and drawn, DoReMi and RegMix in small.

DoReMi (arXiv 2305.10429): a reference is trained on all sources equally often; a proxy is trained by Group DRO, its weights
raised by the exponential of each source's mean loss above the reference's, clipped at 0 for each example, and smoothed; the
weights' mean over the steps is the mixture. RegMix (arXiv 2407.01492): proxies on random mixtures, a regression from mixture to
validation loss, and the mean of the best predicted of many random mixtures. Rates and constants are theirs, but where a comment
says otherwise. A pair's loss is its part of the contrastive loss of its batch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from curate.datasets.preparers.icons import NAME_ONLY_EMOJI
from curate.scoring.flops import forward_flops, train_flops
from curate.scoring.forward import embeddings_of
from curate.scoring.losses import identical_captions
from curate.scoring.models import Model
from curate.scoring.selection import select
from curate.training.schedule import learning_rate
from curate.training.trainee import make_optimizer

ALONE, LEAST, EMOJI, OTHER = 4000, 1000, "emoji", "other icons"
BATCH, PROXY_LR, WEIGHT_DECAY, MAX_LOGIT_SCALE = 128, 2e-3, 0.05, 4.6052
# The steps, of the reference and of the proxy each, are ours and very few; the smoothing in the authors' public code is 1e-4.
DOREMI_STEPS, DOREMI_RATE, DOREMI_SMOOTHING = 200, 1.0, 1e-3
# The number of proxies (theirs: 512) and their steps are ours, and ridge regression is in place of LightGBM.
PROXIES, PROXY_STEPS, VALIDATED = 16, 100, 1024
PRIOR_POWER, STRENGTHS, MOST, SIMULATED, BEST = 0.5, (0.1, 5.0), 15.0, 100_000, 100

Weights = np.ndarray  # float64 [K], of the sources; they add up to 1
Make = Callable[[int], Model]


@dataclass(frozen=True)
class Pairs:
    """Examples in memory: pixels uint8 [N, H, W, 3], tokens int64 [N, L], the number of each one's source [N]."""

    pixels: torch.Tensor
    tokens: torch.Tensor
    source: np.ndarray


def grouped(sets: Sequence[tuple[str, str]]) -> list[str]:
    """The source of each example, of its icon set and the set's category."""
    alone = {name for name, size in Counter(name for name, _ in sets).items() if size >= ALONE}
    left = Counter(category for name, category in sets if name not in alone and name not in NAME_ONLY_EMOJI)

    def source(name: str, category: str) -> str:
        if name in NAME_ONLY_EMOJI:
            return EMOJI
        return name if name in alone else category if category and left[category] >= LEAST else OTHER

    return [source(*one) for one in sets]


def apportion(weights: Weights, total: int) -> np.ndarray:
    """How many of `total` each weight is given: its part rounded down, what is left to the largest remainders."""
    exact = np.asarray(weights, dtype=float) / np.sum(weights) * total
    counts: np.ndarray = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts


def drawn(sizes: Sequence[int], weights: Weights, total: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """`total` times (source, example of it, which copy), at random within each source, in whole passes; shuffled."""
    found = []
    for source, (size, count) in enumerate(zip(sizes, apportion(weights, total), strict=True)):
        order = rng.permutation(size)
        found += [(source, int(order[i % size]), i // size) for i in range(count)]
    return [found[i] for i in rng.permutation(len(found))]


def word_scores(captions: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Moore and Lewis's score (2010) of each caption, float64 [N]: how much likelier its words are among the wanted captions than
    among all, in nats a word, by counts of single words with one added to each. High is wanted."""
    words, wanted_words = ([text.lower().split() for text in texts] for texts in (captions, wanted))
    counts, wanted_counts = (Counter(word for text in texts for word in text) for texts in (words, wanted_words))
    known = counts.keys() | wanted_counts.keys()
    least = np.log((wanted_counts.total() + len(known)) / (counts.total() + len(known)))
    score = {word: np.log((wanted_counts[word] + 1) / (counts[word] + 1)) - least for word in known}
    return np.array([sum(score[word] for word in text) / max(1, len(text)) for text in words])


def within_sources(score_B: torch.Tensor, source_B: np.ndarray, b: int, generator: torch.Generator) -> np.ndarray:
    """Which b are chosen, bool [B]: of each source as many as its part of the B, drawn within it as by softmax(score)."""
    chosen = np.zeros(len(source_B), dtype=bool)
    for source, count in enumerate(apportion(np.bincount(source_B), b)):
        rows = np.flatnonzero(source_B == source)
        if count:
            chosen[rows[select(score_B[rows], int(count), generator=generator).numpy()]] = True
    return chosen


def reweighted(weights: Weights, excess: np.ndarray) -> Weights:
    """DoReMi's update: an exponentiated gradient step on the sources' mean clipped excess losses, then smoothing."""
    raised = weights * np.exp(DOREMI_RATE * (excess - excess.max()))
    smoothed: Weights = (1 - DOREMI_SMOOTHING) * raised / raised.sum() + DOREMI_SMOOTHING / len(weights)
    return smoothed


def random_mixtures(prior: Weights, count: int, rng: np.random.Generator) -> np.ndarray:
    """RegMix's mixtures [count, K]: Dirichlet around the prior's square root, of a random strength; no source above so many
    times its part of the bulk."""
    centre = prior**PRIOR_POWER / (prior**PRIOR_POWER).sum()
    found: list[np.ndarray] = []
    while len(found) < count:
        strength = np.exp(rng.uniform(np.log(STRENGTHS[0]), np.log(STRENGTHS[1]), size=count))
        gamma = rng.gamma(strength[:, None] * centre) + 1e-12
        mixtures = gamma / gamma.sum(1, keepdims=True)
        found += [*mixtures[(mixtures <= MOST * prior).all(1)]]
    return np.stack(found[:count])


def best_mixture(mixtures: np.ndarray, losses: np.ndarray, prior: Weights, rng: np.random.Generator) -> Weights:
    """RegMix's answer: a regression from mixture to loss, and the mean of the best predicted of many random mixtures."""
    from sklearn.linear_model import RidgeCV

    fitted = RidgeCV(np.logspace(-4, 1, 11)).fit(mixtures, losses)
    tried = random_mixtures(prior, SIMULATED, rng)
    mean: Weights = tried[np.argsort(fitted.predict(tried))[:BEST]].mean(0)
    return mean


def pair_losses(model: Model, pairs: Pairs, rows: np.ndarray) -> torch.Tensor:
    """The softmax contrastive loss of each pair among these, both ways; identical captions are no negatives."""
    tokens = pairs.tokens[rows]
    output = model.module(model.normalize(pairs.pixels[rows]), tokens)
    image_bD, text_bD = embeddings_of(output)
    scale = output["logit_scale"] if isinstance(output, dict) else output[2]
    z_bb = (scale * image_bD @ text_bD.T).masked_fill(identical_captions(tokens), -torch.inf)
    own = torch.arange(len(rows))
    loss = partial(torch.nn.functional.cross_entropy, reduction="none")
    return (loss(z_bb, own) + loss(z_bb.T, own)) / 2


def trained_proxy(
    make: Make,
    pairs: Pairs,
    weights: Weights,
    steps: int,
    seed: int,
    weigh: Callable[[torch.Tensor, np.ndarray], torch.Tensor] | None = None,
) -> Model:
    """A small model trained on batches drawn in these proportions of the sources. `weigh` gives each pair's weight in the
    loss, of the losses and the rows."""
    model, rng = make(seed), np.random.default_rng(seed)
    by_source = [np.flatnonzero(pairs.source == number) for number in range(len(weights))]
    optimizer = make_optimizer(model, name="adamw", lr=PROXY_LR, weight_decay=WEIGHT_DECAY)
    logit_scale = model.module.get_parameter("logit_scale")
    model.module.train()
    for step in range(steps):
        sources = rng.choice(len(weights), BATCH, p=weights)
        rows = np.array([rng.choice(by_source[source]) for source in sources])
        losses = pair_losses(model, pairs, rows)
        weight = torch.ones(BATCH) if weigh is None else weigh(losses.detach(), rows)
        ((weight * losses).sum() / weight.sum()).backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, PROXY_LR, steps // 20)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            logit_scale.clamp_(0, MAX_LOGIT_SCALE)
    model.module.eval()
    return model


def proxy_flops(model: Model) -> tuple[float, float]:
    """FLOPs of (a training step of a proxy, a forward pass of one example)."""
    return float(train_flops(model, model.task.training_loss(model), BATCH).total), forward_flops(model).per_example


def doremi(make: Make, pairs: Pairs) -> tuple[Weights, float]:
    """(Weights, FLOPs): the mean weights over the steps of a proxy that is trained by Group DRO, as DoReMi does it, against a
    reference; both see all sources equally often. `make` gives a new model of a seed."""
    K = int(pairs.source.max()) + 1
    even = np.full(K, 1 / K)
    reference = trained_proxy(make, pairs, even, DOREMI_STEPS, seed=0)
    weights, excess, seen = even, np.zeros(K), []

    def weigh(losses: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        nonlocal weights
        with torch.no_grad():
            above = (losses - pair_losses(reference, pairs, rows)).clamp(min=0).numpy()
        source = pairs.source[rows]
        for number in np.unique(source):  # a source that is not in the batch keeps what it had
            excess[number] = above[source == number].mean()
        weights = reweighted(weights, excess)
        seen.append(weights)
        return torch.from_numpy(weights[source]).float()

    trained_proxy(make, pairs, even, DOREMI_STEPS, seed=1, weigh=weigh)
    step, forward = proxy_flops(reference)
    return np.mean(seen, axis=0), DOREMI_STEPS * (2 * step + BATCH * forward)


def regmix(make: Make, pairs: Pairs, validation: Pairs, finished: Path) -> tuple[Weights, float]:
    """(Weights, FLOPs): the best predicted mixture, by the validation losses of proxies on random mixtures. `finished` gets a
    JSON line for each proxy that was trained; those that it has are not trained again."""
    prior, rng = np.bincount(pairs.source) / len(pairs.source), np.random.default_rng(0)
    mixtures = random_mixtures(prior, PROXIES, rng)
    rows = rng.permutation(len(validation.source))[:VALIDATED].reshape(-1, BATCH)
    lines = finished.read_text().splitlines() if finished.exists() else []
    loss_of = {tuple(line["mixture"]): line["loss"] for line in map(json.loads, lines)}
    for number, mixture in enumerate(mixtures):
        if tuple(mixture) in loss_of:
            continue
        model = trained_proxy(make, pairs, mixture, PROXY_STEPS, seed=number)
        with torch.no_grad():
            loss = float(torch.cat([pair_losses(model, validation, batch) for batch in rows]).mean())
        loss_of[tuple(mixture)] = loss
        with finished.open("a") as file:
            file.write(json.dumps({"mixture": mixture.tolist(), "loss": loss}) + "\n")
        print(f"RegMix, proxy {number + 1} of {PROXIES}: validation loss {loss:.4f}", flush=True)
    losses = np.array([loss_of[tuple(mixture)] for mixture in mixtures])
    step, forward = proxy_flops(make(0))
    return best_mixture(mixtures, losses, prior, rng), PROXIES * (PROXY_STEPS * step + VALIDATED * forward)
