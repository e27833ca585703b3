"""Stored embeddings in SQL: DuckDB's own array functions find the nearest and the farthest, as the documentation shows."""

from __future__ import annotations

import duckdb
import numpy as np
from curate.pipelines.score_reference import score_reference
from curate.reports import connect
from curate.scoring import open_scores
from support.commands import silent

NEAREST = """
    SELECT a.key, b.key, array_inner_product(a.image_embedding::FLOAT[16], b.image_embedding::FLOAT[16]) AS similarity
    FROM {scores} a JOIN {scores} b ON (a.shard, a.key) < (b.shard, b.key) ORDER BY similarity DESC, a.key, b.key LIMIT 5
"""


def test_nearest_pictures_and_farthest_captions(pairs, tmp_path):
    folder = score_reference(pairs.options(tmp_path / "scores", embeddings=True), silent).folder
    table = open_scores(folder)
    stored = [table.shard(name, embeddings=True) for name in sorted(table.shard_names())]
    keys = [key for scores in stored for key in scores.keys]
    image, text = (
        np.concatenate([getattr(scores, name) for scores in stored]).astype(np.float32)
        for name in ("image_embedding", "text_embedding")
    )
    similarity = image @ image.T
    first, second = np.triu_indices(len(keys), 1)
    order = sorted(
        zip(-similarity[first, second].round(6), [keys[i] for i in first], [keys[i] for i in second], strict=True)
    )

    connection = connect(scores=str(tmp_path / "scores"), runs=str(tmp_path / "runs"))
    plain = f"read_parquet('{tmp_path}/scores/*/*/*.parquet', hive_partitioning = true)"
    for found in (
        connection.execute(NEAREST.format(scores="scores")).fetchall(),
        duckdb.sql(NEAREST.format(scores=plain)).fetchall(),
    ):
        np.testing.assert_allclose([row[2] for row in found], [-row[0] for row in order[:5]], atol=1e-4)

    farthest = connection.execute(
        "SELECT key, array_inner_product(image_embedding::FLOAT[16], text_embedding::FLOAT[16]) AS own "
        "FROM scores ORDER BY own LIMIT 3"
    ).fetchall()
    own = (image * text).sum(1)
    np.testing.assert_allclose([row[1] for row in farthest], np.sort(own)[:3], atol=1e-4)
    np.testing.assert_allclose(own, -np.concatenate([scores.loss for scores in stored]), atol=2e-3)
