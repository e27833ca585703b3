from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from curate.datasets import Geometry, list_shards
from curate.errors import SpecError
from curate.scoring import open_scores
from curate.training.superbatch import SuperBatches

GEOMETRY = Geometry(size=8)


def loader(digits, size=64, **options):
    spec = digits.dataset()
    return SuperBatches(spec, list_shards(spec), size, [GEOMETRY], **options)


def names(batches):
    return [list(zip(b.shards, b.keys, strict=True)) for b in batches]


@pytest.mark.parametrize("options", [{}, {"shuffle_bytes": 1, "cache_bytes": 0}, {"shuffle_bytes": 300_000}])
def test_an_epoch_visits_every_example_at_most_once_and_drops_less_than_one_batch(digits, options):
    batches = list(islice(loader(digits, **options).stream(), 900 // 64))
    seen = Counter(name for batch in names(batches) for name in batch)
    assert max(seen.values()) == 1
    assert len(seen) == 900 // 64 * 64
    assert {b.position.epoch for b in batches} == {0}


def test_every_example_is_drawn_equally_often(digits):
    epochs = 60
    counts = Counter(name for batch in names(islice(loader(digits, 90).stream(), 10 * epochs)) for name in batch)
    assert len(counts) == 900
    assert set(counts.values()) == {epochs}
    # And in the first batch of an epoch, as often as chance has it: binomial(60, 1/10) never comes to 25.
    first = Counter(
        n for i, b in enumerate(names(islice(loader(digits, 90).stream(), 10 * epochs))) if i % 10 == 0 for n in b
    )
    assert max(first.values()) < 25


@pytest.mark.parametrize("options", [{}, {"shuffle_bytes": 1, "cache_bytes": 0}])
def test_order_depends_on_the_seed_alone(digits, options):
    first, second, other = (names(islice(loader(digits, seed=s, **options).stream(), 20)) for s in (3, 3, 4))
    assert first == second != other
    assert names(islice(loader(digits, seed=3, shuffle_bytes=1).stream(), 20)) == names(
        islice(loader(digits, seed=3, shuffle_bytes=1, cache_bytes=0).stream(), 20)
    )


@pytest.mark.parametrize("options", [{}, {"shuffle_bytes": 1, "cache_bytes": 0}])
@pytest.mark.parametrize("stop", [1, 5, 13, 14, 27])
def test_the_stream_goes_on_from_any_position(digits, options, stop):
    whole = list(islice(loader(digits, 100, **options).stream(), 30))
    position = type(whole[0].position).from_dict(whole[stop - 1].position.to_dict())
    rest = list(islice(loader(digits, 100, **options).stream(position), 30 - stop))
    assert names(rest) == names(whole[stop:])
    assert all((a.pixels[GEOMETRY] == b.pixels[GEOMETRY]).all() for a, b in zip(rest, whole[stop:], strict=True))


def test_reference_losses_are_those_of_the_table(digits):
    table = open_scores(digits.scores)
    stored = {(r["shard"], r["key"]): r["loss"] for r in table.read(["shard", "key", "loss"]).to_pylist()}
    for batch in islice(loader(digits, scores=table).stream(), 5):
        expected = [stored[name] for name in zip(batch.shards, batch.keys, strict=True)]
        np.testing.assert_array_equal(batch.reference_loss.numpy(), np.array(expected, dtype=np.float32))


def test_a_super_batch_larger_than_the_data_set_is_refused(digits):
    with pytest.raises(SpecError, match=r"900 usable examples, a super-batch needs 1,000"):
        next(loader(digits, 1000).stream())
