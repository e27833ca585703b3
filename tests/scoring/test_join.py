from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from curate.datasets import list_shards, read_shard
from curate.datasets.readers import Example
from curate.errors import JoinError
from curate.scoring import open_scores
from curate.scoring.tables.join import join_shard
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def shard(digits):
    spec = digits.dataset()
    first = list_shards(spec)[0]
    examples = [e for e in read_shard(spec, first) if isinstance(e, Example)]
    return examples, open_scores(digits.scores).shard(first.name)


def test_all_join_in_order(shard):
    examples, scores = shard
    kept, losses, counts, _ = join_shard(examples, scores)
    assert kept == examples
    np.testing.assert_array_equal(losses, scores.loss)
    assert not counts


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_join_is_by_key_never_by_position(shard, random):
    examples, scores = shard
    shuffled = random.sample(examples, len(examples))
    _, losses, *_ = join_shard(shuffled, scores)
    by_key = dict(zip(scores.keys, scores.loss.tolist(), strict=True))
    assert losses.tolist() == [by_key[e.key] for e in shuffled]


def test_a_changed_label_is_refused_with_shard_key_and_both_values(shard):
    examples, scores = shard
    changed = [*examples[:3], replace(examples[3], target_hash=0xABC), *examples[4:]]
    with pytest.raises(JoinError) as error:
        join_shard(changed, scores, "skip")
    message = str(error.value)
    assert examples[3].key in message
    assert scores.shard in message
    assert f"{0xABC:016x}" in message
    assert f"{int(scores.target_hash[3]):016x}" in message


def test_what_is_missing_is_an_error_or_the_users_choice(shard):
    examples, scores = shard
    fewer = replace_scores(scores, keep=[i for i in range(len(scores.keys)) if i not in (2, 5)])
    with pytest.raises(JoinError, match=examples[2].key):
        join_shard(examples, fewer)
    kept, losses, counts, _ = join_shard(examples, fewer, "skip")
    assert [e.key for e in kept] == fewer.keys
    assert counts == {"skipped": 2}
    np.testing.assert_array_equal(losses, fewer.loss)
    kept, losses, counts, _ = join_shard(examples, fewer, "score")
    assert kept == examples
    assert np.flatnonzero(np.isnan(losses)).tolist() == [2, 5]
    assert counts == {"scored_in_run": 2}


def test_an_example_that_failed_in_scoring_is_dropped_and_counted(shard):
    examples, scores = shard
    fewer = replace_scores(scores, keep=range(1, len(scores.keys)), failed={examples[0].key})
    kept, _, counts, _ = join_shard(examples, fewer)
    assert kept == examples[1:]
    assert counts == {"failed_in_scoring": 1}


def test_an_empty_score_file_joins_nothing(shard):
    examples, scores = shard
    nothing = replace_scores(scores, keep=[])
    with pytest.raises(JoinError):
        join_shard(examples, nothing)
    assert join_shard(examples, nothing, "skip")[0] == []


def replace_scores(scores, keep, failed=()):
    keep = list(keep)
    return replace(
        scores,
        keys=[scores.keys[i] for i in keep],
        row=scores.row[keep],
        target_hash=scores.target_hash[keep],
        loss=scores.loss[keep],
        failed_keys=frozenset(failed),
    )
