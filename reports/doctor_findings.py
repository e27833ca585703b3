"""What `curate doctor` found, and how it is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape

from .formats import check_format

Level = Literal["ok", "note", "act"]
MARKS = {"ok": "[green]ok  [/green]", "note": "[yellow]note[/yellow]", "act": "[red]act [/red]"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `level`: ok, note (worth knowing), or act (something has to be done). `do` is the line
    to type, empty where there is none."""

    about: str
    level: Level
    found: str
    do: str = ""


def write_findings(found: Sequence[Finding], format: str = "table") -> bool:
    """Print the findings as lines for people or as JSON. Returns whether nothing has to be done. Raises SpecError."""
    check_format(format)
    actions = sum(finding.level == "act" for finding in found)
    if format == "json":
        sys.stdout.write(json.dumps([asdict(finding) for finding in found], indent=2, ensure_ascii=False) + "\n")
        return not actions
    console = Console(highlight=False, soft_wrap=True)
    about = ""
    for finding in found:
        if finding.about != about:
            about = finding.about
            console.print(f"[bold]{escape(about)}[/bold]")
        console.print(f"  {MARKS[finding.level]} {escape(finding.found)}")
        if finding.do:
            console.print(f"         [cyan]{escape(finding.do)}[/cyan]")
    console.print("nothing to do" if not actions else f"{actions} to do: the lines below 'act'")
    return not actions
