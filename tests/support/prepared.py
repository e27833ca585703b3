"""What the session's fixtures prepared: folders with data, models and tables."""

from dataclasses import dataclass
from pathlib import Path

from curate.datasets.spec import Config, DatasetSpec, find_dataset
from curate.pipelines.options import ScoreOptions
from curate.scoring.loading import find_model
from curate.training import RunOptions

IN_MEMORY = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@dataclass(frozen=True)
class Digits:
    """A prepared folder: `curate.toml`, shards, models `scorer` and `learner`, the reference `run`, its `table`."""

    root: Path
    config: Config
    reference: str
    scores: str
    table: Path

    @property
    def toml(self) -> Path:
        return self.root / "curate.toml"

    def dataset(self, name: str = "digits") -> DatasetSpec:
        return find_dataset(name, self.config)

    def run_options(self, out: str | Path, **changes: object) -> RunOptions:
        """Options of a run that learnability chooses for, from the table."""
        known = dict(
            dataset="digits",
            policy="learnability",
            learner="learner",
            online="scorer",
            reference_scores=str(self.table),
            steps=12,
            batch_size=16,
            precision="fp32",
            log_every=1,
            checkpoint_every=5,
            evaluate=False,
            out=str(out),
            name="run",
        )
        return RunOptions.of(**{**known, **changes})

    def options(self, out: str | Path, **changes: object) -> ScoreOptions:
        """Scoring options for the digits with the reference, in this process."""
        spec = changes.pop("dataset", self.dataset())
        known = dict(
            dataset=spec,
            reference=find_model(self.reference, task="classification", num_classes=10, config=self.config),
            out=str(out),
            precision="fp32",
            runner_options=IN_MEMORY,
        )
        return ScoreOptions(**{**known, **changes})


@dataclass(frozen=True)
class Pairs:
    """Captioned digits ("the digit seven"), a `clip` model with weights, and no table yet."""

    root: Path
    config: Config
    captions: dict[str, str]

    def options(self, out: str | Path, **changes: object) -> ScoreOptions:
        known = dict(
            dataset=find_dataset("pairs", self.config),
            reference=find_model("clip", task="image-text", config=self.config),
            out=str(out),
            precision="fp32",
            runner_options=IN_MEMORY,
        )
        return ScoreOptions(**{**known, **changes})
