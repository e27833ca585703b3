"""`curate demo`: run the README's commands on CIFAR-10N, then show their results."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..datasets.spec import Config, add_model, analysis_files, load_config
from ..errors import CurateError
from ..ledger import BASELINE
from ..scoring.policies import LEARNABILITY
from .output import write
from .reading import query
from .views import connect

BUDGET = "3TF"
LEARNER = {
    "architecture": "small_resnet",
    "arguments": {"channels": [32, 64, 128, 256], "layers": [0, 1, 1]},
}
SCORER = {
    "architecture": "small_resnet",
    "arguments": {"channels": [8, 16, 32, 64], "layers": [0, 1, 1]},
}
COMMANDS = (
    ("Fetch CIFAR-10 and CIFAR-10N (40 % of the labels wrong, by people) and write shards", "prepare cifar10n"),
    (
        "Train a small reference model on 10,000 images with clean labels, which no later command uses",
        "train --dataset cifar10n-curated --learner scorer --examples 50000 --lr 5e-3 --name reference --resume",
    ),
    (
        "Score the other 40,000 images with it once, on Apache Beam",
        "score-reference --dataset cifar10n --reference runs/reference",
    ),
    (
        f"Train a learner on these for {BUDGET}, drawn uniformly",
        f"train --dataset cifar10n --policy {BASELINE} --learner learner --budget-flops {BUDGET} --name {BASELINE} --resume",
    ),
    (
        f"Train the same learner for the same {BUDGET}, selecting by {LEARNABILITY}",
        f"train --dataset cifar10n --policy {LEARNABILITY} --learner learner --online scorer --online-lr 5e-3 "
        f"--reference-scores scores --filter-ratio 0.5 --budget-flops {BUDGET} --name {LEARNABILITY} --resume",
    ),
)
QUERIES = (
    (
        "Does the reference's loss find wrong labels? Share of wrong labels by decile of the stored loss:",
        """SELECT decile, count(*) AS examples, round(avg(loss), 3) AS mean_loss,
       round(avg((worse_label <> clean_label)::INT), 3) AS share_wrong
FROM (SELECT *, ntile(10) OVER (ORDER BY loss) AS decile FROM scores)
JOIN analysis USING (dataset, shard, key)
GROUP BY decile ORDER BY decile""",
    ),
    (
        f"What did {LEARNABILITY} choose? (Only this query knows which labels are wrong; training never does.)",
        f"""SELECT selected, count(*) AS examples, round(avg((worse_label <> clean_label)::INT), 3) AS share_wrong,
       round(avg(online_loss), 3) AS online_loss, round(avg(reference_loss), 3) AS reference_loss
FROM selections JOIN analysis USING (shard, key)
WHERE run = '{LEARNABILITY}' AND dataset = 'cifar10n' GROUP BY selected ORDER BY selected""",
    ),
)


def demo(folder: Path) -> None:
    """Run every command in `folder`, which gets its own curate.toml; print a table of both runs and two queries.

    Raises CurateError if a command fails; the command itself prints the reason.
    """
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "curate.toml"
    add_model(config, "learner", LEARNER)
    add_model(config, "scorer", SCORER)
    for number, (purpose, arguments) in enumerate(COMMANDS, 1):
        console.print(f"\n[bold]{number}/{len(COMMANDS)}  {purpose}[/bold]\n[dim]$ curate {arguments}[/dim]")
        command = [sys.executable, "-m", "curate", *arguments.split()]
        if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode != 0:
            raise CurateError(
                f"'curate {arguments}' failed in {folder} (see above); run 'curate demo' again to resume there"
            )
    show(folder, load_config(config), console)
    console.print(
        f"Score table: {folder}/scores   runs: {folder}/runs   settings: {config}\n"
        f"Total {time.perf_counter() - started:,.0f} s. Try: cd {folder} && "
        'curate sql "SELECT * FROM runs"'
    )


def show(folder: Path, config: Config, console: Console) -> None:
    """Print the table of both runs, from their ledgers, and the two queries with their results."""
    connection = connect(scores=str(folder / "scores"), runs=str(folder / "runs"), datasets=analysis_files(config))
    runs = query(
        connection,
        f"""SELECT policy, learner_updates, learner_train_flops, online_score_flops, online_train_flops,
                  reference_score_flops, reference_train_flops, seconds, top1
           FROM runs WHERE run IN ('{BASELINE}', '{LEARNABILITY}') ORDER BY policy DESC""",
    )
    table = Table(
        title=f"\nThe same learner, the same budget of {BUDGET} (TFLOPs by ledger line)", title_justify="left"
    )
    table.add_column("policy")
    for name in (
        "learner\nupdates",
        "learner\ntrain",
        "online\nscore",
        "online\ntrain",
        "reference\nscore *",
        "reference\ntrain *",
        "seconds",
        "clean test\naccuracy",
    ):
        table.add_column(name, justify="right")
    for row in runs.read_all().to_pylist():
        flops = [row[f"{line}_flops"] or 0.0 for line in ("learner_train", "online_score", "online_train")]
        shared = [row[f"{line}_flops"] or 0.0 for line in ("reference_score", "reference_train")]
        table.add_row(
            row["policy"],
            f"{row['learner_updates']:,}",
            *(f"{value / 1e12:.2f}" for value in flops + shared),
            f"{row['seconds']:.0f}",
            f"{row['top1']:.1%}",
        )
    console.print(table)
    console.print(
        "* paid once for all runs that read the score table, and not part of this budget (--charge-reference adds it)\n"
    )
    for question, sql in QUERIES:
        console.print(f"[bold]{question}[/bold]\n[dim]{sql}[/dim]")
        write(query(connection, sql), "table")
