"""The rival of `against_run_inference`: WORK DATASET MODEL PRECISION BATCH_SIZE OUT WORKERS."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import safetensors.torch
import timm
import torch
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor
from apache_beam.options.pipeline_options import PipelineOptions
from curate.datasets.decoding import decode
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import Shard, list_shards
from curate.datasets.spec import DatasetSpec, find_dataset, load_config
from curate.scoring.loading import find_model, load_model
from curate.scoring.models import Model

Keyed = tuple[tuple[str, int], torch.Tensor]


def decoded(shard: Shard, spec: DatasetSpec, geometry: Any, mean: np.ndarray, std: np.ndarray) -> Iterator[Keyed]:
    for example in read_shard(spec, shard):
        if isinstance(example, Example):
            pixels = (decode(example.image, geometry).astype(np.float32) - mean) / std
            yield (example.key, int(example.target)), torch.from_numpy(pixels).permute(2, 0, 1)


def infer(
    precision: str, batch: list[torch.Tensor], model: torch.nn.Module, device: str, arguments: Any, model_id: Any
) -> Any:
    torch.set_num_threads(1)
    images = torch.stack(batch).to(device)
    with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(images).float().cpu()
    return [PredictionResult(x, y) for x, y in zip(batch, logits, strict=True)]


def line(element: tuple[tuple[str, int], PredictionResult]) -> str:
    (key, label), result = element
    return f"{key} {torch.nn.functional.cross_entropy(result.inference[None], torch.tensor([label])).item():.6f}"


def main() -> None:
    work, name, model_name, precision, batch_size, out, workers = sys.argv[1:]
    config = load_config(Path(work) / "curate.toml")
    spec = find_dataset(name, config)
    model: Model = load_model(find_model(model_name, task="classification", num_classes=10, config=config))
    weights = Path(out).with_suffix(".pt")
    torch.save(safetensors.torch.load_file(f"{work}/{model_name}.safetensors"), weights)
    handler = PytorchModelHandlerTensor(
        state_dict_path=str(weights),
        model_class=partial(timm.create_model, model_name, num_classes=10),
        model_params={},
        device="CPU",
        inference_fn=partial(infer, precision),
        min_batch_size=int(batch_size),
        max_batch_size=int(batch_size),
    )
    mean, std = (np.array(x, dtype=np.float32) * 255 for x in (model.preprocessing.mean, model.preprocessing.std))
    options = PipelineOptions(["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"])
    with beam.Pipeline(runner="FnApiRunner", options=options) as pipeline:
        (
            pipeline
            | beam.Create(list_shards(spec))
            | beam.Reshuffle()
            | beam.FlatMap(decoded, spec, model.geometry, mean, std)
            | RunInference(KeyedModelHandler(handler))
            | beam.Map(line)
            | beam.io.WriteToText(f"{out}/losses")
        )


if __name__ == "__main__":
    main()
