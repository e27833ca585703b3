"""The commands: parse, call, print. No logic, and no heavy import before the command that needs it."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .errors import CurateError, SpecError
from .units import parse_flops, parse_numbers, parse_ratio, parse_share

cli = typer.Typer(
    name="curate",
    help="Choose what to train on, with every FLOP of the choosing counted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="curate.toml. [the nearest at or above here]")]
ScoresOption = Annotated[str, typer.Option(help="Folder or URL under which score tables lie.")]
POLICY_HELP = "uniform, hard-learner, easy-reference, learnability, rho; pairs: jest, jest-easy, acid."
RunsOption = Annotated[str, typer.Option(help="Folder under which runs lie.")]


def app() -> None:
    """Entry point. A CurateError is one line and exit code 1; anything else is a bug and keeps its traceback."""
    try:
        cli()
    except CurateError as e:
        typer.echo(f"curate: {e}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        typer.echo(f"curate: {e.filename or 'a file'}: the disk is full; free space, then go on as it was", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("curate: interrupted; the same command goes on (train: with --resume)", err=True)
        sys.exit(130)


def report(line: str) -> None:
    """Progress, to standard error, so that results can be piped."""
    typer.echo(line, err=True)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"curate {__version__}")
        raise typer.Exit


@cli.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Choose what to train on, with every FLOP of the choosing counted."""


@cli.command()
def prepare(
    name: Annotated[str, typer.Argument(help="cifar10n, digits, emoji or icons.")],
    data: Annotated[Path, typer.Option(help="Folder to write the shards under.")] = Path("data"),
    config: Annotated[Path, typer.Option(help="Where to enter the data set.")] = Path("curate.toml"),
    force: Annotated[bool, typer.Option(help="Make it again even if it is there.")] = False,
) -> None:
    """Fetch a known real data set, write it as WebDataset shards and enter it in curate.toml.

    Example: curate prepare cifar10n
    """
    from .datasets.preparers import prepare as prepare_dataset

    prepare_dataset(name, data, config, force=force, report=report)


@cli.command("score-reference")
def score_reference(
    dataset: Annotated[str, typer.Option(help="A name in curate.toml, or shards: 'path/{000..099}.tar'.")],
    reference: Annotated[
        str, typer.Option(help="A run folder, a model entry of curate.toml, or a pretrained timm or open_clip name.")
    ],
    out: ScoresOption = "scores",
    score_size: Annotated[int | None, typer.Option(help="Pixels a side to score at, below the model's own.")] = None,
    score_patch_dropout: Annotated[float, typer.Option(help="Share of a ViT's patches left out.")] = 0.0,
    embeddings: Annotated[bool, typer.Option(help="Image-text: store both embeddings too (float16).")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a forward pass.")] = 128,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16; otherwise what the hardware gains by.")] = None,
    max_failures: Annotated[str, typer.Option(help="Share of bad examples that ends the job.")] = "1%",
    follow: Annotated[bool, typer.Option("--follow", help="Go on with shards as they land, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks for new shards, with --follow.")] = 10.0,
    config: ConfigOption = None,
    beam_options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- BEAM OPTIONS]", help="As Beam has them.")
    ] = None,
) -> None:
    """Run a reference model over a whole data set once and write its losses as a score table.

    The same command again does only what is missing.

    Example: curate score-reference --dataset cifar10n --reference runs/reference
    """
    from dataclasses import replace

    from .datasets.spec import find_dataset, load_config
    from .pipelines.score_reference import ScoreOptions
    from .pipelines.score_reference import score_reference as run_scoring
    from .scoring.loading import find_model
    from .scoring.settings import Coarse

    known = load_config(config)
    spec = find_dataset(dataset, known)
    model = find_model(reference, task=spec.task, num_classes=spec.num_classes, config=known)
    coarse = Coarse(size=score_size, patch_dropout=score_patch_dropout)
    summary = run_scoring(
        ScoreOptions(
            dataset=spec,
            reference=replace(model, coarse=coarse.to_dict()) if coarse else model,
            out=out,
            embeddings=embeddings,
            batch_size=batch_size,
            precision=precision,  # type: ignore[arg-type]
            max_failures=parse_share(max_failures, "--max-failures"),
            runner_options=tuple(beam_options or ()),
            follow=every if follow else None,
        ),
        report,
    )
    report(summary.line())
    typer.echo(summary.folder)


@cli.command()
def status(
    table: Annotated[str, typer.Argument(help="A score table's folder or URL, or one above that holds exactly one.")],
    show_all: Annotated[bool, typer.Option("--all", help="List every shard, not only those that want a look.")] = False,
    format: Annotated[str, typer.Option(help="table or json.")] = "table",
    config: ConfigOption = None,
) -> None:
    """Say how far a score table is: done, missing, failed and unreadable shards. Reads its files only.

    Example: curate status scores
    """
    from .datasets.spec import load_config
    from .reports.status import table_status, write_status

    write_status(table_status(table, load_config(config)), format, show_all=show_all)


