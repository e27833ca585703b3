"""What is said of a comparison, on points whose answer is known, and the page of a real one."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from conftest import curate
from curate.errors import RunError
from curate.reports.comparison import analyse
from curate.reports.contact_sheet import _draw, contact_sheets, sheets_html
from curate.reports.verdict import verdict
from PIL import Image

PLOTS = (
    "quality_over_updates",
    "quality_over_flops",
    "quality_over_seconds",
    "ledger",
    "wrong_labels",
    "distributions",
)
CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=3000"),
)


def point(policy, budget, quality, *, seed=0, scoring=0.0, reference=0.0):
    """A learner whose update costs 1 FLOP and 2 seconds; `scoring` more FLOPs an update; a reference's two lines."""
    updates = budget / (1 + scoring)
    return {
        "run": f"{policy}-{budget}-{seed}",
        "policy": policy,
        "budget_flops": budget,
        "seed": seed,
        "quality": quality,
        "learner_updates": updates,
        "total_flops": budget,
        "seconds": 2 * updates,
        "learner_train": updates,
        "online_score": scoring * updates,
        "online_train": 0.0,
        "reference_score": reference,
        "reference_train": None if reference is None else reference,
        "regime_fully_amortised": updates,
        "regime_foundation": budget,
        "regime_pretrained_reference": budget + (reference or 0.0),
        "regime_nothing_amortised": None if reference is None else budget + 2 * reference,
    }


UNIFORM = [point("uniform", 100.0 * 2**i, 0.4 + 0.1 * i, seed=seed) for i in range(3) for seed in (0, 1)]


def test_savings_in_every_regime_by_hand():
    # 100 updates and 25 FLOPs of scoring reach what uniform needs 400 for.
    mine = [point("learnability", 125.0, q, seed=s, scoring=0.25, reference=50.0) for s, q in enumerate((0.5, 0.7))]
    (row,) = analyse(UNIFORM + mine, "top1")["savings"]
    assert row["learner_updates"]["share"] == pytest.approx(1 - 100 / (200 * 2**0.999999), abs=1e-5)
    assert row["learner_updates"]["where"] == "on"
    assert [s["where"] for s in row["learner_updates"]["seeds"]] == ["on", "above"]
    assert [s["share"] for s in row["learner_updates"]["seeds"]] == pytest.approx([0.5, 0.75])
    shares = {name: saving["share"] for name, saving in row["total_compute"].items()}
    expected = {"fully_amortised": 100, "foundation": 125, "pretrained_reference": 175, "nothing_amortised": 225}
    assert shares == pytest.approx({name: 1 - cost / 400 for name, cost in expected.items()}, abs=1e-5)


def test_means_spreads_and_what_is_interpolated():
    mine = [point("learnability", b, q, scoring=0.25) for b, q in ((125.0, 0.5), (250.0, 0.6))]
    content = analyse(UNIFORM + mine, "top1")
    assert content["curves"]["uniform"][0]["quality"] == {"mean": 0.4, "min": 0.4, "max": 0.4, "n": 2}
    at_updates, at_flops = content["equal"]["learner_updates"], content["equal"]["total_flops"]
    assert at_updates[0]["quality"]["learnability"]["mean"] == pytest.approx(0.5)
    assert at_updates[0]["quality"]["learnability"]["interpolated"]
    assert not at_updates[0]["quality"]["uniform"]["interpolated"]
    assert at_updates[2]["quality"].keys() == {"uniform"}  # 400 updates: learnability's largest run made 200
    assert at_flops[1]["quality"]["learnability"]["mean"] == pytest.approx(0.5 + 0.1 * 0.678072, abs=1e-6)


def test_a_reference_of_unknown_cost_leaves_its_regime_open():
    mine = [point("learnability", 125.0, 0.5, scoring=0.25, reference=None)]
    (row,) = analyse(UNIFORM + mine, "top1")["savings"]
    assert row["total_compute"]["nothing_amortised"] is None
    assert row["total_compute"]["foundation"]["share"] == pytest.approx(1 - 125 / 200)


def test_without_uniform_nothing_can_be_said():
    with pytest.raises(RunError, match="no run of policy uniform"):
        analyse([point("learnability", 100.0, 0.5)], "top1")


@pytest.mark.parametrize(
    ("budget", "quality", "said"),
    [
        (100.0, 0.5, "learnability at 1x reaches uniform's quality with 50 % fewer learner updates and 50 % less"),
        (100.0, 0.9, "with more than 75 % fewer learner updates and more than 75 % less total compute"),
        (400.0, 0.5, "No policy saved total compute: the best, learnability at 4x, took 100 % more"),
        (100.0, 0.1, "No policy is known to have saved total compute"),
    ],
)
def test_the_verdict_calls_a_loss_a_loss(budget, quality, said):
    content = analyse([*UNIFORM, point("learnability", budget, quality)], "top1")
    assert said in verdict({**content, "settings": {"budget_flops": 100.0}})


def test_the_headline_is_the_largest_saving_known_though_it_be_a_bound():
    read = point("easy-reference", 100.0, 0.45)  # uniform's 141
    beyond = point("learnability", 200.0, 0.9)  # more than 400, off the ladder
    loss = point("hard-learner", 400.0, 0.5)
    content = analyse([*UNIFORM, read, beyond, loss], "top1")
    assert content["headline"]["policy"] == "learnability"
    assert "more than 50 % less total compute" in verdict({**content, "settings": {"budget_flops": 100.0}})
    content = analyse([*UNIFORM, point("learnability", 50.0, 0.1), loss], "top1")  # below it: at most 50 % saved
    assert content["headline"]["policy"] == "hard-learner"


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


class Seen(HTMLParser):
    def __init__(self):
        super().__init__()
        self.captions, self.links, self.svgs, self.tag = [], [], 0, ""

    def handle_starttag(self, tag, attrs):
        self.tag = tag
        self.svgs += tag == "svg"
        self.links += [v for name, v in attrs if name in ("src", "href") and not v.startswith(("#", "data:"))]

    def handle_data(self, data):
        if self.tag == "caption" and data.strip():
            self.captions.append(data.strip())


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
    for what in ("learner updates", "total FLOPs", "seconds"):
        assert any(caption.lower().endswith(f"at equal {what}".lower()) for caption in seen.captions), seen.captions
    points = pq.read_table(compared / "points.parquet")
    assert points.num_rows == 2 * (3 + 2 + 2)
    assert len(set(points["run"].to_pylist())) == points.num_rows


def test_the_contact_sheet_shows_what_was_kept_and_dropped(compared, digits):
    found = [
        {"policy": policy, "run": f"{policy}-1x-seed0", "budget_flops": 2e9, "seed": 0}
        for policy in ("uniform", "learnability", "easy-reference")
    ]
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
            assert all(one["caption"] in digits.dataset().classes for one in groups[group])
    one = sheets["learnability"]["kept"][0]["picture"]
    assert Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))).size == (64, 64)
    html = (compared / "index.html").read_text()
    assert html.count("<img ") == 48 and one in html


def test_pictures_that_are_gone_leave_the_page_without_them(compared, digits, tmp_path):
    gone = replace(digits.dataset(), train=(str(tmp_path / "gone.tar"),))
    found = [{"policy": "learnability", "run": "learnability-1x-seed0", "budget_flops": 2e9, "seed": 0}]
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
