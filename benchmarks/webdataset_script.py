"""What one would write without this package: webdataset's loader, timm's transform, a DataLoader, one loss an example.

Prints examples/s from the loader's first request to the last loss; imports and the model's making are not in it.

    python benchmarks/webdataset_script.py SHARDS WEIGHTS --model resnet18 --precision bf16
"""

from __future__ import annotations

import argparse
import os
import time

import timm
import torch
import webdataset as wds
from safetensors.torch import load_file
from torch.nn import functional as F


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards")
    parser.add_argument("weights")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)

    model = timm.create_model(options.model, num_classes=10)
    model.load_state_dict(load_file(options.weights))
    model.eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    dataset = (
        wds.WebDataset(options.shards, shardshuffle=False, empty_check=False)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(transform, int)
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=options.batch_size, num_workers=cores)

    losses = []
    started = time.perf_counter()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
        for images, labels in loader:
            losses.append(F.cross_entropy(model(images).float(), labels, reduction="none"))
    print(len(torch.cat(losses)) / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
