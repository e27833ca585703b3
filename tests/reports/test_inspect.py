"""The pages of `curate inspect`: of a table, of two, of a run; their figures beside plain computations."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.datasets.readers import read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import add_dataset, load_config
from curate.pipelines.score_reference import score_reference
from curate.reports.inspect import inspect
from curate.reports.inspect_options import InspectOptions
from curate.reports.inspect_page import Page as InspectPage
from curate.reports.inspect_page import Section, Table, page_html
from curate.reports.inspect_rows import add_rows, find_data
from curate.reports.views import connect
from curate.scoring.tables.lookup import open_scores
from PIL import Image
from support.browser import CHROMIUM, FLAGS, Seen
from support.commands import curate, silent
from support.tars import write_tar


class Page(HTMLParser):
    """Headings, tables by caption (lists of rows), tiles, and images with their captions."""

    def __init__(self, path):
        super().__init__()
        self.headings, self.tables, self.images, self.tiles = [], {}, [], {}
        self.stack, self.caption, self.figure = [], "", ""
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.stack.append(tag)
        if tag == "img":
            self.images.append((dict(attrs), []))
            self.stack.pop()
        if tag == "tr" and self.caption:
            self.tables[self.caption].append([])

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        tag = self.stack[-1] if self.stack else ""
        if tag in ("h1", "h2", "h3"):
            self.headings.append(data)
        elif tag == "caption":
            self.caption = data
            self.tables[data] = []
        elif tag in ("td", "th"):
            self.tables[self.caption][-1].append(data.replace("\xa0", " "))
        elif tag == "b" and "li" not in self.stack:
            self.figure = data.replace("\xa0", " ")
        elif tag == "span" and "li" not in self.stack and "main" in self.stack:
            self.tiles[data] = self.figure
        elif tag == "b" and self.images:
            self.images[-1][1].append(data)

    def table(self, begins):
        (found,) = [rows for caption, rows in self.tables.items() if caption.startswith(begins)]
        return found


@pytest.fixture(scope="module")
def flipped(digits, tmp_path_factory):
    """The digits with every eighth label changed, scored by the reference; and which keys were changed."""
    root = tmp_path_factory.mktemp("flipped")
    shutil.copy(digits.toml, root / "curate.toml")
    changed, rows = set(), []
    for shard in list_shards(digits.dataset()):
        members = []
        for i, example in enumerate(read_shard(digits.dataset(), shard)):
            label = (example.target + 3) % 10 if i % 8 == 0 else example.target
            changed |= {(shard.name, example.key)} if label != example.target else set()
            members += [(f"{example.key}.png", example.image), (f"{example.key}.cls", str(label).encode())]
            rows.append((shard.name, example.key, example.target))
        write_tar(root / "train" / f"{shard.name}.tar", members)
    shards, keys, labels = zip(*rows, strict=True)
    pq.write_table(pa.table({"shard": shards, "key": keys, "clean_label": labels}), root / "analysis.parquet")
    entry = {"train": "train/*.tar", "label": "cls", "classes": [str(i) for i in range(10)]}
    add_dataset(root / "curate.toml", "flipped", {**entry, "analysis": "analysis.parquet"})
    config = load_config(root / "curate.toml")
    from curate.datasets.spec import find_dataset

    options = digits.options(root / "scores", dataset=find_dataset("flipped", config))
    score_reference(options, silent)
    done = curate("inspect", root / "scores", "--config", root / "curate.toml", "--out", root / "page", "--images", 8)
    assert done.code == 0, done.err
    assert done.out.strip() == str(root / "page" / "index.html")
    return root, changed


def test_wrong_labels_and_their_precision(flipped):
    root, changed = flipped
    rows = duckdb.sql(
        f"SELECT shard, key, label, predicted, loss FROM read_parquet('{root}/scores/*/*/*.parquet') "
        "WHERE predicted <> label ORDER BY loss DESC"
    ).fetchall()
    page = Page(root / "page/index.html")
    table = page.table("Measured")
    assert table[0] == ["k", "precision", "share of all wrong labels"]
    for k, precision, recall in table[1:]:
        found = [(shard, key) in changed for shard, key, *_ in rows[: int(k.replace(",", ""))]]
        assert precision == f"{np.mean(found) * 100:.1f} %"
        assert recall == f"{sum(found) / len(changed) * 100:.1f} %"
    assert int(table[-1][0]) == len(rows)
    heads = [lines[0] for attrs, lines in page.images if " predicted " in lines[0]]
    assert heads == [f"{label}; predicted {predicted}" for _, _, label, predicted, _ in rows[:8]]
    pairs = {(a, b): int(n) for a, b, n, _ in page.table("Most frequent pairs")[1:]}
    for (label, predicted), n in pairs.items():
        assert n == sum((str(r[2]), str(r[3])) == (label, predicted) for r in rows)


def test_what_a_filter_would_drop_by_class(flipped):
    root, _ = flipped
    rows = duckdb.sql(
        f"SELECT label, loss FROM read_parquet('{root}/scores/*/*/*.parquet') ORDER BY loss, shard, row"
    ).fetchall()
    table = Page(root / "page/index.html").table("By class")
    assert table[0][-3:] == ["dropped at 30 %", "dropped at 50 %", "dropped at 80 %"]
    labels = np.array([label for label, _ in rows])
    assert sorted(line[0] for line in table[1:]) == [str(i) for i in range(10)]
    for name, n, *_, low, half, high in table[1:]:
        mine = labels == int(name)
        assert int(n) == mine.sum()
        for shown, share in ((low, 0.3), (half, 0.5), (high, 0.8)):
            kept = round(len(rows) * (1 - share), 6)
            assert shown == f"{np.mean(np.flatnonzero(mine) >= kept) * 100:.1f} %"


def test_the_page_opens_alone_and_its_images_are_small(flipped):
    path = flipped[0] / "page/index.html"
    seen, page = Seen(), Page(path)
    seen.feed(page.text)
    assert not seen.links, "nothing is fetched"
    assert not re.findall(r"url\((?!#)", page.text)
    assert len(page.images) == 24
    for attrs, lines in page.images:
        assert attrs["alt"].startswith("image of ") and lines
        content = base64.b64decode(attrs["src"].partition(",")[2])
        assert Image.open(io.BytesIO(content)).size == (96, 96)
        assert len(content) < 20_000
    drawn = {p.stem for p in (path.parent / "plots").glob("*.png")}
    assert drawn == {"losses", "losses_by_group"}
    assert [h for h in page.headings if h in ("Likely wrong labels", "What a filter would drop")]


@pytest.mark.parametrize(("most", "said"), [(10, ""), (8, "Of 10 groups the 8 with the lowest and highest median")])
def test_many_groups_are_cut_to_both_ends_and_that_is_said(flipped, tmp_path, monkeypatch, most, said):
    root, _ = flipped
    monkeypatch.setattr("curate.reports.inspect_scores.MOST_GROUPS", most)
    options = InspectOptions(out=str(tmp_path / "page"), images=1)
    page = Page(Path(inspect(str(root / "scores"), None, options, load_config(root / "curate.toml"), silent)))
    assert said in page.text and ("groups the" in page.text) == bool(said)
    (caption,) = [caption for caption in page.tables if caption.startswith("By class")]
    assert ("; of 10, those" in caption) == bool(said)
    dropped = [float(row[5].removesuffix(" %")) for row in page.tables[caption][1:]]
    assert len(dropped) == most and dropped == sorted(dropped, reverse=True)


def test_a_sample_is_whole_shards_and_is_said(flipped, tmp_path):
    root, _ = flipped
    config = load_config(root / "curate.toml")
    data, table = find_data("flipped", None, config), open_scores(str(root / "scores"))
    with connect() as connection:
        rows = add_rows(connection, "rows", table, data, rows=200, image_bytes=1)
        counted = connection.execute("SELECT shard, count(*) FROM rows GROUP BY shard").fetchall()
        imaged = connection.execute("SELECT DISTINCT shard FROM rows WHERE imaged").fetchall()
    whole = duckdb.sql(f"SELECT shard, count(*) FROM '{table.folder}/*.parquet' GROUP BY shard").fetchall()
    assert set(counted) < set(whole)
    assert sum(n for _, n in counted) == rows.read >= 200
    assert len(imaged) == 1
    assert f"{rows.read:,} of 900 scored examples" in rows.sample_line()
    assert f"1 of {len(counted)} shards" in rows.image_line()


def test_data_that_is_gone_leaves_a_page_without_images(flipped, tmp_path):
    root, _ = flipped
    (tmp_path / "curate.toml").write_text("")
    done = curate("inspect", root / "scores", "--config", tmp_path / "curate.toml", "--out", tmp_path / "page")
    assert done.code == 0, done.err
    page = Page(tmp_path / "page/index.html")
    assert not page.images
    assert "class 3" in page.text and "Images are not shown" in page.text


def test_where_two_references_disagree(flipped, digits):
    root, _ = flipped
    other = root / "other"
    table = open_scores(str(root / "scores"))
    shutil.copytree(table.folder, other)
    for file in sorted(other.glob("*.parquet"))[:1]:
        content = pq.read_table(file)
        losses = content["loss"].to_numpy().copy()
        worst = int(losses.argmin())
        losses[worst] = 99.0
        content = content.set_column(
            content.schema.get_field_index("loss"), content.schema.field("loss"), pa.array(losses)
        )
        pq.write_table(content, file)
        name = (content["shard"][worst].as_py(), content["key"][worst].as_py())
    done = curate(
        "inspect", table.folder, other, "--config", root / "curate.toml", "--out", root / "pair", "--images", 4
    )
    assert done.code == 0, done.err
    page = Page(root / "pair/index.html")
    assert page.tiles["examples in both"] == "900"
    a, b = (
        duckdb.sql(f"SELECT loss FROM '{folder}/*.parquet' ORDER BY shard, row").fetchnumpy()["loss"]
        for folder in (table.folder, other)
    )
    ranks = [values.argsort().argsort() for values in (a, b)]
    assert float(page.tiles["rank correlation of the losses"]) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=2e-3)
    assert page.images[0][0]["alt"] == f"image of {name[0]} / {name[1]}"
    done = curate("inspect", table.folder, digits.table, "--config", root / "curate.toml", "--out", root / "pair")
    assert done.code == 1 and "give two tables of one data set" in done.error


@pytest.fixture(scope="module")
def captioned(pairs, tmp_path_factory):
    root = tmp_path_factory.mktemp("captioned")
    score_reference(pairs.options(root / "scores", embeddings=True), silent)
    toml = pairs.root / "curate.toml"
    done = curate("inspect", root / "scores", "--config", toml, "--out", root / "page", "--similar", "0.9999")
    assert done.code == 0, done.err
    return root


def test_captions_that_fit_nothing_and_near_duplicates(captioned, pairs):
    page = Page(captioned / "page/index.html")
    rows = duckdb.sql(
        f"SELECT key, similarity, image_embedding FROM read_parquet('{captioned}/scores/*/*/*.parquet') ORDER BY similarity"
    ).fetchall()
    shown = [lines[0] for _, lines in page.images]
    assert shown[:24] == [pairs.captions[key] for key, *_ in rows[:24]]
    vectors = np.array([row[2] for row in rows], dtype=np.float64)
    close = np.triu(vectors @ vectors.T >= 0.9999, 1)
    assert (page.tiles["repeat another image, nearly"] == "0.0 %") == (not close.any())
    assert "All 60 images were compared with each other" in page.text.replace("\xa0", " ")
    assert not any("label" in heading for heading in page.headings)


def test_what_a_run_chose(digits, tmp_path):
    run = tmp_path / "runs/one"
    (run / "selections").mkdir(parents=True)
    (run / "config.json").write_text('{"dataset": "digits", "policy": "learnability"}')
    (run / "manifest.json").write_text(f'{{"score_table": {{"folder": "{digits.table}"}}}}')
    scored = duckdb.sql(f"SELECT shard, key, label FROM '{digits.table}/*.parquet' ORDER BY ALL").fetchall()
    shard, key, label = zip(*(scored * 2), strict=True)
    rows = len(key)
    selected = [one == 3 for one in label]
    pq.write_table(
        pa.table(
            {
                "step": pa.array(np.repeat(np.arange(1, 11), rows // 10), pa.int32()),
                "shard": shard,
                "key": key,
                "online_loss": pa.array([1.0] * rows, pa.float32()),
                "reference_loss": pa.array([None] * rows, pa.float32()),
                "score": pa.array([float(i % len(scored)) for i in range(rows)], pa.float32()),
                "selected": selected,
            }
        ),
        run / "selections/000000001-000000010.parquet",
    )
    done = curate("inspect", run, "--config", digits.toml, "--out", tmp_path / "page", "--images", 5)
    assert done.code == 0, done.err
    page = Page(tmp_path / "page/index.html")
    table = page.table("By class")
    assert table[1][0] == digits.dataset().classes[3]
    assert table[1][3] == "100.0 %" and {line[3] for line in table[2:]} == {"0.0 %"}
    assert int(table[1][1]) == label.count(3)
    most, least = page.images[:5], page.images[5:]
    assert all(lines[0] == digits.dataset().classes[3] for _, lines in most)
    assert all(lines[0] != digits.dataset().classes[3] for _, lines in least) and len(least) == 5
    hits = [i for i, row in enumerate(scored) if row[2] == 3]
    others = [i for i, row in enumerate(scored) if row[2] != 3]
    wanted = hits[:-6:-1] + others[:5]  # all were drawn equally often: by score
    assert [image["alt"] for image, _ in page.images] == [f"image of {scored[i][0]} / {scored[i][1]}" for i in wanted]
    assert f"chosen 2 of 2 times<br>score {hits[-1]:#.3g}" in page.text
    assert {p.stem for p in (tmp_path / "page/plots").glob("*.svg")} == {"by_class", "online_loss"}
    done = curate("inspect", run, "--config", digits.toml, "--out", tmp_path / "page", "--rows", rows // 5)
    assert done.code == 0, done.err
    assert "2 of 10 recorded steps, every 5th" in (tmp_path / "page/index.html").read_text()
    assert "What the run one chose of digits by the policy learnability." in Page(tmp_path / "page/index.html").text


def test_a_file_where_the_folder_must_be_is_one_line(digits, tmp_path):
    (tmp_path / "f").write_text("a file")
    done = curate("inspect", digits.table, "--config", digits.toml, "--images", 0, "--out", tmp_path / "f")
    assert done.code == 1 and "f: cannot be written" in done.error


def test_each_page_has_a_folder_of_its_own_or_takes_the_place_of_another_wholly(digits, tmp_path, monkeypatch):
    """Two pages of the default; and one whose folder holds the page of something else, with other plots."""
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "scores/dataset=digits/reference=other-0123abcd"
    shutil.copytree(digits.table, copy)
    quick = ("--config", digits.toml, "--images", 0)
    written = [curate("inspect", *tables, *quick) for tables in ([copy], [digits.table, copy])]
    name = str(digits.table).rpartition("reference=")[2]
    assert [done.out.strip() for done in written] == [
        "inspect/digits-other-0123abcd/index.html",
        f"inspect/digits-{name}-vs-digits-other-0123abcd/index.html",
    ]
    assert not any("in place of" in done.err for done in written)
    page = tmp_path / written[0].out.strip()
    before = {path.name for path in page.parent.glob("plots/*")}
    (page.parent / "plots/mine.svg").write_text("")
    done = curate("inspect", digits.table, copy, *quick, "--out", page.parent)
    assert f"{page}: in place of the page that was there" in done.err
    after = {path.name for path in page.parent.glob("plots/*")}
    assert "losses.svg" in before - after and "mine.svg" in after


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["nowhere", "--dataset", "unknown-set"], "nowhere: no such folder"),
        (["TABLE", "--dataset", "unknown-set"], "unknown data set 'unknown-set'"),
        (["TABLE", "--dataset", "cut"], "none of its shards is one of data set 'cut' (by name and size)"),
        (["TABLE", "--images", "501"], "--images is 501"),
        (["TABLE", "--out", "s3://bucket/page"], "a URL"),
        (["TABLE", "--similar", "0"], "--similar is 0"),
        (["RUN"], "recorded no selections"),
        (["RUN", "TABLE"], "is a run"),
        (["TABLE", "--dataset", "digits-curated"], "data set 'digits-curated' has none of the"),
        ([""], "WHAT is empty; give a value"),
        (["FILE"], "curate.toml: is a file; give the folder of a score table"),
    ],
)
def test_what_is_refused(digits, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    shutil.copy(digits.toml, tmp_path / "curate.toml")
    cut = write_tar(tmp_path / "00000.tar", [("0.png", b""), ("0.cls", b"0")])
    (tmp_path / "data").symlink_to(digits.root / "data")
    add_dataset(tmp_path / "curate.toml", "cut", {**digits.config.datasets["digits"], "train": str(cut)})
    named = {"TABLE": digits.table, "RUN": digits.reference, "FILE": digits.toml}
    done = curate("inspect", *(named.get(a, a) for a in arguments), "--config", tmp_path / "curate.toml")
    assert done.code == 1 and said in done.error


def test_words_are_left_aligned_and_figures_are_not():
    table = Table("pairs", ("label", "predicted", "gain"), [("cat", "dog", "-"), ("dog", "cat", "+3")])
    html = page_html(InspectPage("", "", [], [Section("", "", [table])], {}), {}, {})
    assert "<th scope=col class=words>predicted</th><th scope=col>gain</th>" in html
    assert "<td class=words>dog</td><td>-</td>" in html


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)")
def test_in_a_real_browser_nothing_runs_off_the_side(captioned, tmp_path):
    probe, widths = tmp_path / "probe.html", (390, 1280)
    shutil.copy(captioned / "page/index.html", tmp_path / "index.html")
    frames = "".join(f'<iframe src=index.html width={width} height=800 style="border:0"></iframe>' for width in widths)
    seen = "d.documentElement.scrollWidth+' '+[...d.images].filter(i=>i.naturalWidth==96).length"
    every = "[...document.querySelectorAll('iframe')].map(f=>f.contentDocument)"
    script = f"document.title={every}.map(d=>{seen}).join(' ')"
    probe.write_text(f'<body onload="{script}">{frames}</body>')
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}/profile", "--allow-file-access-from-files", "--dump-dom"]
    done = subprocess.run([*command, probe.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", done.stdout)
    assert found, done.stdout[:500]
    phone, seen_phone, desk, seen_desk = map(int, found.groups())
    assert phone <= widths[0] and desk <= widths[1]
    assert seen_phone == seen_desk == len(Page(captioned / "page/index.html").images) > 0


def test_shards_that_changed_are_not_shown(flipped, tmp_path):
    root, _ = flipped
    shutil.copytree(root, tmp_path / "work")
    for tar in (tmp_path / "work").glob("train/*.tar"):
        with tar.open("ab") as file:
            file.write(bytes(512))
    toml = tmp_path / "work/curate.toml"
    done = curate("inspect", root / "scores", "--config", toml, "--out", tmp_path / "page")
    assert done.code == 0, done.err
    page = Page(tmp_path / "page/index.html")
    assert not page.images and "has other shards now than were scored" in page.text


def test_a_page_of_another_kind_stays(digits, tmp_path):
    (tmp_path / "index.html").write_text("<title>My site</title>")
    told = curate("inspect", digits.table, "--config", digits.toml, "--out", tmp_path)
    assert told.code == 1 and "index.html: is there, and is no page of curate inspect; move it" in told.error
    assert (tmp_path / "index.html").read_text() == "<title>My site</title>"
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]
