"""Lightning: a module with manual optimisation that trains on chosen examples, stopped in the middle and resumed.

    pip install 'curate[examples]'
    python examples/lightning_loop.py [FOLDER]       # 20 s on one CPU core, once noisy_digits.py has made the data

The module's `train_dataloader` gives sub-batches. Its hooks put the state of the stream, the selector and the online
model into Lightning's own checkpoint, so `trainer.fit(..., ckpt_path=...)` is all that a resume needs. The loader has a
length: Lightning reads one batch ahead of a loader that has none, and a checkpoint would then miss that batch.

It prints, with 43 % of the labels wrong:
    wrong labels: 43.4% of the data, 7.1% of the 6,400 chosen
    step 100: the run resumed from step 50 ends with the same weights: True
"""

import logging
import os
import sys
import warnings

import curate
import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from noisy_digits import prepare, print_wrong
from torch import nn

STEPS = 100
os.chdir(prepare("digits", *sys.argv[1:2]))  # where curate.toml names the data set "digits"
torch.set_num_threads(1)  # more gain nothing on images of 8 x 8 pixels
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def losses(module, batch):
    """Each example's loss, float [B], of the view that curate.Geometry made: uint8 [B, 8, 8, 3]."""
    pixels = batch.views["image"].permute(0, 3, 1, 2).float() / 255
    return F.cross_entropy(module(pixels), batch.targets, reduction="none")


class SubBatchLoader:
    """The next sub-batches of the stream, as many as there are steps."""

    def __init__(self, subs):
        self.subs = subs

    def __len__(self):
        return STEPS

    def __iter__(self):
        return iter(self.subs)


class Curated(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.learner, self.small = self.classifier(256), self.classifier(32)
        self.online = curate.OnlineModel(self.small, losses, torch.optim.AdamW(self.small.parameters(), lr=1e-3))
        batches = curate.SuperBatches("digits", 256, views={"image": curate.Geometry(size=8)}, scores="scores/digits")
        self.subs = curate.SubBatches(batches, curate.Selector("learnability", 64), online=self.online)
        self.chosen = []

    @staticmethod
    def classifier(width):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width), nn.ReLU(), nn.Linear(width, 10))

    def on_fit_start(self):
        self.subs.device = self.device  # known from here on

    def train_dataloader(self):
        return SubBatchLoader(self.subs)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.learner.parameters(), lr=1e-3)

    def training_step(self, sub, step):
        optimizer, loss = self.optimizers(), losses(self.learner, sub).mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("loss", loss, batch_size=len(sub))
        self.chosen += sub.keys

    def on_save_checkpoint(self, checkpoint):
        checkpoint["curate"] = {"subs": self.subs.state_dict(), "online": self.online.state_dict()}

    def on_load_checkpoint(self, checkpoint):
        self.subs.load_state_dict(checkpoint["curate"]["subs"])
        self.online.load_state_dict(checkpoint["curate"]["online"])


def fit(checkpoint=None, callbacks=()):
    lightning.seed_everything(0, verbose=False)
    module = Curated()
    trainer = lightning.Trainer(
        max_epochs=1,
        devices=1,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, ckpt_path=checkpoint)
    module.subs.close()
    return module


halfway = ModelCheckpoint(
    "lightning", "{step}", every_n_train_steps=STEPS // 2, save_top_k=-1, enable_version_counter=False
)
whole = fit(callbacks=[halfway])
resumed = fit(f"lightning/step={STEPS // 2}.ckpt")
same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
print_wrong(whole.chosen)
print(f"step {STEPS}: the run resumed from step {STEPS // 2} ends with the same weights: {same}")