@cli.command()
def train(
    context: typer.Context,
    dataset: Annotated[
        str, typer.Option("--dataset", "--train-data", help="A name in curate.toml, or shards: 'path/{000..099}.tar'.")
    ],
    learner: Annotated[str, typer.Option(help="A model of curate.toml, of timm or open_clip, or a run folder.")],
    policy: Annotated[str, typer.Option(help=POLICY_HELP)] = "uniform",
    online: Annotated[str | None, typer.Option(help="The small model that trains beside the learner.")] = None,
    reference_scores: Annotated[str | None, typer.Option(help="The score table to join.")] = None,
    reference: Annotated[str | None, typer.Option(help="The model that the table must come from; checked.")] = None,
    budget_flops: Annotated[str | None, typer.Option(help="Stop when this is spent: 2e13, 20TF, 1EF.")] = None,
    examples: Annotated[int | None, typer.Option(help="Stop after so many trained on, instead of a budget.")] = None,
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps, instead of a budget.")] = None,
    train_num_samples: Annotated[int | None, typer.Option(help="As open_clip: of an epoch, for --examples.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of --train-num-samples.")] = 1,
    charge_reference: Annotated[bool, typer.Option(help="Take the reference's cost off the budget too.")] = False,
    batch_size: Annotated[int, typer.Option(help="b: examples the learner trains on a step.")] = 128,
    filter_ratio: Annotated[float, typer.Option(help="Share of the super-batch that is dropped.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Of the softmax that selects.")] = 1.0,
    score_scale: Annotated[float | None, typer.Option(help="Of the losses in the score. [1; dot products 20]")] = None,
    sampler: Annotated[str, typer.Option(help="softmax or topk.")] = "softmax",
    chunks: Annotated[int, typer.Option(help="In which jest and acid draw the sub-batch.")] = 16,
    joint_loss: Annotated[str | None, typer.Option(help="sigmoid or softmax. [sigmoid if both have a bias]")] = None,
    score_size: Annotated[int | None, typer.Option(help="Pixels a side to score at. [as the table's]")] = None,
    score_patch_dropout: Annotated[
        float | None, typer.Option(help="Patches a ViT scores without. [the table's]")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="Any of timm's.")] = "adamw",
    lr: Annotated[float | None, typer.Option(help="Peak; ends at zero. [2e-3; image-text 5e-4]")] = None,
    online_lr: Annotated[float | None, typer.Option(help="The online model's, where it differs.")] = None,
    weight_decay: Annotated[float, typer.Option(help="Not applied to biases and norms.")] = 0.05,
    warmup: Annotated[float, typer.Option(help="Share of the steps.")] = 0.05,
    label_smoothing: Annotated[float, typer.Option(help="In the training loss only, never in scores.")] = 0.0,
    augment: Annotated[str | None, typer.Option(help="none, flip or crop-flip (classification's default).")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16; otherwise what the hardware gains by.")] = None,
    compile: Annotated[bool | None, typer.Option(help="torch.compile; on by default on GPUs.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, selection and augmentation.")] = 0,
    on_missing: Annotated[str, typer.Option(help="An example without a score: error, score or skip.")] = "error",
    max_failures: Annotated[str, typer.Option(help="Share of bad examples that ends the run.")] = "1%",
    log_every: Annotated[int, typer.Option(help="Steps between lines of metrics.jsonl.")] = 20,
    selections_every: Annotated[int, typer.Option(help="Steps between records of the whole super-batch.")] = 1,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps; otherwise every 30 seconds.")] = None,
    evaluate: Annotated[bool, typer.Option(help="Measure quality on the test split at the end.")] = True,
    out: RunsOption = "runs",
    name: Annotated[str | None, typer.Option(help="Of the run's folder.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run, bit for bit.")] = False,
    config: ConfigOption = None,
) -> None:
    """Train a learner under a FLOP budget, choosing what it sees.

    Example: curate train --dataset cifar10n --policy learnability --learner learner --online scorer
    --reference-scores scores --budget-flops 20TF
    """
    from .datasets.spec import load_config
    from .training import RunOptions
    from .training import train as run_training

    # Every other parameter is a field of RunOptions under its own name.
    other = ("config", "resume", "train_num_samples", "epochs")
    given = {name: value for name, value in context.params.items() if name not in other}
    if train_num_samples is not None:
        if examples is not None:
            raise SpecError("--train-num-samples and --examples are both given; drop one")
        given["examples"] = epochs * train_num_samples
    given["budget_flops"] = None if budget_flops is None else parse_flops(budget_flops)
    given["max_failures"] = parse_share(max_failures, "--max-failures")
    options = RunOptions.of(**given)
    summary = run_training(options, config=load_config(config), resume=resume, report=report)
    typer.echo(f"{out.rstrip('/')}/{summary['run']}")


