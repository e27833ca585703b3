"""Debian's images: Open Clip Art, titled by its many authors, and Tux Paint's stamps with hand-written sentences."""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .fetch import Package, open_package

CLIP_ART_PICTURES = Package(registry="debian", name="openclipart-png", version="1:0.18+dfsg-19", megabytes=131)
CLIP_ART_NAMES = Package(registry="debian", name="openclipart-svg", version="1:0.18+dfsg-19", megabytes=25)
STAMPS = Package(registry="debian", name="tuxpaint-stamps-default", version="2022.06.04-1", megabytes=161)
LONGEST_CAPTION = 300


@dataclass(frozen=True)
class Naming:
    """What an author wrote into a drawing's metadata; empty where nothing was."""

    title: str
    description: str
    keywords: tuple[str, ...]


@dataclass(frozen=True)
class Captioned:
    """An image file's path (no ending, below its collection's folder), its bytes, caption and keywords."""

    path: str
    content: bytes
    caption: str
    keywords: tuple[str, ...] = ()


def read_clip_art(pictures: Path, names: Path) -> Iterator[Captioned]:
    """Open Clip Art's PNGs with the caption from the SVG of the same path. Links to an image are left out."""
    metadata: dict[str, Naming] = {}
    links: dict[str, str] = {}
    for path, content, target in _files(CLIP_ART_NAMES, names, "openclipart/svg/", (".svg",)):
        if target:
            links[path] = target
        else:
            metadata[path] = naming_of(content)
    for path, content, target in _files(CLIP_ART_PICTURES, pictures, "openclipart/png/", (".png",)):
        if not target:
            stem = path.removesuffix(".png")
            drawing = f"{stem}.svg"
            naming = metadata.get(links.get(drawing, drawing), Naming("", "", ()))
            yield Captioned(stem, content, clip_art_caption(naming, stem), naming.keywords)


def read_stamps(path: Path) -> Iterator[Captioned]:
    """Tux Paint's images that have a sentence: line 1 of the .txt. A PNG is preferred to an SVG of the same name."""
    found: dict[str, dict[str, bytes]] = {}
    for name, content, target in _files(STAMPS, path, "tuxpaint/stamps/", (".txt", ".png", ".svg")):
        if not target:
            stem, ending = posixpath.splitext(name)
            found.setdefault(stem, {})[ending] = content
    for stem, files in sorted(found.items()):
        picture = files.get(".png", files.get(".svg"))
        sentence = files.get(".txt", b"").decode("utf-8", errors="replace").split("\n")[0].strip()
        if picture and sentence:
            yield Captioned(stem, picture, sentence)


def naming_of(svg: bytes) -> Naming:
    """Title, description and keywords of a drawing's RDF metadata.

    Found by pattern: many of these files are not well-formed XML, and a parser would lose their names.
    """
    text = svg.decode("utf-8", errors="replace")
    start, end = text.find("<metadata"), text.rfind("</metadata>")
    # Publisher, creator and rights hold titles of their own.
    work = re.sub(r"(?s)<(\w+:)?Agent\b.*?</(\w+:)?Agent>", "", text[start:end] if 0 <= start < end else "")
    return Naming(_content_of(work, "title"), _content_of(work, "description"), tuple(_contents_of(work, "li")))


def clip_art_caption(naming: Naming, path: str) -> str:
    """`title. description` as their authors wrote them, one where the other is missing, else the file's name."""
    parts = [part for part in (naming.title, naming.description) if part]
    if len(parts) == 2 and parts[0].lower() == parts[1].lower():
        parts = parts[:1]
    caption = ". ".join(parts) or re.sub(r"[-_\W]+", " ", posixpath.basename(path)).strip()
    return caption[:LONGEST_CAPTION].rstrip()


def _content_of(text: str, tag: str) -> str:
    return next(iter(_contents_of(text, tag)), "")


def _contents_of(text: str, tag: str) -> list[str]:
    inner = re.findall(rf"(?s)<(?:\w+:)?{tag}\b[^>]*?(?:/>|>(.*?)</(?:\w+:)?{tag}>)", text)
    plain = [" ".join(html.unescape(re.sub(r"<[^>]*>", " ", content)).split()) for content in inner]
    return plain[:1] + [content for content in plain[1:] if content] if tag != "li" else [p for p in plain if p]


def _files(package: Package, path: Path, below: str, endings: tuple[str, ...]) -> Iterator[tuple[str, bytes, str]]:
    """(path below the folder, content, "") of every file, (path, b"", target's path) of every link."""
    with open_package(package, path) as tar:
        for member in tar:
            _, found, name = member.name.partition(below)
            if not found or not name.endswith(endings):
                continue
            if member.issym() or member.islnk():
                anchor = posixpath.dirname(member.name) if member.issym() else ""
                target = posixpath.normpath(posixpath.join(anchor, member.linkname))
                yield name, b"", target.partition(below)[2]
            elif member.isfile():
                file = tar.extractfile(member)
                assert file is not None
                yield name, file.read(), ""
