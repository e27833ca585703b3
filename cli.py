"""The commands: parse, call, print. No logic. Options, curate.toml and the data set's entry are read before torch and Beam are
imported, which takes many seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .command import CONFIG_HELP, Commands, reference_page, report, takes, without
from .entry import alone, run_command, run_process, skip_teardown
from .errors import SpecError
from .offered import COMPARED, PLAN, PROBE, TRAINED
from .options import options_of, refuse_url
from .pages import card, inspect
from .pipelines.options import ScoreOptions
from .reports.export_options import ExportOptions
from .reports.formats import check_format
from .studies.options import CompareOptions, PlanOptions, ProbeOptions, unused_in_plan
from .training.options import RunOptions

cli = Commands(
    name="curate",
    help="Choose what to train on, with every FLOP of the choosing counted.",
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[Path | None, typer.Option("--config", help=CONFIG_HELP)]
ScoresOption = Annotated[str, typer.Option(help="Read the score tables under this folder or URL.")]
PRECISION_HELP = options_of(ScoreOptions)["precision"].help
RunsOption = Annotated[str, typer.Option(help="Read the runs under this folder.")]


def app() -> None:
    """Run the command that sys.argv names, and exit with its code."""
    run_command(cli, report)


def main() -> None:
    """Entry point of the process."""
    skip_teardown()
    run_process(app)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"curate {__version__}")
        raise typer.Exit


@cli.callback()
def curate(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Choose what to train on, with every FLOP of the choosing counted."""


@cli.command()
def prepare(
    name: Annotated[str, typer.Argument(help="Prepare this data set: cifar10n, digits, emoji or icons.")],
    data: Annotated[Path, typer.Option(help="Write the shards under this folder.")] = Path("data"),
    config: Annotated[Path, typer.Option(help="Enter the data set in this file.")] = Path("curate.toml"),
    force: Annotated[
        bool, typer.Option(show_default=False, help="Make the data set again even if it is there.")
    ] = False,
) -> None:
    """Fetch a known real data set, write it as WebDataset shards and enter it in curate.toml.

    Example: curate prepare cifar10n
    """
    from .datasets.preparers import prepare as prepare_dataset

    refuse_url(data, "--data")
    refuse_url(config, "--config")
    prepare_dataset(name, data, config, force=force, report=report)


@cli.command("score-reference")
@takes(without(ScoreOptions, "runner_options"))
def score_reference(
    given: dict[str, Any],
    config: ConfigOption = None,
    beam_options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- BEAM OPTIONS]", help="Pass these options to Beam, spelled as Beam spells them."),
    ] = None,
) -> None:
    """Run a reference model over a whole data set once and write its losses as a score table.

    The same command again scores only what is missing.

    Example: curate score-reference --dataset cifar10n --reference runs/reference
    """
    from .datasets.shards import check_there
    from .datasets.spec import find_dataset, load_config

    alone("score-reference")
    known = load_config(config)
    dataset = find_dataset(given["dataset"], known)
    options = ScoreOptions.of(**{**given, "dataset": dataset}, runner_options=tuple(beam_options or ()))
    if not options.follow:
        check_there(dataset)
    from .pipelines.score_reference import score_reference as run_scoring
    from .scoring.loading import find_model

    reference = find_model(given["reference"], task=dataset.task, num_classes=dataset.num_classes, config=known)
    options = options.but(reference=reference)
    summary = run_scoring(options, report)
    report(summary.line())
    typer.echo(summary.folder)


@cli.command()
def status(
    what: Annotated[
        str,
        typer.Argument(help="Look at this run's folder, or at this score table: its folder or URL, or one above it."),
    ],
    show_all: Annotated[bool, typer.Option("--all", help="List every shard, not only those with a problem.")] = False,
    format: Annotated[str, typer.Option(metavar="table|json", help="Print in this format.")] = "table",
    config: ConfigOption = None,
) -> None:
    """Show how far a score table is (done, missing, failed and unreadable shards), or a run: its step, speed, seconds by
    stage, and quality so far. Reads only the folder's files.

    Example: curate status scores
    """
    from .datasets.spec import load_config
    from .reports.run_status import is_run, run_status, write_run_status
    from .reports.status import table_status, write_status

    if is_run(what):
        write_run_status(run_status(what), format)
    else:
        write_status(table_status(what, load_config(config)), format, show_all=show_all)


