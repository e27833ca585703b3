"""The arithmetic of experiments/mixtures.py, against slow and obvious computations."""

import importlib
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.fixture
def mixtures(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("mixtures")


def test_sources_are_large_sets_all_emoji_and_large_categories(mixtures):
    sets = [("big", "Logos")] * 4000 + [("small", "Logos")] * 1000 + [("tiny", "Maps")] * 999
    sets += [("noto-v1", "Emoji")] * 2 + [("fluent-emoji", "")] + [("nameless", "")] * 1500
    assert Counter(mixtures.grouped(sets)) == {"big": 4000, "Logos": 1000, "emoji": 3, "other icons": 2499}


def test_counts_follow_weights_and_add_up(mixtures):
    assert mixtures.apportion(np.array([0.5, 0.3, 0.2]), 4).tolist() == [2, 1, 1]
    assert mixtures.apportion(np.array([1.0, 1.0, 1.0]), 128).sum() == 128


def test_a_mixture_draws_whole_passes_within_each_source(mixtures):
    found = mixtures.drawn([3, 100], np.array([0.8, 0.2]), 10, np.random.default_rng(0))
    assert Counter(source for source, _, _ in found) == {0: 8, 1: 2}
    assert sorted(Counter(row for source, row, _ in found if source == 0).values()) == [2, 3, 3]
    assert len(set(found)) == len(found)


def test_within_a_source_the_better_are_chosen_and_the_proportions_kept(mixtures):
    score = torch.tensor([0.0, 50, 0, 50, 0, 100, 100, 0])
    source = np.array([0, 0, 0, 0, 1, 2, 2, 1])
    chosen = mixtures.within_sources(score, source, 4, torch.Generator().manual_seed(0))
    assert chosen.tolist()[:4] == [False, True, False, True]
    assert np.bincount(source[chosen]).tolist() == [2, 1, 1]


def test_doremi_raises_the_weights_of_sources_with_excess_loss(mixtures):
    weights, excess = [0.5, 0.3, 0.2], [0.0, 1.0, 2.0]
    raised = [w * math.exp(x) for w, x in zip(weights, excess, strict=True)]
    expected = [0.999 * w / sum(raised) + 0.001 / 3 for w in raised]
    assert mixtures.reweighted(np.array(weights), np.array(excess)).tolist() == pytest.approx(expected)


def test_regmix_finds_the_source_that_lowers_the_loss(mixtures):
    rng, prior = np.random.default_rng(0), np.array([0.6, 0.3, 0.08, 0.02])
    tried = mixtures.random_mixtures(prior, 24, rng)
    assert tried.sum(1) == pytest.approx(np.ones(24)) and (tried <= 15 * prior).all() and tried.max() > 0.9
    losses = 5 - tried @ np.array([0.0, 0.1, 0.9, 0.0]) + rng.normal(0, 0.02, 24)
    best = mixtures.best_mixture(tried, losses, prior, rng)
    assert best.argmax() == 2 and best[2] > 0.9 and best.sum() == pytest.approx(1)


class TwoTowers(torch.nn.Module):
    """Embeds colours and the first token; as much of a CLIP as a proxy needs."""

    def __init__(self):
        super().__init__()
        self.image, self.text = torch.nn.Linear(3, 4), torch.nn.Embedding(8, 4)
        self.logit_scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, images, tokens):
        towers = (self.image(images.mean((2, 3))), self.text(tokens[:, 0]))
        return *(torch.nn.functional.normalize(x, dim=-1) for x in towers), self.logit_scale.exp()


def make(seed):
    torch.manual_seed(seed)

    class Model:
        module = TwoTowers()

        def normalize(self, pixels):
            return pixels.float().permute(0, 3, 1, 2) / 255

    return Model()


def pairs(mixtures):
    """Colour and caption agree in source 0 and 1; in source 2 captions are random."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 8, 300)
    source = np.repeat([0, 1, 2], 100)
    captions = np.where(source == 2, rng.integers(0, 8, 300), colours)
    pixels = np.stack([colours & 1, colours >> 1 & 1, colours >> 2], -1)[:, None, None] * np.full((1, 2, 2, 1), 255)
    tokens = torch.from_numpy(np.stack([captions, np.arange(300)], -1))  # no two captions are identical
    return mixtures.Pairs(torch.from_numpy(pixels.astype(np.uint8)), tokens, source)


def test_the_loss_of_pairs_is_the_parts_of_the_contrastive_loss(mixtures):
    from curate.scoring.contrastive import contrastive_loss

    found, model, rows = pairs(mixtures), make(0), np.arange(0, 300, 10)
    output = model.module(model.normalize(found.pixels[rows]), found.tokens[rows])
    whole = contrastive_loss(model)(output, found.tokens[rows])
    assert mixtures.pair_losses(model, found, rows).mean().item() == pytest.approx(whole.item(), rel=1e-5)


def test_proxies_learn_from_what_they_draw(mixtures, monkeypatch):
    monkeypatch.setattr(mixtures, "PROXY_LR", 0.05)
    found, rows = pairs(mixtures), np.arange(100)
    noisy, clean = (
        mixtures.trained_proxy(make, found, np.array(weights), 30, seed=0)
        for weights in ([0.0, 0.0, 1.0], [1.0, 0.0, 0.0])
    )
    with torch.no_grad():
        assert mixtures.pair_losses(clean, found, rows).mean() < mixtures.pair_losses(noisy, found, rows).mean() - 0.3


def test_doremi_returns_the_mean_weights_of_all_steps(mixtures, monkeypatch):
    monkeypatch.setattr(mixtures, "DOREMI_STEPS", 3)
    monkeypatch.setattr(mixtures, "proxy_flops", lambda model: (1000.0, 2.0))
    seen = []
    update = mixtures.reweighted
    monkeypatch.setattr(mixtures, "reweighted", lambda *given: seen.append(update(*given)) or seen[-1])
    weights, flops = mixtures.doremi(make, pairs(mixtures))
    assert len(seen) == 3 and weights == pytest.approx(np.mean(seen, axis=0))
    assert flops == 3 * (2 * 1000 + 128 * 2)


def test_regmix_resumes_after_the_last_proxy(mixtures, monkeypatch, tmp_path):
    monkeypatch.setattr(mixtures, "PROXIES", 3)
    monkeypatch.setattr(mixtures, "PROXY_STEPS", 2)
    monkeypatch.setattr(mixtures, "VALIDATED", 256)
    monkeypatch.setattr(mixtures, "proxy_flops", lambda model: (1000.0, 2.0))
    train, trained = mixtures.trained_proxy, []

    def interrupted(*given, seed):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(seed)
        return train(*given, seed=seed)

    found = pairs(mixtures)
    whole = mixtures.regmix(make, found, found, tmp_path / "whole.jsonl")
    monkeypatch.setattr(mixtures, "trained_proxy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mixtures.regmix(make, found, found, tmp_path / "stopped.jsonl")
    assert trained.pop() == 1
    resumed = mixtures.regmix(make, found, found, tmp_path / "stopped.jsonl")
    assert trained == [0, 2]
    assert resumed[0].tolist() == whole[0].tolist() and resumed[1] == whole[1] == 3 * (2 * 1000 + 256 * 2)
    assert (tmp_path / "stopped.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
