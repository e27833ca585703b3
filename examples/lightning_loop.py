"""Lightning: a module with manual optimisation that trains on chosen examples, stopped in the middle and resumed.

    pip install 'curate[examples]'
    python examples/lightning_loop.py [FOLDER]       # 15 s on one CPU core, once noisy_digits.py has made the data

Lightning saves and restores both models and both optimizers. The module's hooks put the state of the stream and of the
selector into the same checkpoint, so `trainer.fit(..., ckpt_path=...)` is all that a resume needs. The loader has a
length: Lightning reads one batch ahead of a loader that has none, and a checkpoint would then miss that batch.

It prints:
    wrong labels: 40.0% of the data, 6.4% of the 6,400 chosen
    the run resumed at step 50 chooses the same and ends with the same weights: True
"""

import logging
import os
import sys
import warnings

import curate
import lightning
import torch
import torch.nn.functional as F
from noisy_digits import prepare, print_wrong
from torch import nn

STEPS = 100
os.chdir(prepare("digits", *sys.argv[1:2]))  # where curate.toml names the data set "digits"
torch.set_num_threads(1)  # more gain nothing on images of 8 x 8 pixels
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")  # the hooks below do it


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
    """The learner and the online model, and the stream of what is chosen for them."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.learner, self.small = classifier(256), classifier(32)
        self.online = curate.OnlineModel(self.small, losses, torch.optim.AdamW(self.small.parameters(), lr=1e-3))
        batches = curate.SuperBatches("digits", 256, views={"image": curate.Geometry(size=8)}, scores="scores/digits")
        self.subs = curate.SubBatches(batches, curate.Selector("learnability", 64), online=self.online)
        self.chosen = []

    def configure_optimizers(self):
        return [torch.optim.AdamW(self.learner.parameters(), lr=1e-3), self.online.optimizer]

    def on_fit_start(self):
        self.subs.device = self.device  # Lightning has chosen it by now

    def train_dataloader(self):
        return SubBatchLoader(self.subs)

    def training_step(self, sub, step):
        optimizer, _ = self.optimizers()  # the online model has taken its step
        loss = losses(self.learner, sub).mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.chosen += sub.keys

    def on_train_batch_end(self, outputs, sub, step):
        if self.global_step == STEPS // 2:
            self.trainer.save_checkpoint("lightning_loop.ckpt")

    def on_save_checkpoint(self, checkpoint):
        checkpoint["curate"] = self.subs.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.subs.load_state_dict(checkpoint["curate"])


def classifier(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width), nn.ReLU(), nn.Linear(width, 10))


def fit(checkpoint=None):
    lightning.seed_everything(0, verbose=False)
    module = Curated()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    lightning.Trainer(max_epochs=1, devices=1, **quiet).fit(module, ckpt_path=checkpoint)
    module.subs.close()
    return module


whole = fit()
resumed = fit("lightning_loop.ckpt")
print_wrong(whole.chosen)
same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
same = same and resumed.chosen == whole.chosen[len(whole.chosen) // 2 :]
print(f"the run resumed at step {STEPS // 2} chooses the same and ends with the same weights: {same}")
