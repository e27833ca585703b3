import io
import json
import tarfile
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from curate.datasets import find_dataset, load_config
from curate.datasets.preparers import clipart, emoji, fetch, icons, prepare
from curate.datasets.preparers.clipart import Naming, clip_art_caption, naming_of
from curate.datasets.preparers.emoji import caption_of, concept_of, drawings_of, held_out_concepts
from curate.datasets.preparers.iconify import Emoji, emoji_of, normal_code_point, read_icon_sets, svg_of
from curate.datasets.preparers.render import Drawing, Rendered, render, render_all, render_or_reason
from curate.datasets.preparers.writer import encode_png
from curate.errors import FetchError
from PIL import Image
from support.commands import silent

pytest.importorskip("resvg_py")

RED_SQUARE = '<path fill="#f00" d="M0 0h16v16H0z"/>'


def png_of(size, mode="RGB", colour: object = "blue") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format="PNG")  # type: ignore[arg-type]
    return buffer.getvalue()


def icon_set(prefix="set", names=("one",), chars=None, category="UI", palette=True, licence="MIT", **extra):
    info = {"palette": palette, "category": category, "license": {"spdx": licence}}
    bodies = {name: {"body": RED_SQUARE} for name in names}
    return {"prefix": prefix, "info": info, "icons": bodies, "chars": chars or {}, **extra}


def an_emoji(label, code_point="1f600", tags=(), group=0) -> Emoji:
    return Emoji(code_point, label, tuple(tags), group)


CUT = encode_png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[:6000]

# Rendering


def test_an_svg_is_drawn_whole_and_centred_on_white():
    wide = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20"><path fill="#f00" d="M0 0h40v20H0z"/></svg>'
    pixels = np.asarray(render(wide, 64))
    assert pixels.shape == (64, 64, 3)
    assert (pixels[17:47] == (255, 0, 0)).all()
    assert (pixels[:15] == 255).all() and (pixels[49:] == 255).all()


def test_an_svg_measured_in_points_is_drawn():
    points = b'<svg xmlns="http://www.w3.org/2000/svg" width="12pt" height="12pt"><path d="M0 0h16v16H0z"/></svg>'
    assert (np.asarray(render(points, 8)) == 0).all()


def test_a_png_is_composited_on_white_and_keeps_its_aspect():
    pixels = np.asarray(render(png_of((30, 90), "RGBA", (0, 0, 255, 128)), 60))
    assert (pixels[:, :19] == 255).all() and (pixels[:, 41:] == 255).all()
    assert np.abs(pixels[30, 30].astype(int) - (127, 127, 255)).max() <= 1


def test_an_icon_that_is_not_square_keeps_its_own_size_and_place():
    one = icon_set(names=(), width=16, height=16)
    one["icons"]["wide"] = {"body": '<path fill="#f00" d="M10 0h20v10H10z"/>', "width": 20, "height": 10, "left": 10}
    pixels = np.asarray(render(svg_of(one, "wide"), 64))
    assert (pixels[17:47] == (255, 0, 0)).all() and (pixels[:15] == 255).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"<svg>", "ValueError"), (b"\x89PNG\r\n\x1a\nhalf", "UnidentifiedImageError"), (CUT, "truncated")],
)
def test_what_cannot_be_rendered_gives_its_reason(content, reason):
    png, blank, why = render_or_reason(content)
    assert (png, blank) == (b"", False) and reason in why


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_from_its_header():
    header = png_of((1, 1))
    width_and_height = (20_000).to_bytes(4, "big") + (5_000).to_bytes(4, "big")
    bomb = header[:16] + width_and_height + header[24:29]
    bomb += zlib.crc32(bomb[12:29]).to_bytes(4, "big") + header[33:]
    assert "20000x5000 pixels" in render_or_reason(bomb)[2]


def test_the_pool_keeps_the_order_and_notes_what_it_skips():
    colours = [(i, 255 - i, 7) for i in range(150)]
    drawings = [Drawing(f"k{i}", "", png_of((64, 64), "RGB", colour)) for i, colour in enumerate(colours)]
    drawings[70] = Drawing("k70", "", b"nothing")
    skipped: list[tuple[str, str]] = []
    rendered = list(render_all(drawings, silent, skipped))
    assert [key for key, _ in skipped] == ["k70"]
    seen = {one.drawing.key: Image.open(io.BytesIO(one.png)).getpixel((9, 9)) for one in rendered}
    assert seen == {f"k{i}": colour for i, colour in enumerate(colours) if i != 70}
    assert all(one.blank for one in rendered)


# Emoji


def test_code_points_join_with_and_without_the_variation_selector():
    assert normal_code_point("2764-FE0F-200D-1F525") == "2764-200d-1f525"


def test_components_and_letters_are_no_emoji():
    entry = {"hexcode": "1F600", "label": "grinning face", "tags": ["joy"], "group": 0, "skins": []}
    rest = [{"hexcode": "1F1E6", "label": "letter A"}, {"hexcode": "1F3FB", "label": "light skin tone", "group": 2}]
    assert emoji_of([entry, *rest]) == [an_emoji("grinning face", tags=["joy"])]


