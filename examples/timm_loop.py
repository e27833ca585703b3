"""timm: its transforms, optimizer, loss, scheduler and EMA, in a loop as its train.py has it, on chosen examples.

    python examples/timm_loop.py [FOLDER]        # 15 s on one CPU core, once noisy_digits.py has made the data

The learner sees timm's random training view, the online model timm's evaluation view. Every view is made of the whole
super-batch, before the choice: where augmentation is the bottleneck, augment `sub.views` instead.

A random transform draws from Python's and torch's global generators, in threads. So a resumed run sees the same
examples, but other crops of them: its weights are not those of an undisturbed run. plain_torch.py shows one that is
exact; this one shows no resume.

It prints:
    wrong labels: 40.0% of the data, 11.6% of the 1,920 chosen
    clean test accuracy of the averaged weights: 85.2%
"""

import os
import sys

import curate
import timm
import torch
import torch.nn.functional as F
import webdataset as wds
from noisy_digits import prepare, print_wrong
from timm.data import create_transform
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, accuracy

EPOCHS, UPDATES = 6, 10  # what timm calls an epoch is here a number of updates: the stream has no end
os.chdir(prepare("digits", *sys.argv[1:2]))  # where curate.toml names the data set "digits"
torch.set_num_threads(1)  # more gain nothing on images of 32 x 32 pixels
torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

training_view = create_transform(32, is_training=True, scale=(0.7, 1.0), hflip=0.0, color_jitter=None, re_prob=0.1)
evaluation_view = create_transform(32, crop_pct=1.0)

model = timm.create_model("test_resnet", num_classes=10).to(device)
optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05)
scheduler, _ = create_scheduler_v2(
    optimizer, "cosine", num_epochs=EPOCHS, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=UPDATES
)
ema = ModelEmaV3(model, decay=0.95, use_warmup=True)
criterion = LabelSmoothingCrossEntropy(smoothing=0.1)


def losses(module, batch):
    """How examples are scored, float [B]: without label smoothing, as the reference scored them."""
    return F.cross_entropy(module(batch.views["online"]), batch.targets, reduction="none")


small = timm.create_model("test_vit", img_size=32, num_classes=10).to(device)
online = curate.OnlineModel(small, losses, create_optimizer_v2(small, opt="adamw", lr=3e-3))
batches = curate.SuperBatches(
    "digits", 128, views={"learner": training_view, "online": evaluation_view}, scores="scores/digits"
)
subs = curate.SubBatches(batches, curate.Selector("learnability", 32), online=online, device=device)

stream, chosen, num_updates = iter(subs), [], 0
for epoch in range(EPOCHS):
    model.train()
    for _ in range(UPDATES):
        sub = next(stream)
        loss = criterion(model(sub.views["learner"]), sub.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        num_updates += 1
        ema.update(model, step=num_updates)
        scheduler.step_update(num_updates)
        chosen += sub.keys
    scheduler.step(epoch + 1)
subs.close()

tests = wds.WebDataset("test/{00000..00001}.tar", shardshuffle=False).decode("pil").to_tuple("png", "cls")
images, labels = next(iter(tests.map_tuple(evaluation_view, int).batched(1000)))
with torch.no_grad():
    (top1,) = accuracy(ema.module(images.to(device)), torch.as_tensor(labels).to(device))
print_wrong(chosen)
print(f"clean test accuracy of the averaged weights: {top1:.1f}%")
