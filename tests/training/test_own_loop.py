"""What a loop of one's own gives, rightly or wrongly: losses, views, indices, states; and how its streams end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch
from curate import (
    Geometry,
    Ledger,
    Losses,
    OnlineModel,
    Policy,
    SelectionLog,
    Selector,
    SubBatches,
    SuperBatches,
    keep_best,
    open_scores,
)
from curate.errors import BudgetError, JoinError, RunError, SpecError, TableError
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset

VIEWS = {"image": Geometry(size=8)}


class Fixed:
    """Scores as a function says."""

    def __init__(self, score):
        self.score = score


def losses(module, batch):
    return cross_entropy(module(batch.views["image"].float() / 255), batch.targets, reduction="none")


def online_model(**options):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    return OnlineModel(module, losses, torch.optim.SGD(module.parameters(), lr=0.1), **options)


def batches_of(digits, **options):
    return SuperBatches(digits.dataset(), 60, **{"views": VIEWS, **options})


def subs_of(digits, scorer, policy="hard-learner", b=12, **options):
    return SubBatches(batches_of(digits), Selector(policy, b, seed=5), online=scorer, **options)


def first(stream):
    found = next(iter(stream))
    stream.close()
    return found


class Scores(Fixed):
    def step(self, batch):
        pass


@pytest.mark.parametrize(
    "score",
    [
        lambda batch: torch.tensor(2.0),
        lambda batch: torch.zeros(1),
        lambda batch: torch.zeros(len(batch), 1),
        lambda batch: np.zeros(len(batch)),
    ],
)
def test_a_scorer_gives_one_loss_for_each_example(digits, score):
    with pytest.raises(SpecError, match=r"online_loss is .* expected a tensor of shape \(60,\)"):
        first(subs_of(digits, Scores(score)))


def test_losses_keep_no_graph(digits):
    weight = torch.ones(1, requires_grad=True)
    sub = first(subs_of(digits, Scores(lambda batch: weight * torch.arange(len(batch)))))
    assert not sub.selection.online_loss.requires_grad and not sub.selection.score.requires_grad


@pytest.mark.parametrize("wrong", [torch.tensor(1.0), torch.zeros(1), torch.zeros(9)])
def test_a_selector_takes_losses_of_equal_length(wrong):
    with pytest.raises(SpecError, match="online_loss is of shape"):
        Selector("learnability", 4)(online_loss=wrong, reference_loss=torch.arange(10.0))


@pytest.mark.parametrize(
    "score", [lambda known: known.online_B[:5], lambda known: known.online_B.mean(), lambda _: None]
)
def test_a_policy_gives_one_score_for_each_example(score):
    with pytest.raises(SpecError, match="the score of policy 'mine' is"):
        Selector(Policy("mine", score, online="model"), 4)(online_loss=torch.arange(10.0))


def test_what_a_policy_of_ones_own_raises_is_not_called_a_diverged_model(digits):
    def fails(known):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        first(subs_of(digits, Scores(lambda batch: torch.zeros(len(batch))), Policy("mine", fails, online="model")))


def test_what_a_policy_needs_is_asked_for():
    mine = Policy("mine", lambda known: -known.reference_B, reference="loss")
    with pytest.raises(SpecError, match="'mine' needs reference_loss"):
        Selector(mine, 4).choose(Losses(), 10)
    with pytest.raises(SpecError, match="'infobatch' needs past losses"):
        Selector("infobatch", 4)(online_loss=torch.zeros(10))
    with pytest.raises(SpecError, match="chunks is 0"):
        Selector("jest", 4, chunks=0)
    with pytest.raises(SpecError, match="joint_loss is 'hinge'"):
        Selector("jest", 4, joint_loss="hinge")


@pytest.mark.parametrize(
    "index", [torch.ones(60, dtype=torch.bool), [1, 2], torch.tensor([60]), torch.tensor([1.0]), torch.tensor([[1]])]
)
def test_only_an_index_is_taken(digits, index):
    batch = first(batches_of(digits))
    with pytest.raises(SpecError, match="expected numbers from 0 to 59"):
        batch.take(index)


def test_parts_of_a_sub_batch_add_up_to_it(digits):
    sub = first(SubBatches(batches_of(digits), Selector("hard-learner", 60, sampler="reweight"), online=online_model()))
    parts = [sub.take(torch.arange(0, 50)), sub.take(torch.arange(50, 60))]
    assert torch.equal(torch.cat([part.weights for part in parts]), sub.weights)
    assert torch.equal(torch.cat([part.positions for part in parts]), sub.positions)
    loss = torch.arange(60.0)
    in_parts = sum(part.weight * loss[part.positions].mean() for part in parts)
    assert float(in_parts) == pytest.approx(float(sub.weight * loss.mean()))


def test_an_online_model_trains_on_weighed_losses(digits):
    online, batch = online_model(), first(batches_of(digits))
    weights = torch.linspace(0, 2, 60)
    object.__setattr__(batch, "weights", weights)
    expected = (weights * losses(online_model().module, batch)).mean().detach()
    assert float(online.step(batch)) == pytest.approx(float(expected))


@pytest.mark.parametrize("made", [np.zeros(3, np.float32), np.full(3, 300, np.uint16), None])
def test_a_view_that_is_a_function_gives_tensors(digits, made):
    with pytest.raises(SpecError, match="a view's function returned"):
        first(batches_of(digits, views={"image": lambda image: made}))


def test_a_view_gives_tensors_of_one_type(digits):
    kinds = iter([torch.float32, torch.int64] * 2000)
    with pytest.raises(SpecError, match="different shapes or types"):
        first(batches_of(digits, views={"image": lambda image: torch.zeros(3, dtype=next(kinds))}))


@pytest.mark.parametrize("wrong", [{"mode": "crop"}, {"interpolation": "cubic"}, {"size": 0}, {"crop_pct": 0.0}])
def test_a_geometry_checks_itself(wrong):
    with pytest.raises(SpecError):
        Geometry(**{"size": 8, **wrong})


def test_views_that_a_scorer_names_are_there(digits):
    with pytest.raises(SpecError, match="the scorer's views name picture; the stream has image"):
        subs_of(digits, online_model(views=["picture"]))
    with pytest.raises(SpecError, match="score_ahead is -1"):
        subs_of(digits, online_model(), score_ahead=-1)


@pytest.mark.parametrize("policy", ["hard-learner", "uniform"])
def test_a_closed_stream_ends(digits, policy):
    subs = subs_of(digits, online_model(), policy)
    found = []
    for sub in subs:
        found.append(sub)
        if len(found) == 2:
            subs.close()
    assert len(found) == 2
    assert next(iter(subs)).number == 3
    subs.close()


def readers():
    return {thread for thread in threading.enumerate() if thread.name in ("prefetch", "read ahead")}


def test_a_stream_that_is_let_go_of_reads_no_more(digits):
    before = readers()
    for _ in subs_of(digits, online_model()):
        assert readers() - before
        break
    until = time.monotonic() + 30
    while readers() - before and time.monotonic() < until:
        time.sleep(0.1)
    assert not readers() - before


def test_a_column_that_a_table_lacks_is_no_damage(digits):
    table = open_scores(str(digits.table))
    for read in (lambda: table.read(["size"]), lambda: table.shard("00000", embeddings=True)):
        with pytest.raises(TableError, match="has no column") as error:
            read()
        assert "delete" not in str(error.value)
    with pytest.raises(TableError, match="nothing to read"):
        table.read(["loss"], [])
    with pytest.raises(TableError, match="none of the shards"):
        keep_best(table, 0.5, shards=["nowhere"])


@pytest.mark.parametrize("wrong", [0.5, None])
def test_a_label_that_is_no_label_is_not_verified(digits, wrong):
    batch = first(batches_of(digits, scores=str(digits.table)))
    label = None if wrong is None else int(batch.targets[0]) + wrong
    with pytest.raises(JoinError, match=f"the label is {label}"):
        open_scores(str(digits.table)).lookup(batch.shards[:1], batch.keys[:1], targets=[label])


def test_python_ends_after_what_reads_ahead():
    script = """
