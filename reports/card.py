"""Cards: what a run's model is and how it was trained, and what a score table is and how to join it. In Markdown, with the
fields that Hugging Face reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..datasets.storage import exists, join_url, read_bytes
from ..datasets.writing import make_folder, write_whole
from ..errors import RunError, SpecError, without_secrets
from ..ledger import LINES, REGIMES
from ..options import refuse_url
from ..scoring.tables.counts import all_counts
from ..scoring.tables.lookup import ScoreTable, open_scores
from ..units import counted, format_flops, percent
from .table_choice import columns_of

NAME = "README.md"
COLUMNS = {
    "shard": "the shard's name, without folder and ending",
    "row": "the example's place in the shard; bad examples count too",
    "key": "the example's key in the shard",
    "target_hash": "64 bits of BLAKE2b of the label or caption as it is stored",
    "loss": "the scoring loss",
    "label": "the class that the data set gives",
    "predicted": "the class that the reference predicts",
    "similarity": "the dot product of the embeddings of image and caption",
    "image_embedding": "unit-norm, float16",
    "text_embedding": "unit-norm, float16",
    "logits": "the reference's logits, float16",
    "offset": "where the image's bytes begin in the tar",
    "length": "how many bytes the image has",
    "row_group": "the row group of the Parquet file that holds the image",
    "row_in_group": "the row in it",
}


# The first of its tags. They show that a README.md is a card.
TAGS = ["curate", "data-selection"]


def write_card(what: str, out: str | None, license: str | None) -> str:
    """Write the card of a run (with the model in its library's files), or of a score table; returns the card's path.

    A run's card stands in RUN/model, a table's in the table's folder, or in `out`. Raises RunError for a run that is not
    finished, TableError, ModelError, WriteError.
    """
    what = what.rstrip("/")
    if exists(join_url(what, "config.json")):
        refuse_url(what, "the run")
        return _run_card(Path(what), Path(out) if out else Path(what, "model"), license)
    table = open_scores(what)
    folder = out or table.folder
    _check_no_other(folder)
    if out is not None:
        make_folder(out)
    url = join_url(folder, NAME)
    write_whole(url, table_card(table, license).encode())
    return url


def _run_card(run: Path, folder: Path, license: str | None) -> str:
    from ..scoring.loading import find_model, load_model

    refuse_url(folder, "--out")
    _check_no_other(str(folder))
    about, manifest, summary = (_document(run, name) for name in ("config.json", "manifest.json", "summary.json"))
    try:
        learner = manifest["models"]["learner"]
        spec = find_model(str(run), task=learner["task"], num_classes=learner["num_classes"])
    except (KeyError, TypeError) as e:
        raise RunError(f"{run / 'manifest.json'}: has no {e}; restore it") from None
    model = load_model(spec, trained=True)
    make_folder(str(folder))
    from .card_weights import write_library_files

    library, lines = write_library_files(model, folder)
    text = model_card(run.name, about, manifest, summary, library, lines, model.fingerprint(), license)
    write_whole(folder / NAME, text.encode())
    return str(folder / NAME)


def _check_no_other(folder: str) -> None:
    """Raises SpecError where a README.md is there that is no card."""
    try:
        found = read_bytes(join_url(folder, NAME))
    except FileNotFoundError:
        return
    if json.dumps(TAGS)[:-1].encode() not in found:
        raise SpecError(f"{join_url(folder, NAME)}: is there, and is no card of curate; move it, or give another --out")


def _document(run: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(str(run / name)))
    except FileNotFoundError:
        raise RunError(f"{run}: has no {name}, so it is not finished; curate train --resume finishes it") from None
    except ValueError as e:
        raise RunError(f"{run / name}: cannot be read ({e}); restore it") from None
    if not isinstance(found, dict):
        raise RunError(f"{run / name}: is no JSON object; restore it")
    return found


def model_card(
    name: str,
    about: Mapping[str, Any],
    manifest: Mapping[str, Any],
    summary: Mapping[str, Any],
    library: str,
    lines: str,
    fingerprint: str,
    license: str | None,
) -> str:
    """The card of a finished run, of its config.json, manifest.json and summary.json."""
    data, ledger = manifest["dataset"], summary["ledger"]
    chosen = f"chosen by the policy **{summary['policy']}**"
    if summary.get("examples_scored"):
        chosen += f", which dropped {percent(about['filter_ratio'])} of each super-batch"
    table = manifest.get("score_table")
    reference = ["No reference model took part."]
    if table:
        of = table["reference"]
        reference = [
            f"- model: {_plain(of['name'])}, fingerprint `{of['fingerprint']}`",
            f"- FLOPs for each example: {format_flops(table['flops_per_example'])}",
            f"- score table: `{summary.get('reference_table')}`",
        ]
    elif "reference" in manifest["models"]:
        reference = [f"- model: {_plain(summary['reference'])}, trained during the run on every example that was drawn"]
    counts = summary.get("counts") or {}
    task = manifest["models"]["learner"]["task"]
    head = {
        "license": license or "unknown",
        "library_name": library,
        "tags": [*TAGS, str(summary["policy"])],
        "pipeline_tag": "zero-shot-image-classification" if library == "open_clip" else "image-classification",
    }
    return _front(head) + "\n".join(
        [
            f"# {_plain(name)}",
            "",
            f"A {_plain(summary['learner'])} ({task}), trained for {counted(summary['steps'], 'step')} of "
            f"{about['batch_size']:,} examples of {_plain(data['name'])}, {chosen}. Trained with curate.",
            "",
            *_licence(license),
            "",
            "## Load it",
            "`FOLDER` is this folder.",
            "```python",
            lines,
            "```",
            "",
            "## Quality",
            *(
                _table(("measure", "value"), [(k, f"{v:,.4g}") for k, v in summary["quality"].items()])
                if summary.get("quality")
                else ["Not measured."]
            ),
            "",
            "On the test split of the data set below.",
            "",
            "## What it cost",
            *_table(("line", "FLOPs"), [(LINES[k], _flops(ledger.get(k))) for k in LINES]),
            "",
            "The same under the four regimes, which differ in what of the choosing they count:",
            "",
            *_table(("regime", "FLOPs"), [(REGIMES[k], _flops(summary["regimes"].get(k))) for k in REGIMES]),
            "",
            f"{summary['seconds']['total']:,.0f} seconds on {_plain(manifest['hardware'])}, in {manifest['precision']}. "
            f"Operators that count as zero FLOPs: {', '.join(manifest.get('operators_not_counted') or []) or 'none'}.",
            "",
            "## Reference",
            *reference,
            "",
            "## Data",
            f"- {_plain(data['name'])}: {_plain(data.get('description') or 'no description')}",
            f"- fingerprint of its fields `{data['fingerprint']}`, {counted(data['shards'], 'shard')}, "
            f"{counts.get('examples', 0):,} examples that could be used, {counts.get('failures', 0):,} that could not",
            "",
            "What the labels and captions get wrong, the model may have learned.",
            "",
            "## Made with",
            f"- {', '.join(f'{k} {v}' for k, v in manifest['versions'].items())}",
            f"- seed {summary['seed']}; weights' fingerprint `{fingerprint}`",
            "",
        ]
    )


def table_card(table: ScoreTable, license: str | None) -> str:
    """The card of a score table: what it is, and how to join it with the data."""
    manifest = table.manifest
    counts = all_counts(table.folder).values()
    examples, failures = sum(c.examples for c in counts), sum(c.failures for c in counts)
    flops = manifest["flops"]
    head = {"license": license or "unknown", "tags": [*TAGS, "score-table"]}
    columns = [(f"`{name}`", COLUMNS[name]) for name in columns_of(table)]
    return _front(head) + "\n".join(
        [
            f"# Scores of {_plain(manifest['dataset'])} by {_plain(manifest['reference']['name'])}",
            "",
            f"The {manifest['loss']} of {examples:,} examples under one reference model, computed once in "
            f"{manifest['precision']}. {failures:,} examples could not be scored (`_failures`). There are no images, labels' "
            "names or captions in it: it is of use to those who have the data.",
            "",
            *_licence(license),
            "",
            "## Join it",
            "(`shard`, `key`) identifies an example, and `target_hash` shows whether its label or caption is still the one "
            "that was scored. curate checks both:",
            "```bash",
            f"curate train --dataset {manifest['dataset']} --reference-scores FOLDER --policy learnability ...",
            "```",
            "```python",
            "import curate",
            'table = curate.open_scores("FOLDER")',
            "losses = table.lookup(shards, keys, targets=labels)  # raises where a target is not the one that was scored",
            "```",
            "Without curate: `SELECT shard, key, loss FROM read_parquet('FOLDER/*.parquet')`.",
            "",
            "## Columns",
            *_table(("column", "meaning"), columns),
            "",
            "## Made by",
            f"- reference: {_plain(manifest['reference']['name'])}, fingerprint `{table.reference_fingerprint}` (weights, "
            "architecture, preprocessing)",
            f"- data set: {_plain(manifest['dataset'])}, fingerprint of its fields `{manifest['dataset_fingerprint']}`",
            f"- FLOPs: {_flops(flops.get('reference_score'))} for scoring, {_flops(flops.get('reference_train'))} for "
            "training the reference",
            f"- curate {manifest['code_version']}",
            "",
        ]
    )


def _front(values: Mapping[str, object]) -> str:
    """Fields that Hugging Face reads, as YAML."""
    lines = []
    for name, value in values.items():
        lines.append(f"{name}: {json.dumps(value)}")
    return "---\n" + "\n".join(lines) + "\n---\n"


def _licence(license: str | None) -> list[str]:
    return [
        f"Licence: {_plain(license)}." if license else "Licence: not stated. Do not use it before its owner states one."
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _flops(flops: float | None) -> str:
    return "not known" if flops is None else format_flops(flops)


def _plain(text: object) -> str:
    """One line without secrets; of a path of this machine only its end, and no Markdown."""
    line = " ".join(without_secrets(str(text)).split())
    if line.startswith(("/", "~")):
        line = line.rstrip("/").rpartition("/")[2]
    return "".join(f"\\{c}" if c in "\\`*[]<>|" else c for c in line)
