"""Iconify: 379,000 named vector images of 238 sets by different authors, and emojibase's names for the emoji."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import FetchError
from .fetch import Package, open_package

ICONS = Package(
    registry="npm",
    name="@iconify/json",
    version="2.2.535",
    sha256="1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91",
    megabytes=104,
)
EMOJIBASE = Package(
    registry="npm",
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    megabytes=7,
)
DEFAULT_SIDE = 16


@dataclass(frozen=True)
class Emoji:
    """One emoji without skin tone. `code_point` as `normal_code_point` gives it; `group` is emojibase's number."""

    code_point: str
    label: str
    tags: tuple[str, ...]
    group: int


def read_icon_sets(path: Path, only: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """Each set's JSON (`prefix`, `info`, `icons`, `chars`), in the package's order, all or those of the prefixes."""
    found = set()
    with open_package(ICONS, path) as tar:
        for member in tar:
            match = re.fullmatch(r"package/json/(.+)\.json", member.name)
            if match is None or (only is not None and match[1] not in only):
                continue
            file = tar.extractfile(member)
            assert file is not None
            found.add(match[1])
            yield json.load(file)
    missing = set(only or ()) - found
    if missing or not found:
        raise FetchError(f"{ICONS}: {path} has no set {', '.join(sorted(missing)) or 'at all'}")


def read_emoji(path: Path) -> list[Emoji]:
    """English names and tags of every emoji, without skin tones and without emojibase's parts of emoji."""
    with open_package(EMOJIBASE, path) as tar:
        for member in tar:
            if member.name == "package/en/data.json":
                file = tar.extractfile(member)
                assert file is not None
                return emoji_of(json.load(file))
    raise FetchError(f"{EMOJIBASE}: {path} has no package/en/data.json")


def emoji_of(entries: list[Mapping[str, Any]]) -> list[Emoji]:
    """The emoji among emojibase's entries; letters without a group and components (group 2) are left out."""
    return [
        Emoji(normal_code_point(e["hexcode"]), e["label"], tuple(e.get("tags", ())), int(e["group"]))
        for e in entries
        if e.get("group") not in (None, 2)
    ]


def normal_code_point(hexcode: str) -> str:
    """Lower case without FE0F, which some vendors write and others do not: `2764-FE0F` -> `2764`."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def svg_of(icon_set: Mapping[str, Any], name: str) -> bytes:
    """A standalone SVG of one icon. Its own size, else the set's, else Iconify's default of 16 counts."""
    icon = icon_set["icons"][name]
    left, top = (icon.get(side, icon_set.get(side, 0)) for side in ("left", "top"))
    width, height = (icon.get(side, icon_set.get(side, DEFAULT_SIDE)) for side in ("width", "height"))
    # A square box around the icon: resvg then scales it to any square without distorting it.
    side = max(width, height)
    box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}"'
    return f'{head} width="{side:g}" height="{side:g}">{icon["body"]}</svg>'.encode()
