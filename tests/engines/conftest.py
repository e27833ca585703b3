"""Engines that are up, and shards to score on them with the table that the default local runner made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from curate.datasets.spec import add_dataset
from engines.support import BAD_PICTURES, ENGINES, SHARDS, Engine, Work
from support.tars import read_tar, replace_member, reshard


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, tmp_path_factory) -> Iterator[Engine]:
    with ExitStack() as stack:
        yield Engine(request.param, ENGINES[request.param](stack, tmp_path_factory.mktemp("engine")))


@pytest.fixture(scope="module")
def digit_shards(digits, tmp_path_factory) -> Work:
    """900 digits in many shards, three of them with a bad picture."""
    folder = tmp_path_factory.mktemp("digit-shards")
    reshard(sorted((digits.root / "data/digits/train").glob("*.tar")), folder / "shards", SHARDS)
    for shard in BAD_PICTURES:
        path = folder / f"shards/{shard:05d}.tar"
        first = next(name for name, _ in read_tar(path) if name.endswith(".png"))
        replace_member(path, {first: b"no picture"})
    toml = folder / "curate.toml"
    add_dataset(toml, "many", {"train": f"shards/{{00000..{SHARDS - 1:05d}}}.tar", "image": "png", "classes": 10})
    return Work(folder, ("--dataset", "many", "--reference", digits.reference))


@pytest.fixture(scope="module")
def pair_shards(pairs) -> Work:
    return Work(pairs.root, ("--dataset", "pairs", "--reference", "clip", "--embeddings"))


@pytest.fixture(scope="module")
def local_digits(digit_shards) -> Path:
    return digit_shards.table(digit_shards.score(out="local"))


@pytest.fixture(scope="module")
def local_pairs(pair_shards) -> Path:
    return pair_shards.table(pair_shards.score(out="local"))
