"""How many of the first k likely wrong labels are wrong: the order of `curate inspect` and those of cleanlab, of one score table.

    pip install cleanlab pyarrow    # in an environment of its own; curate need not be there
    python experiments/wrong_labels.py --labels data/cifar10n/analysis/train.parquet TABLE ... > results/DATE-wrong-labels.jsonl
    python experiments/wrong_labels.py --table RESULTS.jsonl            # the tables of docs/inspect.md

TABLE is a folder of a score table made with `curate score-reference --logits`. All orders see the same given labels and
predictions: curate's the stored loss, cleanlab the softmax of the stored logits (float16). Labels count as wrong where they
are not the clean ones of --labels. No order sees the clean labels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FIRST = (10, 30, 100, 300, 1_000, 3_000, 10_000)
OURS = "curate inspect"
SCORES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
FILTERS = ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, help="folders of score tables with logits")
    parser.add_argument("--labels", type=Path, help="Parquet with shard, key and clean_label")
    parser.add_argument("--table", type=Path, help="print the tables of these results, and measure nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read_results(arguments.table)))
        return
    if not (arguments.tables and arguments.labels):
        parser.error("score tables and --labels are needed, or --table")
    for folder in arguments.tables:
        for line in measured(folder, arguments.labels):
            print(json.dumps(line), flush=True)


def measured(folder: Path, labels: Path) -> Iterable[dict[str, Any]]:
    """A line for each order of the rows of a score table."""
    rows = pa.concat_tables(pq.read_table(path, partitioning=None) for path in sorted(folder.glob("*.parquet")))
    known = pq.read_table(labels, columns=["shard", "key", "clean_label"])
    clean_of = dict(zip(_names(known), known["clean_label"].to_pylist(), strict=True))
    given = rows["label"].to_numpy()
    wrong = given != np.array([clean_of[name] for name in _names(rows)])
    about = json.loads((folder / "_manifest.json").read_text(encoding="utf-8"))
    for name, order in orders(rows, given):
        yield {
            "dataset": about["dataset"],
            "reference": folder.resolve().name.removeprefix("reference="),
            "reference_train_flops": about["flops"]["reference_train"],
            "rows": len(given),
            "wrong": int(wrong.sum()),
            "order": name,
            "cleanlab": version("cleanlab"),
            "listed": len(order),
            "found": int(wrong[order].sum()),
            "precision": {str(k): float(wrong[order[:k]].mean()) for k in FIRST if k <= len(order)},
        }


def orders(rows: pa.Table, given: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
    """Rows by their place, the likeliest wrong first. The first is that of `curate inspect`."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    loss = rows["loss"].to_numpy()
    other = np.flatnonzero(rows["predicted"].to_numpy() != given)
    yield OURS, other[np.argsort(-loss[other], kind="stable")]
    logits = np.stack(rows["logits"].to_numpy()).astype(np.float64)
    probability = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability /= probability.sum(axis=1, keepdims=True)
    for method in SCORES:
        quality = get_label_quality_scores(given, probability, method=method)
        yield f"get_label_quality_scores {method}", np.argsort(quality, kind="stable")
    for by in FILTERS:
        found = find_label_issues(
            given, probability, filter_by=by, return_indices_ranked_by="self_confidence", n_jobs=1
        )
        yield f"find_label_issues {by}", found


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(results: list[dict[str, Any]]) -> str:
    """One table for each reference, as in docs/inspect.md."""
    tables = []
    for reference in dict.fromkeys(line["reference"] for line in results):
        lines = [line for line in results if line["reference"] == reference]
        head = ["order", *(f"{k:,}" for k in FIRST), "labels listed", "of these wrong", "share of all wrong labels"]
        out = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for line in lines:
            cells = [f"`{line['order']}`"]
            cells += [_percent(line["precision"].get(str(k))) for k in FIRST]
            cells += [
                f"{line['listed']:,}",
                _percent(line["found"] / line["listed"]),
                _percent(line["found"] / line["wrong"]),
            ]
            out.append(f"| {' | '.join(cells)} |")
        tables.append("\n".join(out))
    return "\n\n".join(tables)


def _names(rows: pa.Table) -> list[tuple[str, str]]:
    return list(zip(rows["shard"].to_pylist(), rows["key"].to_pylist(), strict=True))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}".replace("%", " %")


if __name__ == "__main__":
    main()
