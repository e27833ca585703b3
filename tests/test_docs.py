"""The documentation: its code runs, its commands exist, its links lead somewhere, and what is generated is up to date.

A block of bash, console, python or sql runs here, page by page in one folder, unless a comment above it says why not.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import curate as face
import duckdb
import pytest
import torch
import typer
from curate.cli import cli
from curate.datasets.spec import spec_from_table
from support.commands import curate
from support.prepared import IN_MEMORY

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- not run[^:\n]*: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```", re.M | re.S
)
CODE = ("bash", "console", "python", "sql")
RUN = ("README.md", "getting-started.md", "embedding.md", "outputs.md", "export.md", "inspect.md")
CURATE = typer.main.get_command(cli)
COMMANDS = CURATE.commands


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. `why` says why it is not run; empty where it is."""

    place: str
    language: str
    text: str
    why: str

    @property
    def commands(self) -> list[str]:
        """Command lines of bash, or those after a prompt."""
        whole = self.text.replace("\\\n", " ")
        prompt = "$ " if self.language == "console" else ""
        lines = [line.removeprefix(prompt) for line in whole.splitlines() if line.startswith(prompt)]
        return [line for line in lines if line.strip() and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    content = page.read_text(encoding="utf-8")
    return [
        Block(f"{page.name}:{content.count(chr(10), 0, m.start()) + 1}", m["language"], m["text"], m["why"] or "")
        for m in FENCE.finditer(content)
    ]


EVERY = [block for page in PAGES if page.name != "api.md" for block in blocks(page)]  # it shows signatures


def run_command(line: str) -> list[str]:
    """What a `curate` command prints, in this process; scoring uses no processes of its own."""
    name, *arguments = shlex.split(line, comments=True)
    assert name == "curate", line
    done = curate(*arguments, *(("--", *IN_MEMORY) if arguments[0] == "score-reference" else ()))
    assert done.code == 0, f"{line}\n{done.err}"
    return [line for line in (done.err + done.out).splitlines() if line.strip()]


def run_python(block: Block, names: dict[str, object]) -> None:
    exec(compile(block.text, block.place, "exec"), names)


@pytest.fixture(scope="module")
def transcript(tmp_path_factory):
    """(command, what the README says it prints, what it printed) in a new folder, which stays the working folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        (block,) = [b for b in blocks(README) if b.language == "console"]
        said = [part.replace("\\\n", " ").splitlines() for part in block.text.split("$ ") if part.strip()]
        yield [(command, [line for line in lines if line], run_command(command)) for command, *lines in said]


def masked(line: str) -> str:
    """Without what differs from one machine to another: numbers, hashes, the device and its number format."""
    line = re.sub(r"\b(?=[a-f]*\d)[0-9a-f]{8}\b", "#", line)
    return re.sub(r"\d[\d,.]*\d|\d", "#", re.sub(r"\bon \w+ in \w+\b", "on #", line))


def test_the_commands_print_what_the_readme_says(transcript):
    assert [command.split()[1] for command, _, _ in transcript] == ["prepare", "train", "score-reference", "train"]
    for command, said, printed in transcript:
        rest = iter([masked(line) for line in printed])
        for line in said:
            assert line == "..." or masked(line) in rest, f"{command}\nsays {line}\nprints {printed}"


def test_the_readme_states_the_accuracy_that_its_runs_reach(transcript):
    found = [[re.findall(r"top1 (0\.\d+)", "\n".join(lines)) for lines in (s, p)] for _, s, p in transcript]
    pairs = [(float(said[0]), float(printed[0])) for said, printed in found if said]
    assert len(pairs) == 2
    assert all(abs(said - printed) < 0.05 for said, printed in pairs), pairs


@pytest.mark.parametrize("page", RUN)
def test_the_code_of_a_page_runs(page, transcript):
    found = [
        b for b in EVERY if b.place.startswith(page) and b.language in CODE and b.language != "console" and not b.why
    ]
    assert found
    names: dict[str, object] = {}
    torch.manual_seed(0)
    for block in found:
        if block.language == "python":
            run_python(block, names)
        elif block.language == "sql":
            assert duckdb.sql(block.text).fetchall(), block.place
        else:
            assert all(run_command(line) for line in block.commands), block.place


NOT_RUN = [b for b in EVERY if b.language in CODE and b.why]


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda b: f"{b.place} {b.why}")
def test_code_that_is_not_run_can_be_read(block):
    if block.language == "python":
        compile(block.text, block.place, "exec")
    elif block.language == "sql":
        assert len(duckdb.extract_statements(block.text)) == 1


def test_code_runs_or_says_why_not():
    others = [b for b in EVERY if b.language in CODE and not b.place.startswith(RUN)]
    assert [b.place for b in others if not b.why] == []


def test_every_command_and_option_of_the_documentation_exists():
    lines = [line for b in EVERY if b.language in ("bash", "console") for line in b.commands]
    lines += [span for page in PAGES for span in re.findall(r"`(curate [^`\n]+)`", page.read_text(encoding="utf-8"))]
    commands = [line for line in lines if line.startswith("curate ")]
    assert len(commands) > 20
    for line in commands:
        words = shlex.split(line.partition(" -- ")[0], comments=True)
        command = CURATE if words[1].startswith("--") else COMMANDS.get(words[1])
        assert command is not None, line
        known = {"--help", *(s for p in command.params for s in (*p.opts, *p.secondary_opts))}
        assert {w.partition("=")[0] for w in words if w.startswith("--")} - known == set(), line


@pytest.mark.parametrize("block", [b for b in EVERY if b.language == "toml"], ids=lambda b: b.place)
def test_every_entry_of_curate_toml_can_be_read(block):
    found = tomllib.loads(block.text)
    assert found.keys() <= {"datasets", "models"}
    for name, table in found.get("datasets", {}).items():
        assert spec_from_table(name, table).train


def anchors(page: Path) -> set[str]:
    """Of every heading, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links {link}"


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_figures_of_the_readme_stand_in_the_findings():
    before_install = README.read_text(encoding="utf-8").partition("## Install")[0]
    figures = set(re.findall(r"\d\d\.\d(?= |,)", before_install))
    assert len(figures) > 10
    found = "".join(
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("findings.md", "findings-tables.md")
    )
    assert figures <= set(re.findall(r"\d\d\.\d", found))


@pytest.fixture(scope="module")
def generate():
    """docs/generate.py, as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_python_names_is_up_to_date(generate):
    assert set(face.__all__) == generate.PUBLIC
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == generate.api_page(), "run make docs"


def test_the_table_of_policies_is_up_to_date(generate):
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert page == generate.with_policies(page), "run make docs"
    assert all(f"| `{name}` |" in page for name in face.POLICIES)