@cli.command()
@takes(TRAINED, also={"dataset": "--train-data"})
def train(
    given: dict[str, Any],
    train_num_samples: Annotated[
        int | None,
        typer.Option(help="Count this many examples as an epoch, as open_clip does.", rich_help_panel="Budget"),
    ] = None,
    epochs: Annotated[
        int, typer.Option(help="Stop after this many epochs of --train-num-samples.", rich_help_panel="Budget")
    ] = 1,
    resume: Annotated[bool, typer.Option(show_default=False, help="Resume an interrupted run, bit for bit.")] = False,
    config: ConfigOption = None,
) -> None:
    """Train a learner under a FLOP budget on examples that a policy chooses.

    Give exactly one of --budget-flops, --examples and --steps. Started by torchrun or srun, several processes share one run:
    all options are those of the whole run, so --batch-size counts the examples of all GPUs.

    Example: curate train --dataset cifar10n --policy learnability --learner learner --online scorer
    --reference-scores scores --budget-flops 20TF
    """
    from .training.started import train_as_started

    folder = train_as_started(given, train_num_samples, epochs, config=config, resume=resume, report=report)
    if folder:
        typer.echo(folder)


@cli.command()
def actor(
    join: Annotated[str, typer.Option(help="Join the Ray cluster at this address; this machine is a node of it.")],
    run: Annotated[str | None, typer.Option(help="Score for the run of this name. Default: the only one.")] = None,
    count: Annotated[int, typer.Option(help="Score in this many processes.")] = 1,
) -> None:
    """Score for a run of train --actors, from this machine, until that run ends or this command is interrupted.

    Example: curate actor --join head:6379 --count 4
    """
    if count < 1:
        raise SpecError(f"--count is {count}, expected at least 1")
    from .training.actors import join as join_run

    join_run(join, run, count, report)


@cli.command()
@takes(PLAN, PROBE)
def plan(
    given: dict[str, Any],
    probing: dict[str, Any],
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Run some steps here, and say what the run takes: seconds, disk, memory, and its bottleneck.",
        ),
    ] = False,
    format: Annotated[str, typer.Option(metavar="table|json", help="Print in this format.")] = "table",
    config: ConfigOption = None,
) -> None:
    """Say what selection would cost, and what it must save, before anything is spent.

    With --probe, short complete runs of uniform and of --policies, in pairs, also say what it is likely to save. The
    options of these runs are those of train.

    Example: curate plan --ratio 1/49 --expected-saving 25%
    """
    from .datasets.spec import find_dataset, load_config
    from .reports.plan import write_plan

    alone("plan")
    options = PlanOptions.of(**given)
    check_format(format)
    for line in unused_in_plan(options, probing, measure):
        report(line)
    if measure and options.learner is None:
        raise SpecError("--measure makes steps of a run; give --learner, --online, --dataset and --budget-flops")
    known, measured, taken = load_config(config), None, None
    if options.dataset is not None:
        find_dataset(options.dataset, known)
    from .reports.probe import read_probe
    from .scoring.policies import find_policy
    from .studies.plan import make_plan
    from .studies.probe import curated_names, run_probe

    made = make_plan(options, known, watches=any(find_policy(policy).probes for policy in probing["policies"][:1]))
    if measure:
        from .studies.measure import measure_run

        taken = measure_run(options, int(made.steps), config=known, report=report).to_dict()
    if probing["probe"] is not None:
        probe = ProbeOptions(plan=options, **probing)
        measured = read_probe(probe.out, run_probe(probe, config=known, report=report), curated_names(probe))
        made = replace(made, expected_saving=measured.expected_saving)
    write_plan(made.to_dict(), format, probe=measured, measured=taken)


@cli.command()
@takes(COMPARED, options_of(CompareOptions))
def compare(base: dict[str, Any], given: dict[str, Any], config: ConfigOption = None) -> None:
    """Compare policies at equal updates, FLOPs and seconds, every run's schedule ending at its own budget.

    Writes comparison.json, points.parquet, plots and index.html. The same command again runs only what is missing.

    Example: curate compare --dataset cifar10n --learner learner --online scorer --reference-scores scores
    --policies uniform,learnability --budget-flops 10TF --search-lr 5e-4,1e-3,2e-3
    """
    from .datasets.spec import analysis_files, find_dataset, load_config

    alone("compare")
    known = load_config(config)
    options = CompareOptions(base=RunOptions.of(**base), **given)
    dataset = find_dataset(options.base.dataset, known)
    from .reports.comparison import write_folder
    from .studies.comparison import compare_runs

    compared = compare_runs(options, config=known, report=report)
    typer.echo(write_folder(options.out, compared, dataset, analysis_files(known), report=report))