import time
from curate.datasets.batches import prefetch
def source():
    try:
        while True:
            yield 1
    finally:
        time.sleep(0.3)
        print("ended")
ahead = prefetch(source())
next(ahead)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ended\n")


def test_a_state_that_is_loaded_and_saved_again_has_the_losses_that_wait(digits):
    subs = subs_of(digits, online_model(), score_ahead=2)
    list(islice(subs, 3))
    state = subs.state_dict()
    subs.close()
    again = subs_of(digits, online_model(), score_ahead=2)
    again.load_state_dict(state)
    found = again.state_dict()["scored"]
    assert len(found) == 2
    assert all(torch.equal(a["online_B"], b["online_B"]) for a, b in zip(found, state["scored"], strict=True))


def test_the_state_of_something_else_is_refused(digits):
    subs, online = subs_of(digits, online_model()), online_model()
    for owner, state in (
        (subs, subs.batches.state_dict()),
        (subs.batches, subs.state_dict()),
        (subs.selector, subs.state_dict()),
        (online, {"module": online.module.state_dict()}),
    ):
        with pytest.raises(RunError, match="this is no state of"):
            owner.load_state_dict(state)


class Wrapped(IterableDataset):
    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        for batch in self.stream:
            yield batch.keys


def test_workers_of_a_data_loader_do_not_draw_the_same_twice(digits):
    with pytest.raises(SpecError, match="num_workers=0"):
        next(iter(DataLoader(Wrapped(batches_of(digits)), batch_size=None, num_workers=1)))
    batches = batches_of(digits)
    assert len(next(iter(DataLoader(Wrapped(batches), batch_size=None)))) == 60
    batches.close()


def test_a_log_of_selections_forgets_what_it_holds_and_takes_the_super_batch(digits, tmp_path):
    log, subs = SelectionLog(tmp_path), subs_of(digits, online_model())
    (tmp_path / "mine.parquet").touch()
    found = list(islice(subs, 3))
    subs.close()
    for step, sub in enumerate(found, 1):
        log.write(step, sub.drawn, sub.selection)
    log.cut_after(2)
    log.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000001-000000002.parquet", "mine.parquet"]
    with pytest.raises(SpecError, match=r"give sub.drawn"):
        log.write(3, found[0], found[0].selection)
    with pytest.raises(SpecError, match="steps count from 1"):
        log.write(0, found[0].drawn, found[0].selection)


def test_a_ledger_adds_no_steps_that_it_cannot_count():
    ledger = Ledger()
    ledger.measure("learner_train", lambda: torch.zeros(2, 3) @ torch.zeros(3, 4))
    ledger.add_step()
    resumed = Ledger()
    resumed.load_state_dict(ledger.state_dict())
    with pytest.raises(SpecError, match="nothing was measured; call measure"):
        resumed.add_step()
    with pytest.raises(SpecError, match="times_per_step is nan"):
        ledger.measure("learner_train", lambda: None, float("nan"))
    with pytest.raises(BudgetError, match="the budget is inf"):
        ledger.steps_within(float("inf"))
