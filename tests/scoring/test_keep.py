"""The share of a score table that a filtered data set keeps, against a slow second computation by sorting."""

import numpy as np
import pytest
from curate.errors import SpecError, TableError
from curate.scoring import Policy, open_scores
from curate.scoring.tables.keep import keep_best
from support.tables import rows


def kept_keys(table, kept):
    found = set()
    for name in table.shard_names():
        scores = table.shard(name)
        mask = kept.mask(scores)
        assert kept.counts[name] == mask.sum()
        found |= {(name, key) for key, keeps in zip(scores.keys, mask, strict=True) if keeps}
    assert len(found) == kept.examples
    return found


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    ("by", "group"), [("all", lambda row: 0), ("class", lambda row: row["label"]), ("shard", lambda row: row["shard"])]
)
def test_the_lowest_losses_of_each_group_are_kept(digits, share, by, group):
    table = open_scores(digits.scores)
    groups = {}
    for row in rows(digits.table):
        groups.setdefault(group(row), []).append((row["loss"], row["shard"], row["key"]))
    wanted = {(shard, key) for found in groups.values() for _, shard, key in sorted(found)[: round(share * len(found))]}
    kept = keep_best(table, share, by=by)
    assert kept_keys(table, kept) == wanted
    assert kept.of == 900


def test_a_policy_of_yours_ranks_and_ties_at_the_border_are_kept(digits):
    table = open_scores(digits.scores)
    hardest = keep_best(
        table, 0.1, policy=Policy("hardest", lambda known: known.reference_B, reference="loss", filters=True)
    )
    losses = sorted((row["loss"] for row in rows(digits.table)), reverse=True)
    assert hardest.least == {"": pytest.approx(losses[89])}
    same = keep_best(
        table, 0.1, policy=Policy("same", lambda known: 0 * known.reference_B, reference="loss", filters=True)
    )
    assert same.examples == 900
    assert "900 of 900 examples are kept: by policy same, the best 10 %" in same.line()


def test_only_the_shards_of_the_data_set_count(digits):
    table = open_scores(digits.scores)
    kept = keep_best(table, 0.5, shards=["00001", "00003", "none"])
    assert (kept.of, set(kept.counts)) == (300, {"00001", "00003"})
    assert kept.examples == 150


def test_what_cannot_rank_is_refused(digits, pairs, tmp_path):
    table = open_scores(digits.scores)
    for share in (0, 1.1, -0.5):
        with pytest.raises(SpecError, match="expected a share above 0"):
            keep_best(table, share)
    with pytest.raises(SpecError, match="expected all, class, shard"):
        keep_best(table, 0.5, by="source")
    for policy in ("uniform", "learnability", "jest"):
        with pytest.raises(SpecError, match="cannot rank by stored losses alone"):
            keep_best(table, 0.5, policy=policy)
    nan = Policy("nan", lambda known: known.reference_B * np.nan, reference="loss", filters=True)
    with pytest.raises(SpecError, match="policy 'nan' scores nan"):
        keep_best(table, 0.5, policy=nan)
    with pytest.raises(SpecError, match="filters by stored losses"):
        Policy("both", lambda known: known.online_B, online="model", reference="loss", filters=True)


def test_captions_have_no_classes(pairs, tmp_path):
    from curate.pipelines.score_reference import score_reference
    from support.commands import silent

    table = open_scores(score_reference(pairs.options(tmp_path), silent).folder)
    with pytest.raises(TableError, match="has captions and no classes"):
        keep_best(table, 0.5, by="class")
    assert keep_best(table, 0.5).examples == 30