@pytest.mark.parametrize(
    ("label", "concept"),
    [
        ("woman running facing right", "running"),
        ("person running", "running"),
        ("men with bunny ears", "with bunny ears"),
        ("man", "man"),
        ("flag: France", "flag france"),
        ("boy", "boy"),
    ],
)
def test_who_is_shown_makes_no_concept(label, concept):
    assert concept_of(label) == concept


def test_captions_add_telling_tags_and_differ_between_vendors():
    coffee = an_emoji("hot beverage", tags=["hot", "<3", "coffee", "tea", "steaming", "cafe", "morning"])
    captions = {vendor: caption_of(coffee, vendor) for vendor in emoji.VENDORS}
    assert len(set(captions.values())) > 1
    for caption in captions.values():
        name, *tags = caption.split(", ")
        assert (
            name == "hot beverage" and len(tags) == 2 and set(tags) <= {"coffee", "tea", "steaming", "cafe", "morning"}
        )
    assert caption_of(an_emoji("key", tags=["key"]), "noto") == "key"


def test_train_and_test_share_neither_concept_nor_vendor():
    all_emoji = [
        an_emoji(f"{who} {thing}", f"{i:x}-{j:x}", group=i % 2)
        for i, thing in enumerate(f"thing{n}" for n in range(40))
        for j, who in enumerate(("man", "woman"))
    ]
    held_out = held_out_concepts(all_emoji)
    assert len(held_out) == 6
    assert sum(int(concept.removeprefix("thing")) % 2 for concept in held_out) == 3
    names = {one.code_point: one.label for one in all_emoji}
    found: dict[str, list[Drawing]] = {"train": [], "test": []}
    for vendor in emoji.VENDORS:
        for split, drawing in drawings_of(icon_set(vendor, names.values(), names), all_emoji, held_out):
            found[split].append(drawing)
    assert len(found["train"]) == 3 * 34 * 2 and len(found["test"]) == 6 * 2
    for field in ("vendor", "concept"):
        assert not {d.known[field] for d in found["train"]} & {d.known[field] for d in found["test"]}


def test_emoji_end_to_end_on_a_small_package(tmp_path, monkeypatch):
    things = [{"hexcode": f"{0x1F600 + i:X}", "label": f"thing{i}", "tags": ["tag"], "group": i % 2} for i in range(20)]
    names = {f"{0x1F600 + i:x}": f"thing{i}" for i in range(20)}
    files = {f"package/json/{v}.json": icon_set(v, names.values(), names) for v in (*emoji.VENDORS, "other")}
    archive = tmp_path / "both.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in {**files, "package/en/data.json": things}.items():
            data = json.dumps(content).encode()
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    monkeypatch.setattr(emoji, "fetch", lambda package, report: archive)
    prepare("emoji", tmp_path / "data", tmp_path / "curate.toml", report=silent)
    spec = find_dataset("emoji", load_config(tmp_path / "curate.toml"))
    assert (spec.task, spec.text, spec.label, len(spec.classes)) == ("image-text", "txt", "cls", 9)
    train, test = (list(wds.WebDataset(split, shardshuffle=False)) for split in (spec.train[0], spec.test[0]))
    assert (len(train), len(test)) == (3 * 17, 3)
    assert "cls" not in train[0] and {len(one["txt"].split(b", ")) for one in train} == {2}
    for one in test:
        number = int(one["txt"].split(b",")[0].removeprefix(b"thing"))
        assert spec.classes[int(one["cls"])] == emoji.GROUPS[number % 2]
    known = pq.read_table(spec.analysis).to_pydict()
    assert known["key"] == [one["__key__"] for one in train] and set(known["vendor"]) == {*emoji.VENDORS} - {"twemoji"}

    with pytest.raises(FetchError, match="has no set absent"):
        list(read_icon_sets(archive, ["noto", "absent"]))


# Icons and clip art


@pytest.mark.parametrize(
    ("palette", "licence", "taken"),
    [
        (True, "MIT", True),
        (False, "MIT", False),
        (True, "CC-BY-NC-4.0", False),
        (True, "GPL-3.0", False),
        (True, "LGPL-2.1-only", False),
        (True, None, False),
        (True, "CC-BY-SA-4.0", True),
    ],
)
def test_sets_without_colour_or_under_nc_or_gpl_are_left_out(palette, licence, taken):
    assert icons.is_colour(icon_set(palette=palette, licence=licence)) is taken


def test_icons_are_captioned_by_name_and_hidden_ones_left_out():
    one = icon_set("logos", ("red-bus-24", "old"))
    one["icons"]["old"]["hidden"] = True
    (drawing,) = icons.drawings_of(one, frozenset())
    assert (drawing.key, drawing.caption, drawing.known["source"]) == ("logos--red-bus-24", "red bus 24", "logos")


