"""Image-text pairs: ActiveCLIP of arXiv 2312.05328, and JEST. Models are open_clip's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from ...datasets.batches import batched
from ...datasets.readers import Example
from ...datasets.spec import DatasetSpec
from ...datasets.targets import CAPTION, LABEL
from ...errors import ModelError, SpecError
from ..captions import CaptionEncoder
from ..evaluation import counts, nothing_read, recalls, split_batches
from ..flops import forward_flops
from ..forward import autocast, embed, embed_captions, embeddings_of, evaluating, score_batch, score_embeddings
from ..losses import identical_captions
from ..models import EvaluationFlops, Model, ModelSpec, Scored
from ..open_clip_models import (
    SCHEMES,
    build_open_clip,
    check_config,
    knows_open_clip,
    open_clip_spec,
    read_config,
)
from ..pairs import PairScorer
from ..ranks import ALONE, Ranks
from ..settings import Precision, Reduction
from ..tables.schema import vector_column, vector_type


class ImageText:
    """Captions; the scoring loss is the negative dot product of a pair's two embeddings."""

    name = CAPTION.task
    target = CAPTION
    loss_name = "negative-dot-product"
    quality = "mean_recall"
    # With the learning rate of small ConvNets, contrastive ViTs do not start to learn.
    lr = 5e-4
    augment = "none"
    # A dot product lies in [-1, 1]; a softmax of such scores hardly selects.
    score_scale = 20.0
    # Five times what bf16 changes a dot product by, of which the standard deviation is 0.05.
    bf16_tolerance = 0.015
    compares = True

    def spec(self, name: str, architecture: str, num_classes: int) -> ModelSpec:
        return open_clip_spec(self.name, name, architecture)

    def spec_of_entry(self, name: str, entry: Mapping[str, Any], num_classes: int, base: Path) -> ModelSpec:
        if "arguments" in entry:
            raise ModelError(
                f"model '{name}': arguments = is for timm's classifiers; open_clip's settings are in config ="
            )
        clip_config = entry.get("config")
        if (clip_config is None) == ("architecture" not in entry):
            raise ModelError(
                f"model '{name}': set architecture = to an open_clip name, or config = to its JSON config; one of them"
            )
        if clip_config is None:
            return open_clip_spec(self.name, name, entry["architecture"])
        if isinstance(clip_config, str):
            where = clip_config if "://" in clip_config else str(base / Path(clip_config).expanduser())
            clip_config = read_config(name, where)
        check_config(name, clip_config)
        return ModelSpec(name=name, task=self.name, architecture=name, open_clip_config=clip_config)

    def knows(self, architecture: str) -> bool:
        return knows_open_clip(architecture)

    def without_weights(self, spec: ModelSpec) -> ModelSpec:
        architecture = spec.architecture
        if not architecture.startswith(SCHEMES):
            architecture = architecture.partition(":")[0]
        return replace(spec, weights="", architecture=architecture)

    def build(self, spec: ModelSpec) -> Model:
        return build_open_clip(self, spec)

    def targets(self, model: Model, values: Sequence[int | str]) -> torch.Tensor:
        if not values:
            return torch.empty(0, dtype=torch.int64)
        return model.tokenize([str(value) for value in values])

    def blank(self) -> int | str:
        return "a"

    def outputs(self, model: Model, output: Any, targets: torch.Tensor) -> int:
        image_BD, text_BD = embeddings_of(output)
        if image_BD.dim() != 2 or image_BD.shape != text_BD.shape:
            raise ValueError(
                f"gives image embeddings of {' x '.join(map(str, image_BD.shape[1:]))} and text embeddings of "
                f"{' x '.join(map(str, text_BD.shape[1:]))}, expected two vectors of one length"
            )
        words, last = _vocabulary(model.module), int(targets.max())
        if words and last >= words:
            raise ValueError(f"text_cfg.vocab_size is {words}, its tokenizer gives token {last}")
        return int(image_BD.shape[1])

    def misfit(self, model: Model, target: int | str) -> str:
        return ""

    def forward(self, run: Any, images: torch.Tensor, targets: torch.Tensor) -> Any:
        return run(images, targets)

    def training_loss(
        self,
        model: Model,
        label_smoothing: float = 0.0,
        ranks: Ranks = ALONE,
        gce: float | None = None,
        reduction: Reduction = "mean",
    ) -> Callable[[Any, torch.Tensor], torch.Tensor]:
        if gce is not None:
            raise SpecError("--gce is a loss of labels, and this data set has captions; leave it out")
        if reduction != "mean":
            raise SpecError(
                "a contrastive loss compares all pairs, so that no single one has a weight; leave weights out"
            )
        from ..contrastive import contrastive_loss  # imports open_clip, which who trains no pairs can do without

        return contrastive_loss(model, ranks)

    def infer(self, run: Any, images: torch.Tensor, targets: torch.Tensor) -> Any:
        return embed(run, images, targets)

    def scored(self, inferred: Any, targets: torch.Tensor) -> Scored:
        return score_embeddings(*inferred)

    def kept(self, model: Model) -> CaptionEncoder:
        return CaptionEncoder(model)

    def shard_scorer(
        self,
        model: Model,
        *,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        forward_flops: float,
        kept: Any,
    ) -> PairScorer:
        return PairScorer(model, kept, forward_flops - kept.flops_of_all, device, precision, batch_size)

    def fields(self, width: int = 0) -> list[pa.Field]:
        found = [pa.field("similarity", pa.float32(), nullable=False)]
        if width:
            vector = vector_type(width)
            found += [pa.field("image_embedding", vector), pa.field("text_embedding", vector)]
        return found

    def columns(self, examples: Sequence[Example], scored: Scored) -> dict[str, Any]:
        assert scored.similarity is not None
        found: dict[str, Any] = {"similarity": scored.similarity.float().cpu().numpy()}
        for name in ("image_embedding", "text_embedding"):
            found[name] = vector_column(getattr(scored, name))
        return found

    def step_metrics(self, targets: torch.Tensor, ranks: Ranks = ALONE) -> dict[str, Any]:
        """Pairs of this sub-batch that share a caption are left out of the contrastive loss."""
        return {"masked_negatives": int(identical_captions(torch.cat(ranks.gather(targets))).sum())}

    def evaluate(
        self,
        model: Model,
        dataset: DatasetSpec,
        *,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        ranks: Ranks = ALONE,
    ) -> dict[str, float]:
        quality = _retrieval(model, dataset, device, precision, batch_size, ranks)
        if dataset.label and dataset.classes:
            top1, labelled = _zero_shot(model, dataset, device, precision, batch_size, ranks)
            more = {} if labelled == quality["test_examples"] else {"zero_shot_examples": labelled}
            quality |= {"zero_shot_top1": top1, **more}
        return quality

    def evaluation_flops(self, model: Model) -> EvaluationFlops:
        return EvaluationFlops(forward_flops(model).per_example, CaptionEncoder(model).flops_of_all, model.outputs)


