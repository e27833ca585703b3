"""Hugging Face Trainer: trains a ConvNeXt of transformers on chosen examples, stopped in the middle and resumed.

    pip install 'curate[examples]'
    python examples/hf_trainer.py [FOLDER]       # 15 s on one CPU core, once noisy_digits.py has made the data

The Trainer sees an iterable data set of dicts, each a whole batch of chosen examples. The online model scores and takes
its own step inside that iterable, so the Trainer knows nothing of it. A callback saves the state of the stream and the
online model beside each checkpoint. A resume loads it, and `ignore_data_skip` keeps the Trainer from skipping batches.

One process only: with more, every process would train on the same examples.

It prints:
    wrong labels: 40.0% of the data, 7.2% of the 6,400 chosen
    the run resumed at step 50 chooses the same and ends with the same weights: True
"""

import os
import sys

import curate
import torch
import torch.nn.functional as F
from noisy_digits import prepare, print_wrong
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import ConvNextConfig, ConvNextForImageClassification, Trainer, TrainerCallback, TrainingArguments

STEPS = 100
os.chdir(prepare("digits", *sys.argv[1:2]))  # where curate.toml names the data set "digits"
torch.set_num_threads(1)  # more gain nothing on images of 8 x 8 pixels


def pixels(batch):
    """What curate.Geometry made, uint8 [B, 8, 8, 3], as models take it: float [B, 3, 8, 8]."""
    return batch.views["image"].permute(0, 3, 1, 2).float() / 255


def losses(module, batch):
    """How examples are scored, float [B]."""
    return F.cross_entropy(module(pixels(batch)), batch.targets, reduction="none")


class Chosen(IterableDataset):
    """Batches of chosen examples, as the Trainer's model takes them. It has no end: `max_steps` ends the training."""

    def __init__(self, device):
        super().__init__()
        small = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.ReLU(), nn.Linear(32, 10)).to(device)
        self.online = curate.OnlineModel(small, losses, torch.optim.AdamW(small.parameters(), lr=1e-3))
        batches = curate.SuperBatches("digits", 256, views={"image": curate.Geometry(size=8)}, scores="scores/digits")
        selector = curate.Selector("learnability", 64)
        self.subs = curate.SubBatches(batches, selector, online=self.online, device=device)
        self.keys = []

    def __iter__(self):
        for sub in self.subs:
            self.keys += sub.keys
            yield {"pixel_values": pixels(sub), "labels": sub.targets}

    def save(self, path):
        torch.save({"subs": self.subs.state_dict(), "online": self.online.state_dict()}, path)

    def load(self, path):
        saved = torch.load(path)
        self.subs.load_state_dict(saved["subs"])
        self.online.load_state_dict(saved["online"])


class CuratedTrainer(Trainer):
    """A Trainer whose loader never reads ahead.

    accelerate's, which it wraps round its loaders, reads one batch ahead: a checkpoint would miss that batch.
    """

    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=None)


class SaveStream(TrainerCallback):
    """Saves the stream and the online model beside each checkpoint."""

    def __init__(self, chosen):
        self.chosen = chosen

    def on_save(self, args, state, control, **kwargs):
        self.chosen.save(f"{args.output_dir}/checkpoint-{state.global_step}/curate.pt")


def train(checkpoint=None):
    torch.manual_seed(0)
    args = TrainingArguments(
        "hf_trainer",
        max_steps=STEPS,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        save_steps=STEPS // 2,
        ignore_data_skip=True,
        report_to="none",
        disable_tqdm=True,
    )
    model = ConvNextForImageClassification(
        ConvNextConfig(patch_size=2, num_stages=2, depths=[1, 1], hidden_sizes=[32, 64], num_labels=10)
    )
    chosen = Chosen(args.device)
    if checkpoint is not None:
        chosen.load(f"{checkpoint}/curate.pt")
    trainer = CuratedTrainer(model, args, train_dataset=chosen, callbacks=[SaveStream(chosen)])
    trainer.train(resume_from_checkpoint=checkpoint)
    chosen.subs.close()
    return trainer.model, chosen.keys


whole, chosen = train()
resumed, rest = train(f"hf_trainer/checkpoint-{STEPS // 2}")
print_wrong(chosen)
same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
same = same and rest == chosen[len(chosen) // 2 :]
print(f"the run resumed at step {STEPS // 2} chooses the same and ends with the same weights: {same}")
