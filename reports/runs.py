"""The views over run folders: one row per run, and one row per line of metrics. An unfinished run is a row too."""

from __future__ import annotations

import json
from typing import Any

from ..ledger import LINES
from .sql import Columns, literal, path_part_sql

RUN_OF_FILE = r"([^/]*)/[^/]*$"
LEDGER = dict.fromkeys(LINES, "DOUBLE")
SECONDS = dict.fromkeys(
    ["total", "data", "decode", "score", "select", "train", "record", "save", "other", "evaluate", "compile"], "DOUBLE"
)
QUALITY = dict.fromkeys(["top1", "mean_recall", "image_to_text_r1", "text_to_image_r1", "zero_shot_top1"], "DOUBLE")
METRICS: dict[str, Any] = {
    **dict.fromkeys(["step", "examples"], "BIGINT"),
    **dict.fromkeys(
        ["loss", "online_train_loss", "online_loss", "reference_loss", "score", "score_selected"], "DOUBLE"
    ),
    "lr": "DOUBLE",
    "masked_negatives": "BIGINT",
    "seconds": SECONDS,
    **dict.fromkeys(["samples_per_second", "mfu", "data_share"], "DOUBLE"),
    "quality": QUALITY,
    "flops": LEDGER,
    "score_age": "DOUBLE",
    **dict.fromkeys(["score_age_greatest", "pool_size", "dropped_for_age"], "BIGINT"),
    **dict.fromkeys(["learner_waited", "scorers_waited", "overlap"], "DOUBLE"),
}
CONFIG: dict[str, Any] = {
    **dict.fromkeys(["dataset", "policy", "learner", "online", "sampler"], "VARCHAR"),
    **dict.fromkeys(["reference_scores", "reference", "reference_online"], "VARCHAR"),
    **dict.fromkeys(["filter_ratio", "temperature", "budget_flops"], "DOUBLE"),
    "seed": "BIGINT",
}
SUMMARY: dict[str, Any] = {
    **dict.fromkeys(["dataset", "policy", "learner", "online", "reference_table"], "VARCHAR"),
    **dict.fromkeys(["seed", "steps", "learner_updates", "examples_trained", "examples_scored"], "BIGINT"),
    "ledger": LEDGER,
    "seconds": SECONDS,
    "quality": QUALITY,
}


def _struct(fields: dict[str, str]) -> str:
    return "STRUCT(" + ", ".join(f'"{name}" {kind}' for name, kind in fields.items()) + ")"


METRICS_COLUMNS: Columns = {
    "run": "VARCHAR",
    **{name: _struct(kind) if isinstance(kind, dict) else kind for name, kind in METRICS.items()},
    "line": "JSON",
}


def runs_sql(root: str) -> str:
    """One row per run folder under `root` (a glob-escaped path or URL), from its config.json and summary.json.

    A value that is missing or has another type is NULL. `reference` is the score table's, as in the view `scores`, or
    the name of a reference that trained in the run.
    `config`, `quality`, `regimes` and `counts` are the JSON as written.
    """
    return f"""
    WITH configs AS ({_documents(root, "config.json")}),
    summaries AS ({_documents(root, "summary.json")}),
    documents AS (
        SELECT run, configs.document AS config, summaries.document AS summary,
            {_read("config", CONFIG)} AS c, {_read("summary", SUMMARY)} AS s
        FROM configs FULL JOIN summaries USING (run)
    )
    SELECT
        run,
        coalesce(s.dataset, c.dataset) AS dataset,
        coalesce(s.policy, c.policy) AS policy,
        coalesce(s.learner, c.learner) AS learner,
        coalesce(s.online, c.online) AS online,
        coalesce(
            s.reference_table,
            nullif(regexp_extract(c.reference_scores, 'reference=([^/]+)', 1), ''),
            c.reference_scores,
            c.reference_online,
            c.reference
        ) AS reference,
        c.filter_ratio,
        c.temperature,
        c.sampler,
        coalesce(s.seed, c.seed) AS seed,
        s.steps,
        coalesce(s.learner_updates, s.steps) AS learner_updates,
        s.examples_trained,
        s.examples_scored,
        s.ledger.learner_train AS learner_train_flops,
        s.ledger.online_score AS online_score_flops,
        s.ledger.online_train AS online_train_flops,
        s.ledger.reference_score AS reference_score_flops,
        s.ledger.reference_train AS reference_train_flops,
        c.budget_flops,
        s.seconds.total AS seconds,
        {", ".join(f"s.quality.{name}" for name in QUALITY)},
        summary IS NOT NULL AS finished,
        summary->'$.quality' AS quality,
        summary->'$.regimes' AS regimes,
        summary->'$.counts' AS counts,
        config
    FROM documents
    """


def metrics_sql(pattern: str) -> str:
    """One row per line of every metrics.jsonl that matches; `line` is the JSON as written, with all its keys.

    Columns are declared, because the incomplete last line of an unfinished run would break type inference for all runs.
    """
    lines = f"read_ndjson_objects({literal(pattern)}, filename = true, ignore_errors = true)"
    columns = ", ".join(f"m.{name}" for name in METRICS)
    return f"""
    SELECT {path_part_sql(RUN_OF_FILE)} AS run, {columns}, json AS line
    FROM (SELECT filename, json, {_read("json", METRICS)} AS m FROM {lines} WHERE json IS NOT NULL)
    """


def _documents(root: str, name: str) -> str:
    """Parsed JSON files; an empty or incomplete file is treated as missing."""
    source = f"read_text({literal(f'{root}/*/{name}')})"
    parsed = f"SELECT {path_part_sql(RUN_OF_FILE)} AS run, try_cast(content AS JSON) AS document FROM {source}"
    return f"SELECT * FROM ({parsed}) WHERE json_type(document) = 'OBJECT'"


def _read(document: str, structure: dict[str, Any]) -> str:
    return f"json_transform({document}, {literal(json.dumps(structure))})"