def _vocabulary(module: Any) -> int:
    """How many tokens a text tower knows; 0 where it does not say."""
    found = getattr(module, "vocab_size", None) or getattr(getattr(module, "text", None), "vocab_size", None)
    return int(found or 0)


def _retrieval(
    model: Model, dataset: DatasetSpec, device: torch.device, precision: Precision, batch_size: int, ranks: Ranks
) -> dict[str, float]:
    """Recall among the split's images and all of their captions. Image files that are identical are one image."""
    nothing = torch.empty(0, model.outputs, device=device)
    images, texts = [nothing], [nothing]
    files: list[bytes] = []
    captions: list[tuple[bytes, str]] = []  # with the file that each is of
    failures = 0

    def add_texts(text_BD: torch.Tensor, of_files: Sequence[bytes], found: Sequence[str]) -> None:
        texts.append(text_BD)
        captions.extend(zip(of_files, found, strict=True))

    with ranks.together():
        for batch in split_batches(model, dataset, batch_size, ranks):
            failures += len(batch.failures)
            if not batch.examples:
                continue
            here = [blake2b(e.image, digest_size=16).digest() for e in batch.examples]
            first = [str(e.target) for e in batch.examples]
            tokens = model.tokenize(first).to(device)
            scored = score_batch(model, torch.from_numpy(batch.pixels).to(device), tokens, precision=precision)
            assert scored.image_embedding is not None and scored.text_embedding is not None
            images.append(scored.image_embedding)
            files += here
            add_texts(scored.text_embedding, here, first)
            more = [(file, text) for file, e in zip(here, batch.examples, strict=True) for text in e.more_captions]
            for part in batched(more, batch_size):
                found = [text for _, text in part]
                tokens = model.tokenize(found).to(device)
                add_texts(embed_captions(model, tokens, precision), [file for file, _ in part], found)
    image_ND, text_MD = (torch.cat(ranks.gather(torch.cat(parts))) for parts in (images, texts))
    files = [one for part in ranks.share(files) for one in part]
    captions = [one for part in ranks.share(captions) for one in part]
    failures = sum(ranks.share(failures))
    if not files:
        raise nothing_read(dataset)
    number = {file: i for i, file in enumerate(dict.fromkeys(files))}
    words = {text: i for i, text in enumerate(dict.fromkeys(text for _, text in captions))}
    place = {file: row for row, file in reversed(list(enumerate(files)))}  # where each file comes first
    image_ND = image_ND[torch.tensor([place[file] for file in number], device=device)]
    image_of_M = torch.tensor([number[file] for file, _ in captions], device=device)
    caption_M = torch.tensor([words[text] for _, text in captions], device=device)
    quality = recalls(image_ND, text_MD, image_of_M, caption_M)
    # The mean is less noisy than a single recall: a test split has some hundred queries.
    mean = sum(quality.values()) / len(quality)
    several = {"test_images": len(number), "test_captions": len(captions)}
    more_counts = {name: count for name, count in several.items() if count != len(files)}
    return {"mean_recall": mean, **quality, **counts(len(files), failures), **more_counts}


