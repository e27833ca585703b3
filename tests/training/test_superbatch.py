"""The stream of super-batches: its laws, on real digits."""

from __future__ import annotations

import shutil
import tarfile
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from curate.datasets import Geometry
from curate.datasets.spec import spec_from_table
from curate.errors import FailuresError, JoinError, RunError, SpecError
from curate.scoring import open_scores
from curate.scoring.selection import Selection
from curate.training.sub_batch import sub_batch
from curate.training.superbatch import SuperBatches
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tars import read_tar, replace_member, write_tar

GEOMETRY = Geometry(size=8)
# Every shard is a window of its own, and nothing stays in memory.
TIGHT = {"host_bytes": 1, "cache_bytes": 0}


@pytest.fixture(scope="module")
def many(digits, tmp_path_factory):
    """The same 900 digits in 64 shards of 14 and 15."""
    folder = tmp_path_factory.mktemp("many")
    source = sorted((digits.root / "data" / "digits" / "train").glob("*.tar"))
    members = [member for path in source for member in read_tar(path)]
    cuts = [2 * (i * 900 // 64) for i in range(65)]
    for i, (start, end) in enumerate(pairwise(cuts)):
        write_tar(folder / f"{i:05d}.tar", members[start:end])
    return folder


def spec_of(folder):
    return spec_from_table("many", {"train": f"{folder}/*.tar", "task": "classification", "classes": 10})


def stream(data, size=64, **options):
    return SuperBatches(data, size, views={"learner": GEOMETRY}, **options)


def first(batches, count):
    found = list(islice(batches, count))
    batches.close()
    return found


def names(batches):
    return [list(zip(b.shards, b.keys, strict=True)) for b in batches]


@pytest.mark.parametrize("options", [{}, {"host_bytes": 1 << 30, "cache_bytes": 0}, {"lanes": 1}, {"lanes": 3}])
@pytest.mark.parametrize("size", [64, 90, 250])
def test_an_epoch_visits_every_example_once_but_for_less_than_a_super_batch(digits, options, size):
    batches = stream(digits.dataset(), size, **options)
    seen = Counter(name for batch in names(first(batches, 900 // size)) for name in batch)
    assert max(seen.values()) == 1
    assert len(seen) == 900 // size * size
    first(batches, 1)
    assert batches.counts["dropped"] == 900 % size
    assert batches.counts["examples"] == 900


def test_every_example_is_drawn_equally_often(digits):
    epochs = 40
    found = names(first(stream(digits.dataset(), 90), 10 * epochs))
    counts = Counter(name for batch in found for name in batch)
    assert len(counts) == 900
    assert set(counts.values()) == {epochs}
    # And in the first super-batch of an epoch as often as chance has it: binomial(40, 1/10) never comes to 20.
    assert max(Counter(name for batch in found[::10] for name in batch).values()) < 20


def test_a_super_batch_draws_from_32_of_64_shards(many):
    for batch in first(stream(spec_of(many), 128), 20):
        assert len(set(batch.shards)) >= 32
    # Where nobody knows the shards' lengths, lanes drift apart, and two may come upon one shard at the ends of epochs.
    tight = stream(spec_of(many), 128, **TIGHT)
    assert tight.lanes == 32
    for batch in first(tight, 6):
        assert len(set(batch.shards)) >= 32


@pytest.mark.parametrize("options", [{}, TIGHT])
def test_order_depends_on_the_seed_alone(many, options):
    one, two, other = (names(first(stream(spec_of(many), seed=s, **options), 20)) for s in (3, 3, 4))
    assert one == two != other


@settings(max_examples=6, deadline=None)
@given(stop=st.integers(1, 40), again=st.integers(0, 20), size=st.integers(33, 130), tight=st.booleans())
def test_every_prefix_resumes_to_the_same_rest(many, stop, again, size, tight):
    options = TIGHT if tight else {}
    spec = spec_of(many)
    whole = names(first(stream(spec, size, **options), stop + again + 3))
    batches = stream(spec, size, **options)
    first(batches, stop)
    state = batches.state_dict()
    resumed = stream(spec, size, **options)
    resumed.load_state_dict(state)
    assert names(first(resumed, again)) == whole[stop : stop + again]
    # And resumed twice.
    third = stream(spec, size, **options)
    third.load_state_dict(resumed.state_dict())
    assert names(first(third, 3)) == whole[stop + again :]
    assert third.counts == first_counts(spec, size, options, stop + again + 3)


def first_counts(spec, size, options, count):
    batches = stream(spec, size, **options)
    first(batches, count)
    return batches.counts


def test_the_stream_may_be_iterated_again_where_it_stands(digits):
    batches = stream(digits.dataset())
    whole = names(first(stream(digits.dataset()), 6))
    assert names(first(batches, 2)) + names(first(batches, 4)) == whole


@pytest.mark.parametrize("options", [{}, TIGHT])
def test_a_bad_example_changes_only_its_own_lane(many, tmp_path, options):
    undamaged = stream(spec_of(many), 128, **options)
    whole = first(undamaged, 5)
    shard, key = whole[1].shards[40], whole[1].keys[40]
    damaged = tmp_path / "damaged"
    shutil.copytree(many, damaged)
    png = f"{key}.png"
    replace_member(damaged / f"{shard}.tar", {png: b"no image"})
    # The other shard sizes are what they were, so all else is.
    batches = stream(spec_of(damaged), 128, **options)
    changed = first(batches, 5)
    assert names(changed)[0] == names(whole)[0]
    assert batches.counts["failures"] == 1 and batches.last_failure.key == key
    assert batches.counts["examples"] + 1 == undamaged.counts["examples"]
    for before, after in zip(whole, changed, strict=True):
        assert [n for n in names([after])[0] if n[1] == key] == []
        different = {i // 4 for i, (a, b) in enumerate(zip(before.keys, after.keys, strict=True)) if a != b}
        assert different <= {10}  # lanes give 4 of 128 each


@pytest.mark.parametrize(("allowed", "ends"), [(0.03, True), (0.04, False)])
def test_few_bad_examples_are_judged_at_the_end_of_the_first_epoch(many, tmp_path, allowed, ends):
    """Of fewer than 1,000 no share can be judged sooner: 32 of 900 are bad here."""
    damaged = tmp_path / "damaged"
    shutil.copytree(many, damaged)
    for path in sorted(damaged.glob("*.tar"))[::2]:
        replace_member(path, {next(name for name, _ in read_tar(path) if name.endswith(".png")): b"no image"})
    batches = stream(spec_of(damaged), max_failures=allowed)
    given = 0
    with pytest.raises(FailuresError, match="32 of 900 examples read so far are bad") if ends else nullcontext():
        for _ in islice(batches, 30):
            given += 1
    batches.close()
    assert 13 <= given <= 15 if ends else given == 30  # lanes end their epochs in the 14th and 15th super-batch


def test_a_changed_order_is_refused(many, tmp_path):
    batches = stream(spec_of(many))
    first(batches, 2)
    state = batches.state_dict()
    for other in (stream(spec_of(many), seed=1), stream(spec_of(many), lanes=8), stream(spec_of(many), 96)):
        with pytest.raises(RunError, match="one of them changed"):
            other.load_state_dict(state)
    grown = tmp_path / "grown"
    shutil.copytree(many, grown)
    shutil.copy(grown / "00000.tar", grown / "99999.tar")
    with pytest.raises(RunError, match="one of them changed"):
        stream(spec_of(grown)).load_state_dict(state)


def test_reference_losses_are_those_of_the_table(digits):
    table = open_scores(digits.scores)
    stored = {(r["shard"], r["key"]): r["loss"] for r in table.read(["shard", "key", "loss"]).to_pylist()}
    for batch in first(stream(digits.dataset(), scores=table), 5):
        expected = [stored[name] for name in zip(batch.shards, batch.keys, strict=True)]
        np.testing.assert_array_equal(batch.reference_loss.numpy(), np.array(expected, dtype=np.float32))


def test_a_super_batch_larger_than_the_data_set_is_refused(digits):
    with pytest.raises(SpecError, match=r"900 usable examples, a super-batch needs 1,000"):
        next(iter(stream(digits.dataset(), 1000)))


def test_what_is_made_already_is_given_next(digits):
    batches = stream(digits.dataset())
    assert batches.next_if_made() is None
    given = iter(batches)
    for _ in range(3):
        deadline = time.monotonic() + 60
        while (upcoming := batches.next_if_made()) is None and time.monotonic() < deadline:
            next(given)
        state = batches.state_dict()
        assert batches.next_if_made() is upcoming and batches.state_dict() == state
        assert next(given) is upcoming
    batches.close()
    assert batches.next_if_made() is None


def test_all_tensors_are_known(digits):
    views = {"a": GEOMETRY, "b": GEOMETRY, "late": Geometry(size=12)}
    batches = SuperBatches(digits.dataset(), 32, views=views, scores=digits.scores)
    batch = next(batches.stream(lambda batch: batch, ["a", "b"]))
    batches.close()
    found = batch.tensors()
    expected = [batch.views["a"], batch.targets, batch.reference_loss]
    assert {id(one) for one in found} == {id(one) for one in expected} and len(found) == 3
    sub = sub_batch(batch, Selection(torch.arange(4), torch.ones(32)))
    own = [sub.views["a"], sub.views["late"], sub.targets, sub.reference_loss]
    assert {id(one) for one in sub.tensors()} == {
        id(one) for one in (*own, *expected, sub.selection.index, sub.selection.score)
    }


def test_take_and_to_keep_rows_together(digits):
    batch = next(iter(stream(digits.dataset(), scores=digits.scores)))
    index = torch.tensor([5, 0, 63])
    taken = batch.to("cpu").take(index)
    assert taken.keys == [batch.keys[i] for i in (5, 0, 63)]
    assert torch.equal(taken.views["learner"], batch.views["learner"][index])
    assert torch.equal(taken.targets, batch.targets[index])
    assert torch.equal(taken.reference_loss, batch.reference_loss[index])


def test_views_that_are_equal_are_made_once(digits):
    views = {"learner": GEOMETRY, "online": Geometry(size=8), "large": Geometry(size=16)}
    batch = next(iter(SuperBatches(digits.dataset(), 32, views=views)))
    assert batch.views["learner"] is batch.views["online"]
    assert batch.views["large"].shape == (32, 16, 16, 3)
    moved = batch.to("cpu").take(torch.arange(8))
    assert moved.views["learner"] is moved.views["online"]


def test_a_view_may_be_a_function_of_the_bytes_or_a_transform(digits):
    from torchvision.transforms import Compose, Resize, ToTensor

    def size_of(data: bytes) -> torch.Tensor:
        assert isinstance(data, bytes)
        return torch.tensor(len(data))

    views = {"bytes": size_of, "transform": Compose([Resize(12), ToTensor()]), "one": ToTensor()}
    batch = next(iter(SuperBatches(digits.dataset(), 32, views=views)))
    assert batch.views["bytes"].shape == (32,)
    assert batch.views["one"].shape == (32, 3, 8, 8)
    assert batch.views["transform"].shape == (32, 3, 12, 12)


def test_a_view_that_fails_is_told(digits):
    def broken(data: bytes) -> torch.Tensor:
        raise ValueError("not today")

    with pytest.raises((SpecError, FailuresError), match="not today"):
        next(iter(SuperBatches(digits.dataset(), 32, views={"v": broken})))
    with pytest.raises(SpecError, match="returned int, expected a tensor"):
        next(iter(SuperBatches(digits.dataset(), 32, views={"v": len})))


def test_a_changed_label_is_a_join_error(digits, tmp_path):
    folder = tmp_path / "train"
    shutil.copytree(digits.root / "data" / "digits" / "train", folder)
    path = sorted(folder.glob("*.tar"))[0]
    with tarfile.open(path) as tar:
        member = next(m for m in tar if m.name.endswith(".cls"))
    content = bytearray(path.read_bytes())
    content[member.offset_data] ^= 1  # another digit, and a tar of the same size
    path.write_bytes(content)
    spec = replace(digits.dataset(), train=(f"{folder}/*.tar",))
    with pytest.raises(JoinError, match=member.name.split(".")[0]):
        first(stream(spec, scores=digits.scores), 20)
