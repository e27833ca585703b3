"""Emoji of four vendors with emojibase's names: a small clean image-text set, for references.

The split is by concept: the man, the woman and the person who run are one concept, whichever vendor draws them. 15 % of
the concepts and one vendor are held out. Train has the other vendors' drawings of the other concepts. Test has the held-out
vendor's drawings of the held-out concepts, so that training has seen neither the style nor the concept.
A caption is the emoji's name and two of its tags, different ones for each vendor: `hot beverage, steaming, coffee`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...units import Report
from ..targets import CAPTION
from .fetch import fetch, provenance
from .iconify import EMOJIBASE, ICONS, Emoji, normal_code_point, read_emoji, read_icon_sets, svg_of
from .render import Drawing, Rendered, render_all
from .writer import Count, seeded_order, shard_pattern, stratified_split, write_analysis, write_shards

VERSION = 1
SEED = "curate-emoji"
VENDORS = ("fluent-emoji-flat", "noto", "openmoji", "twemoji")
HELD_OUT_VENDOR = "twemoji"
HELD_OUT_SHARE = 0.15
TAGS_IN_CAPTION = 2
# Emojibase's groups without its second, the parts of emoji. The position in this tuple is the class.
GROUPS = {
    0: "smileys and emotion",
    1: "people and body",
    3: "animals and nature",
    4: "food and drink",
    5: "travel and places",
    6: "activities",
    7: "objects",
    8: "symbols",
    9: "flags",
}
CLASSES = tuple(GROUPS.values())
TEMPLATES = ("{}", "a picture of {}.", "an emoji of {}.")
WHO = frozenset(
    ["man", "woman", "men", "women", "person", "people", "boy", "girl", "male", "female", "facing", "right"]
)


def build(folder: Path, report: Report) -> dict[str, Any]:
    """Render and write train and test into `folder`; returns what prepared.json keeps."""
    icons_path, names_path = fetch(ICONS, report), fetch(EMOJIBASE, report)
    report("emoji: joining the vendors' drawings with their names")
    emoji = read_emoji(names_path)
    held_out = held_out_concepts(emoji)
    drawings: dict[str, list[Drawing]] = {"train": [], "test": []}
    for icon_set in read_icon_sets(icons_path, VENDORS):
        for split, drawing in drawings_of(icon_set, emoji, held_out):
            drawings[split].append(drawing)
    counts: dict[str, Count] = {}
    skipped: list[tuple[str, str]] = []
    for split, those in drawings.items():
        ordered = sorted(those, key=lambda drawing: drawing.key)
        by_key = {drawing.key: drawing for drawing in ordered}
        shuffled = [by_key[key] for key in seeded_order(by_key, SEED)]
        report(f"emoji: rendering {len(shuffled):,} images for {split}")
        columns: dict[str, list[Any]] = {}
        examples = written(render_all(shuffled, report, skipped), columns, with_class=split == "test")
        counts[split], placed = write_shards(folder / split, examples)
        write_analysis(folder / "analysis" / f"{split}.parquet", placed, columns)
    packages = [provenance(ICONS, icons_path), provenance(EMOJIBASE, names_path)]
    return {"packages": packages, "counts": counts, "skipped": skipped}


def entries(root: str, counts: Mapping[str, Count]) -> dict[str, dict[str, Any]]:
    """The table of curate.toml; `root` is the prepared folder as that file names it."""
    return {
        "emoji": {
            "train": shard_pattern(f"{root}/train", counts["train"]),
            "test": shard_pattern(f"{root}/test", counts["test"]),
            "task": CAPTION.task,
            "image": "png",
            "text": "txt",
            "label": "cls",
            "classes": list(CLASSES),
            "templates": list(TEMPLATES),
            "analysis": f"{root}/analysis/train.parquet",
            "description": "emoji of three vendors with their names; tested on a fourth vendor's, of other concepts",
        }
    }


def concept_of(label: str) -> str:
    """The label without the person: `woman running facing right` and `person running` are both `running`."""
    words = [word for word in re.findall(r"[^\s:,]+", label.lower()) if word not in WHO]
    return " ".join(words) or label.lower()


def held_out_concepts(emoji: Iterable[Emoji]) -> set[str]:
    """15 % of the concepts, the same share of every group."""
    groups = {concept_of(one.label): one.group for one in sorted(emoji, key=lambda one: one.code_point)}
    concepts = sorted(groups)
    size = round(len(concepts) * HELD_OUT_SHARE)
    held_out, _ = stratified_split([groups[c] for c in concepts], (size, len(concepts) - size), SEED)
    return {concepts[position] for position in held_out}


def caption_of(emoji: Emoji, vendor: str) -> str:
    """The name and two tags that add a word to it, different ones for each vendor; all tags where there are fewer."""
    words = set(re.findall(r"\w+", emoji.label.lower()))
    telling = [tag for tag in emoji.tags if len(tag) > 2 and tag.isascii() and not words & set(tag.lower().split())]
    return ", ".join([emoji.label, *seeded_order(telling, f"{SEED}:{vendor}:{emoji.code_point}")[:TAGS_IN_CAPTION]])


def drawings_of(
    icon_set: Mapping[str, Any], emoji: Iterable[Emoji], held_out: set[str]
) -> Iterator[tuple[str, Drawing]]:
    """A vendor's drawings that are used, with the split that each belongs to; joined by code point."""
    vendor = icon_set["prefix"]
    names = {normal_code_point(code_point): name for code_point, name in icon_set["chars"].items()}
    for one in emoji:
        concept = concept_of(one.label)
        unseen = concept in held_out
        if one.code_point not in names or unseen != (vendor == HELD_OUT_VENDOR):
            continue
        known = {"vendor": vendor, "concept": concept, "group": GROUPS[one.group]}
        content = svg_of(icon_set, names[one.code_point])
        drawing = Drawing(f"{vendor}--{one.code_point}", caption_of(one, vendor), content, known)
        yield ("test" if unseen else "train"), drawing


def written(
    rendered: Iterable[Rendered], columns: dict[str, list[Any]], *, with_class: bool = False
) -> Iterator[dict[str, Any]]:
    """Examples for `write_shards`; `columns` collects their values for the analysis file.

    `with_class` adds `cls`, the position of the drawing's group in CLASSES.
    """
    for one in rendered:
        for name, value in (one.drawing.known | {"blank": one.blank}).items():
            columns.setdefault(name, []).append(value)
        example = {"__key__": one.drawing.key, "png": one.png, "txt": one.drawing.caption.encode()}
        if with_class:
            example["cls"] = str(CLASSES.index(one.drawing.known["group"])).encode()
        yield example