def _zero_shot(
    model: Model, dataset: DatasetSpec, device: torch.device, precision: Precision, batch_size: int, ranks: Ranks
) -> tuple[float, int]:
    """Classify by the nearest class embedding, the mean over the templates (Radford et al., arXiv 2103.00020). The share that
    is right, and of how many."""
    labelled = replace(dataset, task=LABEL.task)
    correct = total = 0
    with ranks.together():
        with evaluating(model.module), torch.inference_mode(), autocast(device, precision):
            class_DC = torch.stack([_class_embedding(model, name, dataset, device) for name in dataset.classes], dim=1)
        for batch in split_batches(model, labelled, batch_size, ranks):
            if not batch.examples:
                continue
            labels = torch.tensor([e.target for e in batch.examples], device=device)
            with evaluating(model.module), torch.inference_mode(), autocast(device, precision):
                images = model.normalize(torch.from_numpy(batch.pixels).to(device))
                image_BD = model.module.encode_image(images, normalize=True).float()  # type: ignore[operator]
            correct += int(((image_BD @ class_DC).argmax(1) == labels).sum())
            total += len(labels)
    right, seen = (int(n) for n in ranks.sum(torch.tensor([correct, total])))
    return right / max(1, seen), seen


def _class_embedding(model: Model, name: str, dataset: DatasetSpec, device: torch.device) -> torch.Tensor:
    tokens = model.tokenize([template.replace("{}", name) for template in dataset.templates]).to(device)
    text_TD: torch.Tensor = model.module.encode_text(tokens, normalize=True).float()  # type: ignore[operator]
    return torch.nn.functional.normalize(text_TD.mean(0), dim=0)
