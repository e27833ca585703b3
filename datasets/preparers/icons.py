"""Icons and clip art with the names that their authors gave them: the noisy web in miniature, for image-text.

Train: the colour icon sets of Iconify (caption: the icon's name, hyphens to spaces), Open Clip Art (caption: title and
description), and emoji that have only a name. Of the emoji, only drawings whose name certainly belongs to a concept that
the `emoji` data set trains on, so that no image shows a held-out concept.
Test: Tux Paint's stamps, each with a hand-written sentence. All are drawings; hardly any is a photograph.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...units import Report
from ..targets import CAPTION
from .clipart import CLIP_ART_NAMES, CLIP_ART_PICTURES, STAMPS, Captioned, read_clip_art, read_stamps
from .emoji import VENDORS, concept_of, held_out_concepts, written
from .fetch import Package, fetch, provenance
from .iconify import EMOJIBASE, ICONS, Emoji, normal_code_point, read_emoji, read_icon_sets, svg_of
from .render import Drawing, Rendered, render_all
from .writer import Count, seeded_order, shard_pattern, write_analysis, write_shards

VERSION = 1
SEED = "curate-icons"
NAME_ONLY_EMOJI = ("noto-v1", "emojione", "emojione-v1", "fxemoji", "streamline-emojis", "fluent-emoji")
LONGEST_KEY = 80


def build(folder: Path, report: Report) -> dict[str, Any]:
    """Render and write train and test into `folder`; returns what prepared.json keeps, with the skipped images."""
    packages: list[Package] = [ICONS, EMOJIBASE, CLIP_ART_PICTURES, CLIP_ART_NAMES, STAMPS]
    paths = {package: fetch(package, report) for package in packages}
    report("icons: reading the icon sets")
    sets = [icon_set for icon_set in read_icon_sets(paths[ICONS]) if is_colour(icon_set)]
    emoji = read_emoji(paths[EMOJIBASE])
    allowed = trained_names(emoji, held_out_concepts(emoji), [s for s in sets if s["prefix"] in VENDORS])
    train = [drawing for icon_set in sets for drawing in drawings_of(icon_set, allowed)]
    report("icons: reading the clip art")
    train += clip_art_drawings("openclipart", read_clip_art(paths[CLIP_ART_PICTURES], paths[CLIP_ART_NAMES]))
    test = list(clip_art_drawings("tuxpaint", read_stamps(paths[STAMPS])))
    del sets
    counts: dict[str, Count] = {}
    skipped: list[tuple[str, str]] = []
    for split, drawings in (("train", train), ("test", test)):
        by_key = {drawing.key: drawing for drawing in drawings}
        assert len(by_key) == len(drawings), "two images have one key"
        shuffled = [by_key[key] for key in seeded_order(by_key, SEED)]
        report(f"icons: rendering {len(shuffled):,} images for {split}")
        columns: dict[str, list[Any]] = {}
        rendered = render_all(shuffled, report, skipped)
        # The bulk keeps white logos on white, as a crawl of the web would; a test image must show something.
        usable = without_blank(rendered, skipped) if split == "test" else rendered
        counts[split], placed = write_shards(folder / split, written(usable, columns))
        write_analysis(folder / "analysis" / f"{split}.parquet", placed, columns)
    report(f"icons: {len(skipped)} images could not be used; prepared.json says which and why")
    return {"packages": [provenance(p, paths[p]) for p in packages], "counts": counts, "skipped": skipped}


def entries(root: str, counts: Mapping[str, Count]) -> dict[str, dict[str, Any]]:
    """The table of curate.toml; `root` is the prepared folder as that file names it."""
    return {
        "icons": {
            "train": shard_pattern(f"{root}/train", counts["train"]),
            "test": shard_pattern(f"{root}/test", counts["test"]),
            "task": CAPTION.task,
            "image": "png",
            "text": "txt",
            "analysis": f"{root}/analysis/train.parquet",
            "description": "icons and clip art with their authors' names; tested on Tux Paint's stamps and sentences",
        }
    }


def is_colour(icon_set: Mapping[str, Any]) -> bool:
    """Whether a set is in colour and has a licence without NC and GPL terms."""
    info = icon_set["info"]
    return bool(info.get("palette")) and not re.search(r"\bNC\b|GPL", info["license"].get("spdx") or "NC")


def squashed(name: str) -> str:
    """Letters and digits only: `grinning-face` and `grinningface` are one name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def trained_names(emoji: Iterable[Emoji], held_out: set[str], vendors: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Squashed names, emojibase's and the vendors' own, that can only mean a concept that `emoji` trains on."""
    concepts = {one.code_point: concept_of(one.label) for one in emoji}
    named = [(squashed(one.label), concepts[one.code_point]) for one in emoji]
    named += [
        (squashed(name), concepts[normal_code_point(code_point)])
        for icon_set in vendors
        for code_point, name in icon_set["chars"].items()
        if normal_code_point(code_point) in concepts
    ]
    unsafe = {name for name, concept in named if concept in held_out}
    return frozenset(name for name, _ in named) - unsafe


def drawings_of(icon_set: Mapping[str, Any], allowed_emoji: frozenset[str]) -> Iterator[Drawing]:
    """The icons of a set that the bulk takes: all of an icon set, the safe ones of name-only emoji, no others."""
    prefix, info = icon_set["prefix"], icon_set["info"]
    only_allowed = prefix in NAME_ONLY_EMOJI
    if prefix in VENDORS or (info.get("category") == "Emoji" and not only_allowed):
        return
    known = {
        "source": prefix,
        "category": info.get("category") or "",
        "licence": info["license"]["spdx"],
        "keywords": "",
    }
    for name, icon in icon_set["icons"].items():
        if icon.get("hidden") or (only_allowed and squashed(name) not in allowed_emoji):
            continue
        yield Drawing(key_of(prefix, name), name.replace("-", " "), svg_of(icon_set, name), known)


def clip_art_drawings(source: str, pictures: Iterable[Captioned]) -> Iterator[Drawing]:
    """Clip art or stamps; the keywords go to the analysis file alone."""
    licence = {"openclipart": "CC-PDDC", "tuxpaint": "various"}[source]
    for one in pictures:
        keywords = ", ".join(one.keywords)
        known = {"source": source, "category": one.path.split("/")[0], "licence": licence, "keywords": keywords}
        yield Drawing(key_of(source, one.path), one.caption, one.content, known)


def without_blank(rendered: Iterable[Rendered], skipped: list[tuple[str, str]]) -> Iterator[Rendered]:
    """The images that are not blank; the others go to `skipped`."""
    for one in rendered:
        if one.blank:
            skipped.append((one.drawing.key, "blank: every pixel has one colour"))
        else:
            yield one


def key_of(source: str, name: str) -> str:
    """A key without dots or slashes that fits a tar header; a hash distinguishes names whose plain forms are equal."""
    plain = f"{source}--" + re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    if plain == f"{source}--{name}" and len(plain) <= LONGEST_KEY:
        return plain
    return f"{plain[: LONGEST_KEY - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
