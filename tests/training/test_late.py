"""Pixels are made of what is chosen, and of all only where the choice needs them; a bad image found then is replaced."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from curate import OnlineModel, Selector, SubBatches, SuperBatches
from curate.datasets import Geometry
from curate.datasets.decoding import decode
from curate.errors import FailuresError
from curate.training.late import replacements
from hypothesis import given
from hypothesis import strategies as st
from support.tars import read_tar, replace_member, write_tar

SMALL, LARGE = Geometry(size=8), Geometry(size=16)
# Nothing stays in memory, so that every look at an image decodes it.
TIGHT = {"host_bytes": 1, "cache_bytes": 0}


class Counted:
    """A view that counts what it makes."""

    def __init__(self, geometry=SMALL):
        self.geometry, self.calls = geometry, 0

    def __call__(self, data: bytes) -> torch.Tensor:
        self.calls += 1
        return torch.tensor(decode(data, self.geometry))


class ByName:
    """Losses that need no pixels, from an online model that has the given views."""

    def __init__(self, *views):
        self.views = views

    def score(self, batch):
        return torch.tensor([float(hash(key) % 997) for key in batch.keys])


def subs_of(data, policy="easy-reference", size=60, b=12, views=None, scorer=None, online=None, **options):
    batches = SuperBatches(data, size, views=views or {"learner": SMALL}, **options)
    return SubBatches(batches, Selector(policy, b, seed=5), scorer=scorer, online=online)


def first(subs, count):
    found = list(islice(subs, count))
    subs.close()
    return found


def trained(subs, count):
    return [(sub.keys, sub.selection.index.tolist(), sub.views["learner"].tolist()) for sub in first(subs, count)]


@pytest.mark.parametrize("policy", ["easy-reference", "uniform"])
def test_a_policy_without_pixels_decodes_nothing_that_it_drops(digits, policy):
    view = Counted()
    scores = digits.scores if policy == "easy-reference" else None
    found = first(subs_of(digits.dataset(), policy, views={"learner": view}, scores=scores, **TIGHT), 5)
    ahead = 4  # super-batches
    assert 5 * 12 <= view.calls <= (5 + ahead) * 12
    for sub in found:
        assert sub.views["learner"].shape == (12, 8, 8, 3)
        assert sub.keys == [sub.drawn.keys[i] for i in sub.selection.index.tolist()]
    # All of what was drawn can still be asked for.
    assert torch.equal(found[0].drawn.views["learner"][found[0].selection.index], found[0].views["learner"])


def test_the_learners_view_is_made_of_the_chosen_alone(digits):
    views = {"learner": Counted(LARGE), "online": Counted(), "other": SMALL}
    subs = subs_of(digits.dataset(), "hard-learner", views=views, scorer=ByName("online"), **TIGHT)
    found = first(subs, 5)
    assert views["learner"].calls == 5 * 12
    assert views["online"].calls >= 5 * 60
    assert found[0].views["learner"].shape == (12, 16, 16, 3)
    assert found[0].views["online"].shape == found[0].views["other"].shape == (12, 8, 8, 3)


@pytest.mark.parametrize("options", [{}, TIGHT], ids=["kept", "decoded again"])
def test_what_is_made_late_is_what_was_made_ahead(digits, options):
    def run(*late):
        views = {"learner": LARGE, "online": SMALL}
        scorer = ByName(*late)
        if not late:
            del scorer.views
        return trained(subs_of(digits.dataset(), "hard-learner", views=views, scorer=scorer, **options), 4)

    assert run("online") == run() == run("learner")


def test_an_online_model_says_what_it_reads(digits):
    module = torch.nn.Linear(192, 10)

    def losses(module, batch):
        logits = module(batch.views["online"].flatten(1) / 255)
        return torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")

    views = {"learner": Counted(LARGE), "online": SMALL}
    online = OnlineModel(module, losses, torch.optim.SGD(module.parameters(), 0.1), views=["online"])
    found = first(subs_of(digits.dataset(), "hard-learner", views=views, online=online), 3)
    assert views["learner"].calls == 3 * 12
    assert found[2].views["learner"].shape == (12, 16, 16, 3)


@pytest.fixture
def damaged(digits, tmp_path):
    """120 digits, every tenth of which cannot be decoded."""
    members = read_tar(sorted((digits.root / "data/digits/train").glob("*.tar"))[0])[:240]
    for i in range(3):
        write_tar(tmp_path / f"{i}.tar", members[80 * i : 80 * i + 80])
        for name in [n for n, _ in members[80 * i : 80 * i + 80] if n.endswith(".png")][::10]:
            replace_member(tmp_path / f"{i}.tar", {name: b"no image"})
    return f"{tmp_path}/*.tar"


def test_a_bad_image_that_was_chosen_is_replaced_by_the_next_of_its_super_batch(damaged):
    config = {"max_failures": 1.0}
    data = spec(damaged)
    subs = subs_of(data, "uniform", 30, 10, **config)
    found = first(subs, 4)  # an epoch
    good = {key for batch in islice(SuperBatches(data, 27, views={"v": SMALL}, **config), 4) for key in batch.keys}
    chosen_by_scores = Selector("uniform", 10, seed=5)
    replaced = 0
    for sub in found:
        asked = chosen_by_scores(online_loss=torch.zeros(30)).index.tolist()
        bad = [i for i in asked if sub.drawn.keys[i] not in good]
        expected = set(asked) - set(bad)
        for i in bad:
            while i in asked or sub.drawn.keys[i] not in good or i in expected:
                i = (i + 1) % 30
            expected.add(i)
        assert sub.selection.index.tolist() == sorted(expected)
        assert len(sub.keys) == 10 and set(sub.keys) <= good
        replaced += len(bad)
    assert replaced > 0
    assert subs.batches.counts["failures"] >= replaced
    before = subs.batches.counts["failures"]
    first(subs, 8)  # two more epochs meet the same images, which are counted no more
    assert subs.batches.counts["failures"] == before


def spec(pattern):
    from curate.datasets.spec import spec_from_table

    return spec_from_table("d", {"train": pattern, "task": "classification", "classes": 10})


def test_where_too_few_can_be_decoded_it_says_so(damaged, tmp_path):
    for path in tmp_path.glob("*.tar"):
        replace_member(path, {name: b"no image" for name, _ in read_tar(path) if name.endswith(".png")})
    with pytest.raises(
        FailuresError, match=r"30 of the 30 examples .* too few are left to choose 10; .*not a readable"
    ):
        first(subs_of(spec(damaged), "uniform", 30, 10, max_failures=1.0), 1)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_choice_made_ahead_resumes_exactly(digits, damaged, stop):
    for data, policy, options in (
        (digits.dataset(), "easy-reference", {"scores": digits.scores}),
        (spec(damaged), "uniform", {"max_failures": 1.0, "size": 30}),
    ):
        whole = subs_of(data, policy, **options)
        expected = trained(whole, 7)
        subs = subs_of(data, policy, **options)
        assert trained(subs, stop) == expected[:stop]
        state = subs.state_dict()
        resumed = subs_of(data, policy, **options)
        resumed.load_state_dict(state)
        assert trained(resumed, 7 - stop) == expected[stop:]
        assert resumed.batches.counts == whole.batches.counts
        # And the same object, iterated again.
        assert trained(subs, 7 - stop) == expected[stop:]


@given(st.sets(st.integers(0, 19), min_size=1, max_size=6), st.sets(st.integers(0, 19)))
def test_replacements_are_new_numbers_in_turn(failed, others):
    taken = failed | others
    found = replacements(sorted(failed), taken, 20)
    assert not set(found) & taken
    assert len(found) == len(set(found)) == min(len(failed), 20 - len(taken))
    if len(failed) == 1 and found:
        (one,) = failed
        between = range(one + 1, found[0] if found[0] > one else found[0] + 20)
        assert all(i % 20 in taken for i in between)
