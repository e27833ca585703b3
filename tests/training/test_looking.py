"""What decode processes make is what threads make, and lies where they wrote it."""

from itertools import islice

import numpy as np
import pytest
import torch
from curate.datasets import Geometry
from curate.datasets.spec import spec_from_table
from curate.training.superbatch import SuperBatches
from support.tars import read_tar, reshard, write_tar

# Without torch processes start quickly.
VIEWS = {"learner": Geometry(size=12, resampling="pillow"), "online": Geometry(size=8, resampling="pillow")}
SIZE, COUNT = 64, 20  # an epoch has 14 super-batches
BAD = {3, 100, 101, 102, 640}


@pytest.fixture(scope="module")
def damaged(digits, tmp_path_factory):
    """Digits in 12 shards, five of them bad."""
    folder = tmp_path_factory.mktemp("damaged")
    paths = reshard(sorted((digits.root / "data/digits/train").glob("*.tar")), folder, 12)
    number = 0
    for path in paths:
        members = []
        for name, content in read_tar(path):
            bad = name.endswith(".png") and number in BAD
            number += name.endswith(".png")
            members.append((name, b"no image" if bad else content))
        write_tar(path, members)
    return spec_from_table("damaged", {"train": f"{folder}/*.tar", "task": "classification", "classes": 10})


def drawn(batches, count, ahead=None):
    found, stream = [], batches.stream(lambda batch: batch, ahead)
    for i, batch in enumerate(islice(stream, count)):
        views = batch.views
        if ahead is not None:  # as of what a step chose
            batch = batch.take(torch.arange(i % 5, SIZE, 5))
            views = batch.views
        # All but a few are dropped at once, so that their memory is used again.
        found.append((batch.keys, {name: view.numpy().copy() for name, view in views.items()}))
    batches.close()
    return found


@pytest.mark.parametrize(
    ("ahead", "options"),
    [
        (None, {"host_bytes": 1, "cache_bytes": 0}),
        (["online"], {"cache_bytes": 0}),
        (["online"], {}),  # what was decoded stays
    ],
)
def test_super_batches_are_those_of_threads(damaged, ahead, options):
    common = {"views": VIEWS, "seed": 3, "lanes": 4, "max_failures": 0.1, **options}
    one, two = (SuperBatches(damaged, SIZE, decode_processes=n, **common) for n in (0, 1))
    expected, found = drawn(one, COUNT, ahead), drawn(two, COUNT, ahead)
    for (keys, views), (found_keys, found_views) in zip(expected, found, strict=True):
        assert found_keys == keys
        for name in views:
            assert np.array_equal(found_views[name], views[name]), name
    assert one.counts == two.counts and two.counts["failures"] == len(BAD)
    # No more memory is shared than super-batches are in hand: two that wait, one in the making, those in use, and views
    # made late.
    image = 3 * (12 * 12 + 8 * 8)
    assert 0 < two._looker.shared <= 7 * SIZE * image


def test_pixels_stay_where_processes_wrote_them(damaged):
    """Also those of a super-batch of which bad examples were replaced. What stays in memory shares it with nothing else."""
    one = {"learner": VIEWS["learner"]}
    batches = SuperBatches(
        damaged, SIZE, views=one, lanes=4, seed=3, max_failures=0.1, cache_bytes=0, decode_processes=1
    )
    copied = [batches._looker.own_bytes(batch.views.values()) > 0 for batch in islice(batches, 16)]
    batches.close()
    assert batches.counts["failures"] == len(BAD)
    assert not any(copied[:13])  # where an epoch ends, lanes begin anew in the middle of a super-batch
    for batch in islice(batches.stream(lambda batch: batch, []), 2):
        chosen = batch.take(torch.arange(10))
        assert batches._looker.own_bytes(chosen.views.values()) == 0
    batches.close()
    kept = SuperBatches(damaged, SIZE, views=one, lanes=4, max_failures=0.1, decode_processes=1)
    batch = next(iter(kept))
    kept.close()
    assert kept._looker.own_bytes(batch.views.values()) == SIZE * 3 * 12 * 12
