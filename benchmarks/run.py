"""`make bench`: measure, print, and write results/YYYY-MM-DD-NAME.json and the table of results/README.md.

    python benchmarks/run.py [NAME ...]

All of them take about 24 minutes on 2 cores. A goal that is missed is reported as missed; it is no failure of the call.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from curate.datasets.writing import write_whole
from measuring import Benchmark, Figure, surroundings
from rich.console import Console
from rich.table import Table

NAMES = (
    "score_throughput",
    "score_cpu",
    "against_webdataset",
    "train_step",
    "join",
    "joint",
    "memory",
    "precision",
    "data_path",
    "ranks",
    "actors",
    "surplus",
)
# Only when asked for by name: they install a rival, write gigabytes, or take long.
MORE_NAMES = (
    "against_commit",
    "against_clip_retrieval",
    "against_run_inference",
    "data_size",
    "big_table",
    "batch_norm",
    "start_up",
    "inspect_pages",
    "saving",
)
RESULTS = Path(__file__).parent / "results"
BUSY = 0.5
HEADER = "| benchmark | figure | median | min..max | n | goal | met | load before | date |"
INTRODUCTION = """# Benchmark results

Written by `make bench`: the newest result of every benchmark. A figure is the median over n rounds, in each of which
both sides ran in turn; a ratio is taken within its round. `load before` is the machine's load average (1 minute) when
the benchmark began: well above zero means that others were computing too. What is compared, and why, stands at the
head of each benchmark's file.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", choices=[*NAMES, *MORE_NAMES, []], metavar="NAME", help=", ".join(NAMES + MORE_NAMES)
    )
    names = parser.parse_args().names or NAMES
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="curate-bench-") as folder:
        for name in names:
            benchmark: Benchmark = import_module(name).BENCHMARK
            about = surroundings()
            loads = ", ".join(map(str, about["load_average_before"]))
            console.print(f"[bold]{name}[/]: {benchmark.goal} (load before: {loads})")
            if about["load_average_before"][0] > BUSY:
                console.print("  [yellow]others are computing on this machine: expect a wide spread[/]")
            started = time.perf_counter()
            figures = benchmark.measure(Path(folder), console.print)
            show(console, figures)
            save(benchmark, about, figures, time.perf_counter() - started)
            write_readme()


def save(
    benchmark: Benchmark,
    about: dict[str, Any],
    figures: list[Figure],
    seconds: float,
    command: str = "",
    folder: Path | None = None,
) -> None:
    threads = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} " if "OMP_NUM_THREADS" in os.environ else ""
    content = {
        "benchmark": benchmark.name,
        "command": threads + (command or f"python benchmarks/run.py {benchmark.name}"),
        "goal": benchmark.goal,
        **about,
        "setting": benchmark.setting,
        "seconds": round(seconds, 1),
        "figures": [figure.to_dict() for figure in figures],
    }
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{about['date']}-{benchmark.name}.json", (json.dumps(content, indent=1) + "\n").encode())


def show(console: Console, figures: list[Figure]) -> None:
    table = Table("figure", "median", "min..max", "n", "goal", "met")
    for figure in figures:
        table.add_row(*_row(figure.to_dict()))
    console.print(table)


def write_readme() -> None:
    """The newest result of every benchmark, in one table for each machine and set of versions."""
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        newest[content["benchmark"]] = content
    lines = [INTRODUCTION]
    surroundings_seen: dict[str, list[dict[str, Any]]] = {}
    on_gpus = sorted(name for name in newest if name.startswith("gpu-") and not name.startswith("gpu-cpu"))
    for name in (*NAMES, *MORE_NAMES, *on_gpus):
        if name in newest:
            surroundings_seen.setdefault(_describe(newest[name]), []).append(newest[name])
    for described, results in surroundings_seen.items():
        lines += [described, "", HEADER, "|---" * 9 + "|"]
        for result in results:
            for figure in result["figures"]:
                before = str(result["load_average_before"][0])
                lines.append(f"| {' | '.join((result['benchmark'], *_row(figure), before, result['date']))} |")
        lines.append("")
    (RESULTS / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _describe(result: dict[str, Any]) -> str:
    hardware, versions = result["hardware"], result["versions"]
    shown = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB; {shown}."


def _row(figure: dict[str, Any]) -> tuple[str, ...]:
    unit = {"": "", "%": " %"}.get(figure["unit"], f" {figure['unit']}")
    sign = {"higher": ">=", "lower": "<="}[figure["better"]]
    goal = "" if figure["goal"] is None else f"{sign} {figure['goal']:g}{unit}"
    met = {True: "yes", False: "**missed**", None: ""}[figure["met"]]
    spread = f"{_number(figure['min'])}..{_number(figure['max'])}"
    return figure["name"], _number(figure["median"]) + unit, spread, str(figure["n"]), goal, met


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
