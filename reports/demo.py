"""`curate demo`: the commands of the README one after the other on CIFAR-10N, then what they left."""

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

BUDGET = "15TF"
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
        "Train a small reference on 10,000 pictures with clean labels, held out from all that follows",
        "train --dataset cifar10n-curated --learner scorer --examples 100000 --lr 5e-3 --name reference --resume",
    ),
    (
        "Score the other 40,000 with it, once, through Beam",
        "score-reference --dataset cifar10n --reference runs/reference",
    ),
    (
        f"Train a learner on them for {BUDGET}, drawn uniformly",
        f"train --dataset cifar10n --policy {BASELINE} --learner learner --budget-flops {BUDGET} --name {BASELINE} --resume",
    ),
    (
        f"Train the same learner for the same {BUDGET}, choosing by {LEARNABILITY}",
        f"train --dataset cifar10n --policy {LEARNABILITY} --learner learner --online scorer --online-lr 5e-3 "
        f"--reference-scores scores --filter-ratio 0.5 --budget-flops {BUDGET} --name {LEARNABILITY} --resume",
    ),
)
QUERIES = (
    (
        "Does the reference's loss find the wrong labels? Shares of wrong ones by decile of stored loss:",
        """SELECT decile, count(*) AS examples, avg(loss) AS mean_loss, avg((worse_label <> clean_label)::INT) AS share_wrong
FROM (SELECT *, ntile(10) OVER (ORDER BY loss) AS decile FROM scores)
JOIN analysis USING (dataset, shard, key)
GROUP BY decile ORDER BY decile""",
    ),
    (
        f"What did {LEARNABILITY} choose? (Which labels are wrong is known to this query only, never to training.)",
        f"""SELECT selected, count(*) AS examples, avg((worse_label <> clean_label)::INT) AS share_wrong,
       avg(online_loss) AS online_loss, avg(reference_loss) AS reference_loss
FROM selections JOIN analysis USING (shard, key)
WHERE run = '{LEARNABILITY}' AND dataset = 'cifar10n' GROUP BY selected ORDER BY selected""",
    ),
)


def demo(folder: Path) -> None:
    """Run every command in `folder`, which gets its own curate.toml; print a table of both runs and two queries.

    Raises CurateError where a command fails (it has said why).
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
                f"'curate {arguments}' failed in {folder} (see above); 'curate demo' again goes on from there"
            )
    show(folder, load_config(config), console)
    console.print(
        f"Score table: {folder}/scores   runs: {folder}/runs   settings: {config}\n"
        f"Total {time.perf_counter() - started:,.0f} s. Go on there: cd {folder} && "
        'curate sql "SELECT * FROM runs"'
    )


def show(folder: Path, config: Config, console: Console) -> None:
    """The table of both runs, from their own ledgers, and the two queries with their answers."""
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
        "* paid once, shared by every run that reads the table, and not part of this budget (--charge-reference)\n"
    )
    for question, sql in QUERIES:
        console.print(f"[bold]{question}[/bold]\n[dim]{sql}[/dim]")
        write(query(connection, sql))
