"""The parts of a page of `curate inspect`, as HTML: tiles, sections, tables, figures, and sheets of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from .example_images import Name, Shown
from .page_style import document, inline_svg

IMAGE_SIDE = 96
FIGURE = frozenset("0123456789-+")  # what a figure begins with; "-" alone stands for a figure that is not known


@dataclass(frozen=True)
class Tile:
    """A figure that stands out, with what it is."""

    figure: str
    words: str
    small: str = ""


@dataclass(frozen=True)
class Cell:
    """An example on a sheet. `{caption}` in `head` is its class or caption, where it can be read; `small` may have lines."""

    name: Name
    head: str
    small: str = ""


@dataclass(frozen=True)
class Sheet:
    """Examples beside each other. A sheet without cells is left out."""

    title: str
    cells: Sequence[Cell]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row; of the others, those with figures are right-aligned."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """A figure, by the name of its SVG; left out where there is no such SVG."""

    name: str
    title: str


Part = Sheet | Table | Plot | str


@dataclass(frozen=True)
class Section:
    """A heading, what the reader has to know, and parts; a `str` is a paragraph."""

    title: str
    note: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """All that a page says."""

    title: str
    lead: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    facts: Mapping[str, str]

    def names(self) -> set[Name]:
        """The examples whose images are wanted."""
        sheets = [part for section in self.sections for part in section.parts if isinstance(part, Sheet)]
        return {cell.name for sheet in sheets for cell in sheet.cells}


def page_html(page: Page, plots: Mapping[str, str], images: Mapping[Name, Shown]) -> str:
    """The page. `plots` are SVG texts by name. Examples without an image show their key."""
    tiles = "".join(
        f'<div class="tile"><b>{escape(t.figure)}</b><span>{escape(t.words)}</span><small>{escape(t.small)}</small></div>'
        for t in page.tiles
    )
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in page.facts.items())
    sections = "".join(_section(section, plots, images) for section in page.sections)
    return document(
        page.title,
        f'<p class="verdict">{escape(page.lead)}</p>\n<div class="tiles">{tiles}</div>\n{sections}'
        f"<h2>How this was made</h2>\n<dl>{facts}</dl>\n",
    )


def _section(section: Section, plots: Mapping[str, str], images: Mapping[Name, Shown]) -> str:
    parts = []
    for part in section.parts:
        if isinstance(part, str):
            parts.append(f"<p>{escape(part)}</p>")
        elif isinstance(part, Table):
            parts.append(_table(part))
        elif isinstance(part, Sheet):
            parts.append(_sheet(part, images))
        elif part.name in plots:
            drawn = inline_svg(part.name, plots[part.name], part.title)
            parts.append(
                f'<figure id="{part.name}" class=one><figcaption>{escape(part.title)}</figcaption>'
                f'<div class="scroll" tabindex="0">{drawn}</div></figure>'
            )
    note = f'<p class="note">{escape(section.note)}</p>\n' if section.note else ""
    return f"<h2>{escape(section.title)}</h2>\n{note}" + "\n".join(parts) + "\n"


def _table(table: Table) -> str:
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.head)
    sides = ["" if any(cell[:1] in FIGURE for cell in column) else " class=words" for column in columns]
    head = "".join(f"<th scope=col{side}>{escape(name)}</th>" for side, name in zip(sides, table.head, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{side}>{escape(cell)}</td>" for side, cell in zip(sides, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{escape(table.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _sheet(sheet: Sheet, images: Mapping[Name, Shown]) -> str:
    if not sheet.cells:
        return ""
    note = f'<p class="note">{escape(sheet.note)}</p>' if sheet.note else ""
    cells = "".join(_cell(cell, images.get(cell.name)) for cell in sheet.cells)
    return f'<h3>{escape(sheet.title)}</h3>{note}<ul class="sheet large">{cells}</ul>'


def _cell(cell: Cell, shown: Shown | None) -> str:
    key = f"{cell.name[0]} / {cell.name[1]}"
    head = cell.head.replace("{caption}", shown.caption if shown else "") or key
    image = ""
    if shown and shown.image:
        image = (
            f'<img src="{shown.image}" alt="image of {escape(key, quote=True)}" title="{escape(key, quote=True)}" '
            f'width="{IMAGE_SIDE}" height="{IMAGE_SIDE}">'
        )
    missing = "" if image else f" {escape(key)}" if head != key else ""
    small = "<br>".join(map(escape, cell.small.splitlines()))
    return f"<li>{image}<b>{escape(head)}</b><span>{small}{missing}</span></li>"
