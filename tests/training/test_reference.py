"""What a run says and checks of its reference before the first step."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.datasets.decoding import Geometry
from curate.datasets.spec import Config
from curate.errors import TableError
from curate.pipelines.score_reference import score_reference
from curate.training import RunOptions, train
from curate.training.agreement import Agreement
from curate.training.reference import note_views
from support.commands import silent


def go(config, out, report=silent, **changes):
    options = dict(
        policy="learnability", steps=1, batch_size=8, precision="fp32", evaluate=False, out=str(out), name="run"
    )
    train(RunOptions.of(**{**options, **changes}), config=config, report=report)


@pytest.mark.parametrize(("shift", "holds"), [(0.0, True), (0.003, True), (0.03, False)])
def test_a_dot_product_in_bf16_is_checked_to_five_of_its_errors(shift, holds, pairs, tmp_path):
    table = Path(score_reference(pairs.options(tmp_path / "scores", precision="bf16"), silent).folder)
    file = table / "00001.parquet"
    stored = pq.read_table(pa.BufferReader(file.read_bytes()))
    losses = pa.array([loss + shift for loss in stored["loss"].to_pylist()], pa.float32())
    place = stored.schema.get_field_index("loss")
    pq.write_table(stored.set_column(place, stored.schema.field("loss"), losses), file)
    model = dict(dataset="pairs", learner="untrained-clip", online="untrained-clip", reference_scores=str(table))
    if holds:
        lines = []
        go(pairs.config, tmp_path, lines.append, **model)
        (told,) = [
            line for line in lines if "the table's losses were computed in bf16, this run scores in fp32" in line
        ]
        assert 0 < float(told.split("differs by ")[1].split(" on average")[0]) < 0.01
        return
    with pytest.raises(TableError, match=r"shard '00001', key '.*': the table's loss is .*, the reference says"):
        go(pairs.config, tmp_path, **model)


def test_losses_in_another_order_are_refused(pairs, tmp_path, monkeypatch):
    table = Path(score_reference(pairs.options(tmp_path / "scores", precision="bf16"), silent).folder)
    for file in sorted(table.glob("*.parquet")):
        stored = pq.read_table(pa.BufferReader(file.read_bytes()))
        losses = pa.array(stored["loss"].to_pylist()[::-1], pa.float32())
        place = stored.schema.get_field_index("loss")
        pq.write_table(stored.set_column(place, stored.schema.field("loss"), losses), file)
    # Losses that are spread so little that each is within the tolerance are in test_agreement.py.
    monkeypatch.setattr(Agreement, "first_apart", lambda *_: None)
    model = dict(dataset="pairs", learner="untrained-clip", online="untrained-clip", reference_scores=str(table))
    with pytest.raises(
        TableError, match=r"orders 60 examples otherwise than the reference .* \(rank correlation -?0\.\d\d, "
    ):
        go(pairs.config, tmp_path, **model)


@pytest.mark.parametrize(("size", "said"), [(8, 0), (16, 1)])
def test_geometry_that_differs_from_the_references_is_said_once(size, said, digits, tmp_path):
    entry = {**digits.config.models["scorer"], "preprocessing": {"size": size}}
    config = Config(digits.config.path, digits.config.datasets, {**digits.config.models, "other": entry})
    lines = []
    go(
        config,
        tmp_path,
        lines.append,
        dataset="digits",
        learner="learner",
        online="other",
        reference_scores=digits.scores,
    )
    told = [line for line in lines if "see images otherwise" in line]
    assert len(told) == said
    assert all(f"size 8 and {size}" in line and "'other'" in line for line in told)


def test_a_table_without_its_reference_is_joined_and_said(digits, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(digits.root, tmp_path / "moved")
    lines = []
    scores = next((tmp_path / "moved/scores").glob("*/*"))
    manifest = scores / "_manifest.json"
    manifest.write_text(manifest.read_text().replace(str(digits.root), "/gone"))
    go(
        digits.config,
        runs,
        lines.append,
        dataset="digits",
        learner="learner",
        online="scorer",
        reference_scores=str(scores),
    )
    assert sum("joined without scoring a few of them again" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("online", "told"),
    [
        (Geometry(size=112, crop_pct=0.9), ["crop_pct 1.0 and 0.9"]),
        (
            Geometry(size=224, mode="squash", exif_rotation=True),
            ["mode shortest and squash, exif_rotation False and True"],
        ),
        (Geometry(size=112, reduced_jpeg="close"), []),
        (Geometry(size=224), []),
        (None, []),
    ],
)
def test_frames_that_differ_by_accident_are_said_in_one_line(online, told):
    def model(geometry):
        return SimpleNamespace(geometry=geometry, spec=SimpleNamespace(name="small"))

    lines = []
    note_views(model(Geometry(size=224)), online and model(online), lines.append)
    assert len(lines) == len(told)
    assert all(words in line for words, line in zip(told, lines, strict=True))
