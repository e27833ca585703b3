"""A table knows whose shards it holds: another data set of the same name is refused; growing, moved and mirrored ones are not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from curate.datasets import list_shards
from curate.datasets.spec import spec_from_path
from curate.errors import TableError
from curate.pipelines.score_reference import score_reference
from curate.scoring.tables.lookup import open_scores
from curate.scoring.tables.source import MOST_FOLDERS, check_source, source_of
from support.commands import silent
from support.folders import tree
from support.tars import read_tar, write_tar


@pytest.fixture
def project(pairs, tmp_path):
    """A folder with `data` and room for scores; and how its shards are scored from a path."""
    shutil.copytree(pairs.root / "data", tmp_path / "project/data/train")

    def score(path, out="project/scores", report=silent):
        dataset = replace(spec_from_path(str(tmp_path / path)), name="train")
        return score_reference(pairs.options(tmp_path / out, dataset=dataset), report)

    return tmp_path, score


def other_captions(source: Path, target: Path):
    """The same images and keys under other captions of the same lengths, so that sizes are the same too."""
    members = read_tar(source)
    write_tar(target, [(n, c[::-1] if n.endswith(".txt") else c) for n, c in members])


def test_a_data_set_of_the_same_name_elsewhere_is_refused_and_the_table_stays(project):
    root, score = project
    table = score("project/data/train/*.tar").folder
    before = tree(Path(table))
    for i in range(3):
        other_captions(root / f"project/data/train/0000{i}.tar", root / f"other/train/0000{i}.tar")
    with pytest.raises(TableError) as error:
        score("other/train/*.tar")
    for words in (
        "shard '00000'",
        str(root / "project/data/train"),
        str(root / "other/train"),
        "key 'pair-000'",
        "--out",
    ):
        assert words in str(error.value)
    assert tree(Path(table)) == before


def test_other_shards_of_the_same_name_are_refused(project):
    root, score = project
    score("project/data/train/0000{0..1}.tar")
    (root / "other/train").mkdir(parents=True)
    shutil.copy(root / "project/data/train/00002.tar", root / "other/train/00009.tar")
    with pytest.raises(TableError, match=r"has none there but others in .*other/train.*where it is the same data set"):
        score("other/train/*.tar")


def test_a_growing_data_set_is_scored_further(project):
    root, score = project
    assert score("project/data/train/0000{0..1}.tar").scored_now == 2
    assert score("project/data/train/*.tar").scored_now == 1
    (root / "more/train").mkdir(parents=True)
    shutil.copy(root / "project/data/train/00002.tar", root / "more/train/00003.tar")
    assert score(f"project/data/train/*.tar::{root}/more/train/*.tar").scored_now == 1
    assert score("more/train/*.tar").scored_now == 0
    folders = open_scores(str(root / "project/scores")).manifest["source"]["folders"]
    assert folders == [str(root / "more/train"), str(root / "project/data/train")]


def test_a_mirror_is_known_by_its_targets_and_then_by_its_folder(project):
    root, score = project
    score("project/data/train/0000{0..1}.tar")
    shutil.copytree(root / "project/data/train", root / "mirror/train")
    lines = []
    assert score("mirror/train/*.tar", report=lines.append).scored_now == 1
    assert any("its shards were moved; 40 of their targets" in line for line in lines)
    again = []
    assert score("mirror/train/*.tar", report=again.append).scored_now == 0
    assert not any("were moved" in line for line in again)


def test_a_project_that_is_moved_as_a_whole_needs_no_look(project):
    root, score = project
    score("project/data/train/*.tar")
    (root / "project").rename(root / "renamed")
    lines = []
    assert score("renamed/data/train/*.tar", out="renamed/scores", report=lines.append).scored_now == 0
    assert not any("were moved" in line for line in lines)


def test_a_table_of_version_0_1_is_looked_at_once(project):
    root, score = project
    table = Path(score("project/data/train/*.tar").folder)
    manifest = json.loads((table / "_manifest.json").read_text())
    del manifest["source"]
    (table / "_manifest.json").write_text(json.dumps(manifest))
    assert score("project/data/train/*.tar").scored_now == 0
    assert open_scores(str(table)).manifest["source"]["folders"] == [str(root / "project/data/train")]


def test_a_shard_of_another_size_is_the_other_data_sets(project):
    root, score = project
    score("project/data/train/*.tar")
    members = read_tar(root / "project/data/train/00000.tar")
    for i in range(3):
        write_tar(root / f"other/train/0000{i}.tar", [*members, ("more.txt", b"x" * 20_000)])
    with pytest.raises(TableError, match="where its size is"):
        score("other/train/*.tar")


def test_a_table_that_was_begun_in_one_precision_ends_in_it(pairs, tmp_path):
    options = pairs.options(tmp_path, precision="bf16")
    table = Path(score_reference(options, silent).folder)
    (table / "00001.parquet").unlink()
    with pytest.raises(TableError, match="was scored in bf16 and is asked for in fp32"):
        score_reference(replace(options, precision="fp32"), silent)
    score_reference(replace(options, precision=None), silent)
    assert open_scores(str(table)).manifest["precision"] == "bf16"


def test_many_folders_are_known_by_those_above_them(pairs):
    dataset = pairs.options("unused").dataset
    (shard, *_) = list_shards(dataset)
    shards = [replace(shard, name=f"{i}", url=f"s3://user:secret@bucket/day={i:03d}/{i}.tar?sig=1") for i in range(100)]
    source = source_of("memory://scores", dataset, shards)
    assert source == {"folders": ["s3://bucket/**"], "relative": []}
    assert check_source("memory://scores", {"source": source}, dataset, shards, {"3"}) == 0
    few = source_of("memory://scores", dataset, shards[:MOST_FOLDERS])
    assert few["folders"][0] == "s3://bucket/day=000"