def test_name_only_emoji_come_in_only_where_they_surely_draw_a_trained_concept():
    all_emoji = [
        an_emoji("grinning face", "1f600"),
        an_emoji("man dancing", "1f57a"),
        an_emoji("woman dancing", "1f483"),
    ]
    vendor = icon_set("noto", (), {"1f483": "dancer", "1f600": "grin", "2605": "black-star"}, "Emoji")
    allowed = icons.trained_names(all_emoji, {"dancing"}, [vendor])
    assert allowed == {"grinningface", "grin"}
    redrawn = icon_set("fxemoji", ("grinningface", "grin", "dancer", "man-dancing", "mystery"), None, "Emoji")
    assert [d.caption for d in icons.drawings_of(redrawn, allowed)] == ["grinningface", "grin"]
    for prefix in ("noto", "emojione-monotone"):
        assert not list(icons.drawings_of(icon_set(prefix, ("grin",), None, "Emoji"), allowed))


def test_keys_have_no_dots_or_slashes_and_stay_apart():
    keys = {icons.key_of("openclipart", name) for name in ("a/b", "a-b", "a.b", "x" * 200, "x" * 201, "x" * 199 + "/")}
    assert len(keys) == 6 and all(len(key) <= 80 and not set("./") & set(key) for key in keys)
    assert icons.key_of("logos", "a-b") == "logos--a-b"


def test_blank_pictures_do_not_reach_the_test_split():
    skipped: list[tuple[str, str]] = []
    rendered = [Rendered(Drawing(key, "", b""), b"", key == "empty") for key in ("full", "empty")]
    assert [one.drawing.key for one in icons.without_blank(rendered, skipped)] == ["full"]
    assert skipped[0][0] == "empty"


SVG = """<svg><title>not this</title><metadata><cc:Work>
<dc:publisher><cc:Agent><dc:title>Library</dc:title></cc:Agent></dc:publisher>
<dc:title>Cat &amp; \n dog</dc:title>{description}
<dc:subject><rdf:Bag><rdf:li>cat</rdf:li><rdf:li></rdf:li><rdf:li>pet</rdf:li></rdf:Bag></dc:subject>
</cc:Work></metadata><unclosed></svg>"""


def test_names_are_read_from_metadata_that_is_not_well_formed():
    described = naming_of(SVG.format(description="<dc:description>Two <b>pets</b></dc:description>").encode())
    assert described == Naming("Cat & dog", "Two pets", ("cat", "pet"))
    assert naming_of(SVG.format(description="<dc:description/>").encode()).description == ""
    assert naming_of(b"<svg/>") == Naming("", "", ())


@pytest.mark.parametrize(
    ("title", "description", "caption"),
    [
        ("Cat", "It sleeps", "Cat. It sleeps"),
        ("Cat", "cat", "Cat"),
        ("", "It sleeps", "It sleeps"),
        ("", "", "cat asleep 01"),
        ("x" * 400, "", "x" * 300),
    ],
)
def test_clip_art_captions(title, description, caption):
    assert clip_art_caption(Naming(title, description, ()), "animals/cat-asleep_01") == caption


def test_clip_art_joins_by_path_through_links_and_stamps_take_the_first_line(tmp_path, monkeypatch):
    def fake(members):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for name, content in members.items():
                header = tarfile.TarInfo(name)
                if isinstance(content, str):
                    header.type, header.linkname = tarfile.SYMTYPE, content
                    tar.addfile(header)
                else:
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))
        return path

    as_tgz = fetch.Package(registry="npm", name="fake", version="1")
    original = clipart.open_package
    monkeypatch.setattr(clipart, "open_package", lambda package, path: original(as_tgz, path))
    svg, png = "./usr/share/openclipart/svg/", "./usr/share/openclipart/png/"
    names = fake({svg + "a/cat.svg": SVG.format(description="").encode(), svg + "b/pet.svg": "../a/cat.svg"})
    pictures = fake(
        {png + "a/cat.png": b"1", png + "b/pet.png": b"2", png + "c/lone_one.png": b"3", png + "d.png": "a/cat.png"}
    )
    found = [(one.path, one.content, one.caption) for one in clipart.read_clip_art(pictures, names)]
    assert found == [("a/cat", b"1", "Cat & dog"), ("b/pet", b"2", "Cat & dog"), ("c/lone_one", b"3", "lone one")]

    root = "./usr/share/tuxpaint/stamps/"
    stamps = fake(
        {
            root + "x/bee.svg": b"svg",
            root + "x/bee.png": b"png",
            root + "x/bee.txt": "A bee.\nfr=…\n".encode(),
            root + "x/mute.png": b"png",
            root + "x/ant.svg": b"svg",
            root + "x/ant.txt": b"An ant.",
        }
    )
    assert [(one.path, one.content, one.caption) for one in clipart.read_stamps(stamps)] == [
        ("x/ant", b"svg", "An ant."),
        ("x/bee", b"png", "A bee."),
    ]
