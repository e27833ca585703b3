"""Shards that are started ahead, and threads that share a model, give the scores of one shard after the other."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from curate.datasets import list_shards
from curate.datasets.decoders import Decoders
from curate.datasets.readers import to_bytes
from curate.errors import ShardError
from curate.scoring import load_model
from curate.scoring.flops import forward_flops
from curate.scoring.shard import StartedShard, score_shard
from support.tars import read_tar, write_tar


@pytest.fixture(scope="module")
def scoring(digits):
    """Of digits: shards, and how to score one. The model has BatchNorm."""
    options = digits.options("unused")
    model = load_model(options.model, trained=True)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.module.modules())
    return settings_of(options.dataset, model)


def settings_of(dataset, model, batch_size=48):
    settings = dict(
        device=torch.device("cpu"),
        precision="fp32",
        batch_size=batch_size,
        vectors=model.task.compares,
        decode_threads=2,
        forward_flops=forward_flops(model).per_example,
    )
    return dataset, model, settings


@pytest.fixture(params=["classes", "captions"])
def case(request, scoring, pairs):
    if request.param == "classes":
        return scoring
    options = pairs.options("unused")
    return settings_of(options.dataset, load_model(options.model, trained=True), batch_size=8)


def told(result):
    return to_bytes(result.scores), result.failures, result.flops


def test_several_started_shards_give_the_scores_of_one_after_the_other(case):
    dataset, model, settings = case
    shards = list_shards(dataset)[:3]
    alone = [told(score_shard(dataset, shard, model, **settings)) for shard in shards]
    started = [StartedShard(dataset, shard, model, **settings) for shard in shards]
    assert [told(shard.finish()) for shard in started] == alone


def test_threads_that_share_a_model_give_the_same_scores(case):
    """As bundles of one worker process do."""
    dataset, model, settings = case
    shards = list_shards(dataset)[:3] * 2
    alone = [told(score_shard(dataset, shard, model, **settings)) for shard in shards]
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda shard: told(score_shard(dataset, shard, model, **settings)), shards))
    assert together == alone
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "running statistics are read alone"
    assert not any(module.training for module in model.module.modules())


def test_shards_that_are_decoded_by_processes_give_the_same_scores(scoring):
    """Three at a time, as a worker with a GPU starts them."""
    dataset, model, settings = scoring
    shards = list_shards(dataset)[:3]
    alone = [told(score_shard(dataset, shard, model, **settings)) for shard in shards]
    decoders = Decoders(1, [model.geometry])
    started = [StartedShard(dataset, shard, model, **settings, look_at=decoders.look) for shard in shards]
    assert [told(shard.finish()) for shard in started] == alone
    assert decoders._pool is not None


def test_a_started_shard_is_read_ahead_and_closing_it_ends_its_threads(scoring, tmp_path):
    dataset, model, settings = scoring
    before = set(threading.enumerate())
    started = StartedShard(dataset, list_shards(dataset)[0], model, **settings)
    deadline = time.monotonic() + 60
    while started._batches._items.empty() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not started._batches._items.empty()
    started.close()
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not {thread.name for thread in set(threading.enumerate()) - before}


def test_a_shard_that_is_cut_fails_where_it_is_finished(scoring, tmp_path):
    dataset, model, settings = scoring
    shard = list_shards(dataset)[0]
    write_tar(tmp_path / "whole.tar", read_tar(shard.url))
    content = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: len(content) // 2])
    started = StartedShard(
        dataset, type(shard)(name="cut", url=str(tmp_path / "cut.tar"), size=1, bytes=1), model, **settings
    )
    with pytest.raises(ShardError, match=r"cut\.tar: the tar is cut or damaged"):
        started.finish()
