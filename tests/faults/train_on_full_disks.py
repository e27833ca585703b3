"""Run with full_disk.c preloaded: train a run to its end through a disk that is full for one kind of file after another.

    python train_on_full_disks.py OPTIONS.json CURATE.TOML KIND ...

Prints what was raised for each kind, a JSON object a line. `OPTIONS.json` has the options of one run, `out` among them; each
kind gets a folder of its own there.
"""

import json
import os
import sys
from pathlib import Path

import safetensors.torch
from curate.datasets.spec import load_config
from curate.errors import CurateError
from curate.training import RunOptions, train


def main() -> None:
    options, toml, *kinds = sys.argv[1:]
    known = json.loads(Path(options).read_text())
    config = load_config(Path(toml))
    write, full = safetensors.torch.save_file, ""

    def save_file(tensors, path, *more):
        """safetensors writes under another name than it was given, so its whole folder is full meanwhile."""
        os.environ["FULL"] = "/checkpoints/" if full and full in str(path) else full
        try:
            write(tensors, path, *more)
        finally:
            os.environ["FULL"] = full

    safetensors.torch.save_file = save_file
    for i, kind in enumerate(kinds):
        told = None
        run = RunOptions.of(**{**known, "name": f"kind-{i}"})
        full = os.environ["FULL"] = kind
        try:
            train(run, config=config, report=lambda line: None)
        except CurateError as e:
            told = str(e)
        full = os.environ["FULL"] = ""
        train(run, config=config, resume=True, report=lambda line: None)
        print(json.dumps({"kind": kind, "told": told}), flush=True)


main()