@cli.command()
def plan(
    context: typer.Context,
    ratio: Annotated[str | None, typer.Option(help="F_online / F_learner, such as 1/49, instead of models.")] = None,
    learner: Annotated[str | None, typer.Option(help="A model of curate.toml, of timm or open_clip, or a run.")] = None,
    online: Annotated[str | None, typer.Option(help="The small model that would train beside the learner.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A name in curate.toml, or shards; with --learner.")] = None,
    budget_flops: Annotated[str | None, typer.Option(help="With --learner: 2e13, 20TF, 1EF.")] = None,
    reference: Annotated[str | None, typer.Option(help="The model that scores once; otherwise the online's.")] = None,
    reference_scores: Annotated[str | None, typer.Option(help="A score table that knows its own cost.")] = None,
    reference_steps: Annotated[int | None, typer.Option(help="Of --batch-size, that training it takes.")] = None,
    data_size: Annotated[int | None, typer.Option(help="Examples that the reference scores once.")] = None,
    runs: Annotated[int, typer.Option(help="How many runs share the reference and its table.")] = 1,
    batch_size: Annotated[int, typer.Option(help="b: examples the learner trains on a step.")] = 128,
    filter_ratio: Annotated[float, typer.Option(help="Share of the super-batch that is dropped.")] = 0.5,
    expected_saving: Annotated[str | None, typer.Option(help="Learner updates you hope to save, such as 25%.")] = None,
    probe: Annotated[str | None, typer.Option(help="Measure it by short runs of this share of the budget: 1%.")] = None,
    seeds: Annotated[int, typer.Option(help="Of the probe.")] = 2,
    lr: Annotated[float | None, typer.Option(help="Of the probe's runs, as of train.")] = None,
    online_lr: Annotated[float | None, typer.Option(help="Of the probe's online model, where it differs.")] = None,
    temperature: Annotated[float, typer.Option(help="Of the probe's selection.")] = 1.0,
    jobs: Annotated[int, typer.Option(help="Probing runs at a time, each on its share of the cores.")] = 1,
    out: Annotated[str, typer.Option(help="Folder of the probe's runs.")] = "probe",
    format: Annotated[str, typer.Option(help="table or json.")] = "table",
    config: ConfigOption = None,
) -> None:
    """Say what selection would cost, and what it must save, before anything is spent.

    With --probe, short complete runs of uniform and learnability, in pairs, also say what it is likely to save.

    Example: curate plan --ratio 1/49 --expected-saving 25%
    """
    from dataclasses import replace

    from .datasets.spec import load_config
    from .reports.plan import check_format, write_plan
    from .reports.probe import expected_saving as measured_saving
    from .reports.probe import read_probe
    from .studies.plan import PlanOptions, make_plan
    from .studies.probe import ProbeOptions, run_probe

    given = {name: value for name, value in context.params.items() if name in PlanOptions.__dataclass_fields__}
    given["ratio"] = None if ratio is None else parse_ratio(ratio)
    given["budget_flops"] = None if budget_flops is None else parse_flops(budget_flops)
    given["expected_saving"] = None if expected_saving is None else parse_share(expected_saving, "--expected-saving")
    options = PlanOptions(**given)
    check_format(format)
    known, measured = load_config(config), None
    made = make_plan(options, known)
    if probe is not None:
        runs_of = {name: context.params[name] for name in ("seeds", "lr", "online_lr", "temperature", "jobs", "out")}
        probing = ProbeOptions(plan=options, share=parse_share(probe, "--probe"), **runs_of)
        measured = read_probe(out, run_probe(probing, config=known, report=report).to_dict())
        made = replace(made, expected_saving=measured_saving(measured))
    write_plan(made.to_dict(), format, probe=measured)