@cli.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Measure this model: a run's folder, or any that train would take.")],
    dataset: Annotated[str, typer.Option(help="Measure on the test split of this data set, a name in curate.toml.")],
    precision: Annotated[str | None, typer.Option(metavar="fp32|bf16", help=PRECISION_HELP)] = None,
    config: ConfigOption = None,
) -> None:
    """Measure a model on a test split and print JSON: top-1, or retrieval both ways and zero-shot where classes are named.

    Example: curate evaluate runs/icons-jest-learner-seed0 --dataset emoji
    """
    from .datasets.spec import find_dataset, load_config

    known = load_config(config)
    find_dataset(dataset, known)
    from .training.evaluate import evaluate_by_name

    typer.echo(json.dumps(evaluate_by_name(model, dataset, known, precision), indent=1))


@cli.command()
def sql(
    query: Annotated[
        str,
        typer.Argument(help="Run this SELECT over scores, failures, runs, metrics, selections, analysis and metadata."),
    ],
    scores: ScoresOption = "scores",
    runs: RunsOption = "runs",
    format: Annotated[
        str | None,
        typer.Option(
            metavar="table|csv|tsv|json|jsonl|parquet",
            help="Write in this format. Default: by the ending of --output; else a table on a terminal, csv in a pipe.",
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Write to this file instead of standard output, in place of one that is there.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Ask SQL (DuckDB, read-only) over score tables and runs.

    Example: curate sql "SELECT policy, avg(top1) FROM runs GROUP BY policy"
    """
    from .datasets.spec import analysis_files, load_config
    from .reports import check_roots, connect, write
    from .reports import query as run_query
    from .reports.metadata import add_metadata_of_all
    from .reports.output import choose_format

    chosen, known = choose_format(format, output), load_config(config)  # before the query, which may take long
    check_roots(scores=scores, runs=runs)
    connection = connect(scores=scores, runs=runs, datasets=analysis_files(known))
    add_metadata_of_all(connection, known, query)
    write(run_query(connection, query), chosen, output, report)


@cli.command()
@takes(options_of(ExportOptions))
def export(
    given: dict[str, Any],
    target: Annotated[
        str, typer.Argument(help="Write to this file or folder, a path or URL. Its ending may say the format.")
    ],
    config: ConfigOption = None,
) -> None:
    """Write a chosen part of a data set in a format that other tools read: by SQL, or the best share by a score.

    TARGET.export.json says what was kept, of how many, by which table and SQL. The same command again resumes.

    Example: curate export subset.npy --dataset align --keep 30% --by similarity
    """
    from .datasets.spec import load_config
    from .reports.export import export as run_export

    done = run_export(target, ExportOptions.of(**given), load_config(config), report)
    report(done.line())
    typer.echo(target)


cli.command()(inspect)
cli.command()(card)


@cli.command()
def doctor(
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Look at this data set; repeat the option for several. Default: all of curate.toml."),
    ] = None,
    scores: ScoresOption = "scores",
    shards: Annotated[int, typer.Option(help="Read this many shards of each source of a data set.")] = 3,
    format: Annotated[str, typer.Option(metavar="table|json", help="Print in this format.")] = "table",
    config: ConfigOption = None,
) -> None:
    """Look at this machine, the data sets and their score tables, and say for each fault what to type.

    The exit code is 1 where something has to be done.

    Example: curate doctor --dataset align
    """
    from .datasets.spec import load_config
    from .reports.doctor import diagnose
    from .reports.doctor_findings import write_findings

    check_format(format)
    if not write_findings(diagnose(load_config(config), dataset or [], scores, shards, report), format):
        raise typer.Exit(1)


@cli.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Write data, scores and runs to this folder.")] = Path("demo"),
) -> None:
    """Run every step on real data, CIFAR-10 with labels that people got wrong. Run it again to reuse what is done.

    Example: curate demo
    """
    from .reports.demo import demo as run_demo

    refuse_url(folder, "--folder")
    run_demo(folder)


@cli.command(hidden=True)
def launched(file: Path) -> None:
    """Train the run that a comparison has put into a file, in the processes that its launcher starts."""
    from .studies.launched import run_launched

    run_launched(file)


@cli.command("docs-cli", hidden=True)
def docs_cli() -> None:
    """Print docs/cli.md."""
    typer.echo(reference_page(cli), nl=False)
