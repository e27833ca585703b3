"""The folder of a real comparison: its files, its page and its contact sheets."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pyarrow.parquet as pq
import pytest
from curate.reports.comparison import write_folder
from curate.reports.contact_sheet import _draw, contact_sheets, sheets_html
from curate.reports.points import read_points
from PIL import Image
from support.browser import CHROMIUM, FLAGS, Seen
from support.commands import curate, silent

PLOTS = (
    "quality_over_updates",
    "quality_over_flops",
    "quality_over_seconds",
    "ledger",
    "wrong_labels",
    "distributions",
)


BEFORE = Path(__file__).parents[1] / "fixtures/v0.1/comparison"


def lay_out(folder):
    """Real runs of 0.1.0 on digits, one with its selections, its score table and the clean labels; what was run."""
    content = json.loads((BEFORE / "runs.json").read_text())
    for name, documents in content["runs"].items():
        (folder / "runs" / name).mkdir(parents=True)
        for kind, document in documents.items():
            (folder / "runs" / name / f"{kind}.json").write_text(json.dumps(document))
    recorded = "step, shard, key, online_loss, reference_loss, score, selected"
    for columns, path in (
        (recorded, "runs/learnability-1x-seed0/selections/000000001-000000008.parquet"),
        ("DISTINCT shard, key, label", "scores/dataset=digits/reference=ref-133948e1/all.parquet"),
        ("DISTINCT shard, key, clean_label", "analysis.parquet"),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        duckdb.sql(f"COPY (SELECT {columns} FROM '{BEFORE}/selections.parquet' ORDER BY ALL) TO '{folder / path}'")
    return content["compared"]


def test_what_is_said_of_old_runs(digits, tmp_path, monkeypatch):
    """All that 0.1 said of them but for its headline, the best of all rows, and what one seed saved on the mean ladder."""
    old = lay_out(tmp_path)
    new = {"headline_budget": 1.0, "headline_policy": None, "searched_on": ""}
    rates, search = {1.0: old.pop("learning_rate")}, {1.0: old.pop("search")} if old["search"] else old.pop("search")
    compared = SimpleNamespace(**old, **new, learning_rates=rates, search=search or {})
    monkeypatch.chdir(tmp_path)  # the runs name their score table from there
    known = {"digits": {"analysis": "analysis.parquet"}}
    write_folder(str(tmp_path), compared, digits.dataset(), known, report=silent)
    then, now = (json.loads((folder / "comparison.json").read_text()) for folder in (BEFORE, tmp_path))
    for row in then["savings"]:
        for saving in (row["learner_updates"], *row["total_compute"].values()):
            (saving or {}).pop("seeds", None)
    for row in now["savings"]:
        for saving in (row["learner_updates"], *row["total_compute"].values()):
            (saving or {}).pop("interval", None)
    same = then.keys() - {"headline", "verdict"}
    assert {k: now[k] for k in same} == {k: then[k] for k in same}
    # Parquet's bytes differ between versions of pyarrow; rows and types must not.
    assert pq.read_table(tmp_path / "points.parquet").equals(pq.read_table(BEFORE / "points.parquet"))


@pytest.fixture(scope="module")
def compared(digits, tmp_path_factory):
    """The folder that the real command leaves on digits, whose clean labels are made known to the analysis."""
    out = tmp_path_factory.mktemp("compared") / "comparison"
    done = curate(
        *("compare", "--config", digits.toml, "--dataset", "digits", "--learner", "learner", "--online", "scorer"),
        *("--reference-scores", digits.scores, "--policies", "uniform,learnability,easy-reference"),
        *("--budget-flops", "2e9", "--batch-size", 16, "--budgets", "0.5x,1x", "--ladder", "2x", "--seeds", 2),
        *("--selections-every", 1, "--out", out),
    )
    assert done.code == 0, done.err
    assert done.out.strip() == str(out / "index.html")
    return out


def test_the_page_holds_its_plots_tables_and_verdict(compared):
    html = (compared / "index.html").read_text()
    seen = Seen()
    seen.feed(html)
    assert not seen.links, "self-contained: nothing is fetched"
    assert not re.findall(r"url\((?!#)", html)
    drawn = {path.stem for path in (compared / "plots").glob("*.svg")}
    assert drawn == {path.stem for path in (compared / "plots").glob("*.png")}
    assert set(PLOTS) - {"wrong_labels"} <= drawn
    assert seen.svgs >= len(drawn)
    first, _, more = json.loads((compared / "comparison.json").read_text())["verdict"].partition(". ")
    plain = unescape(html).replace("\N{NO-BREAK SPACE}", " ")
    assert f'<p class="verdict">{first}.</p>\n<p>{more}</p>' in plain
    for what in ("learner updates", "total FLOPs", "seconds"):
        assert any(caption.lower().endswith(f"at equal {what}".lower()) for caption in seen.captions), seen.captions
    points = pq.read_table(compared / "points.parquet")
    assert points.num_rows == 2 * (3 + 2 + 2)
    assert len(set(points["run"].to_pylist())) == points.num_rows


def test_the_page_says_first_what_each_arm_is(compared):
    html = (compared / "index.html").read_text()
    table = html[html.index('id="arms"') : html.index("Savings at equal quality")]
    rows = [re.findall(r"<td>(?:<span.*?</span>)?(.*?)</td>", row) for row in re.findall("<tr><td>.*?</tr>", table)]
    expected = []
    for policy, B in (("uniform", 16), ("learnability", 32), ("easy-reference", 32)):
        steps = json.loads((compared / f"runs/{policy}-1x-seed0/summary.json").read_text())["steps"]
        epochs = [f"{steps * n / 900:.3g}" for n in (16, B)]
        expected.append([policy, str(steps), "16", "all drawn" if B == 16 else "32", *epochs, "0.002", "2 (0, 1)"])
    assert rows == expected
    assert "The learning rate was set for all arms, without a search." in table


def test_of_a_search_the_page_says_rates_and_where_they_were_measured(tmp_path, digits, monkeypatch):
    old = lay_out(tmp_path)
    new = {"headline_budget": 1.0, "headline_policy": None, "searched_on": "a tenth"}
    rates, search = {1.0: old.pop("learning_rate")}, {1.0: old.pop("search")}
    monkeypatch.chdir(tmp_path)
    compared = SimpleNamespace(**old, **new, learning_rates=rates, search=search)
    write_folder(str(tmp_path), compared, digits.dataset(), {}, report=silent)
    said = "The learning rate is the best of 0.001, 0.003 for uniform, seed 0, measured on a tenth; no other arm was"
    assert said in (tmp_path / "index.html").read_text()


def test_the_contact_sheet_shows_what_was_kept_and_dropped(compared, digits):
    policies = ("uniform", "learnability", "easy-reference")
    found = read_points([compared / "runs" / f"{policy}-1x-seed0" for policy in policies], "top1")
    sheets = contact_sheets(compared, found, 2e9, digits.dataset())
    assert set(sheets) == {"learnability", "easy-reference"}
    for policy, groups in sheets.items():
        files = f"{compared}/runs/{policy}-1x-seed0/selections/*.parquet"
        rows = duckdb.sql(f"SELECT *, max(step) OVER () AS last FROM '{files}' QUALIFY step >= 0.75 * last").fetchall()
        names = duckdb.sql(f"DESCRIBE FROM '{files}'").fetchall()
        at = {name[0]: i for i, name in enumerate(names)}
        late = {(r[at["shard"]], r[at["key"]], r[at["selected"]]) for r in rows}
        drawn = _draw(compared / "runs" / f"{policy}-1x-seed0")
        for group, flag in (("kept", True), ("dropped", False)):
            assert len(drawn[group]) == len(groups[group]) == 12
            assert all((shard, key, flag) in late for shard, key in drawn[group])
            assert all(one.caption in digits.dataset().classes for one in groups[group])
    one = sheets["learnability"]["kept"][0].image
    assert Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))).size == (64, 64)
    html = (compared / "index.html").read_text()
    assert html.count("<img ") == 48 and one in html


def test_images_that_are_gone_leave_the_page_without_them(compared, digits, tmp_path):
    gone = replace(digits.dataset(), train=(str(tmp_path / "gone.tar"),))
    found = read_points([compared / "runs" / "learnability-1x-seed0"], "top1")
    sheets = contact_sheets(compared, found, 2e9, gone)
    assert sheets == {"learnability": {"kept": [], "dropped": []}}
    assert sheets_html(sheets) == ""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_real_browser_nothing_runs_off_the_side(compared, tmp_path, width):
    # A window is never as narrow as a phone; a frame is.
    probe = tmp_path / "probe.html"
    shutil.copy(compared / "index.html", tmp_path / "index.html")
    script = "document.title=f.contentDocument.documentElement.scrollWidth+' '+f.contentDocument.querySelectorAll('svg').length"
    probe.write_text(
        f'<iframe id=f src=index.html width={width} height=800 style="border:0" onload="{script}"></iframe>'
    )
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}/profile", "--allow-file-access-from-files", "--dump-dom"]
    done = subprocess.run([*command, probe.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>(\d+) (\d+)</title>", done.stdout)
    assert found, done.stdout[:500]
    assert int(found[1]) <= width
    assert int(found[2]) >= len(list(Path(compared, "plots").glob("*.svg")))