@cli.command()
def compare(
    context: typer.Context,
    dataset: Annotated[str, typer.Option(help="A name in curate.toml with a test split.")],
    learner: Annotated[str, typer.Option(help="A model entry of curate.toml, a timm or open_clip name, or a run.")],
    budget_flops: Annotated[str, typer.Option(help="What 1x stands for: 2e13, 20TF, 1EF.")],
    policies: Annotated[str, typer.Option(help="Separated by commas; uniform must be one.")] = "uniform,learnability",
    budgets: Annotated[str, typer.Option(help="Multiples of --budget-flops, every one a complete run.")] = "0.5x,1x,2x",
    ladder: Annotated[str, typer.Option(help="More of uniform's: savings are read up to its largest.")] = "4x",
    seeds: Annotated[int, typer.Option(help="Runs of every point, seeds 0, 1, ...")] = 3,
    online: Annotated[str | None, typer.Option(help="The small model that trains beside the learner.")] = None,
    reference_scores: Annotated[str | None, typer.Option(help="The score table to join.")] = None,
    search_lr: Annotated[str | None, typer.Option(help="Rates for uniform to try at 1x; all use its best.")] = None,
    lr: Annotated[float | None, typer.Option(help="As of train, where it is not searched.")] = None,
    online_lr: Annotated[float | None, typer.Option(help="The online model's, where it differs.")] = None,
    batch_size: Annotated[int, typer.Option(help="b: examples the learner trains on a step.")] = 128,
    filter_ratio: Annotated[float, typer.Option(help="Share of the super-batch that is dropped.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Of the softmax that selects.")] = 1.0,
    sampler: Annotated[str, typer.Option(help="softmax or topk.")] = "softmax",
    chunks: Annotated[int, typer.Option(help="In which jest and acid draw the sub-batch.")] = 16,
    score_scale: Annotated[float | None, typer.Option(help="As of train.")] = None,
    score_size: Annotated[int | None, typer.Option(help="As of train.")] = None,
    score_patch_dropout: Annotated[float | None, typer.Option(help="As of train.")] = None,
    optimizer: Annotated[str, typer.Option(help="Any of timm's.")] = "adamw",
    weight_decay: Annotated[float, typer.Option(help="Not applied to biases and norms.")] = 0.05,
    selections_every: Annotated[int, typer.Option(help="Steps between records of the whole super-batch.")] = 5,
    jobs: Annotated[int, typer.Option(help="Runs at a time, each on its share of the cores.")] = 1,
    out: Annotated[str, typer.Option(help="Folder of the comparison.")] = "comparison",
    config: ConfigOption = None,
) -> None:
    """Compare policies at equal updates, FLOPs and seconds, every run's schedule ending at its own budget.

    Writes comparison.json, points.parquet, plots and index.html. The same command again runs only what is missing.

    Example: curate compare --dataset cifar10n --learner learner --online scorer --reference-scores scores
    --policies uniform,learnability --budget-flops 10TF --search-lr 5e-4,1e-3,2e-3
    """
    from .datasets.spec import analysis_files, find_dataset, load_config
    from .reports.comparison import write_folder
    from .studies.comparison import CompareOptions, compare_runs
    from .training import RunOptions

    known = load_config(config)
    shared = {name: value for name, value in context.params.items() if name in RunOptions.options()}
    base = RunOptions.of(**{**shared, "budget_flops": parse_flops(budget_flops), "out": "runs"})
    options = CompareOptions(
        base=base,
        policies=tuple(name.strip() for name in policies.split(",")),
        budgets=parse_numbers(budgets, "--budgets"),
        ladder=parse_numbers(ladder, "--ladder"),
        seeds=seeds,
        learning_rates=parse_numbers(search_lr, "--search-lr") if search_lr else (),
        jobs=jobs,
        out=out,
    )
    compared = compare_runs(options, config=known, report=report)
    typer.echo(
        write_folder(out, compared.to_dict(), find_dataset(dataset, known), analysis_files(known), report=report)
    )


@cli.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, or any other model that train would take.")],
    dataset: Annotated[str, typer.Option(help="A name in curate.toml with a test split.")],
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16; otherwise what the hardware gains by.")] = None,
    config: ConfigOption = None,
) -> None:
    """Measure a model on a test split: top-1, or retrieval both ways and, where classes are named, zero-shot. JSON.

    Example: curate evaluate runs/icons-jest-learner-seed0 --dataset emoji
    """
    from .datasets.spec import load_config
    from .training.evaluate import evaluate_by_name

    typer.echo(json.dumps(evaluate_by_name(model, dataset, load_config(config), precision), indent=1))


@cli.command()
def sql(
    query: Annotated[str, typer.Argument(help="A SELECT over scores, failures, runs, metrics, selections, analysis.")],
    scores: ScoresOption = "scores",
    runs: RunsOption = "runs",
    format: Annotated[str, typer.Option(help="table, csv, json or parquet.")] = "table",
    output: Annotated[str | None, typer.Option(help="File to write to, instead of standard output.")] = None,
    config: ConfigOption = None,
) -> None:
    """Ask SQL (DuckDB, read-only) over score tables and runs.

    Example: curate sql "SELECT policy, avg(top1) FROM runs GROUP BY policy"
    """
    from .datasets.spec import analysis_files, load_config
    from .reports import connect, write
    from .reports import query as run_query

    connection = connect(scores=scores, runs=runs, datasets=analysis_files(load_config(config)))
    write(run_query(connection, query), format, output)


@cli.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where its data, scores and runs go.")] = Path("demo"),
) -> None:
    """The whole way on real data: CIFAR-10 with people's wrong labels. Run again, it reuses what is done.

    Example: curate demo
    """
    from .reports.demo import demo as run_demo

    run_demo(folder)
