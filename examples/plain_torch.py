"""Plain PyTorch: the shortest loop that trains on chosen examples, stopped in the middle and resumed.

    python examples/plain_torch.py [FOLDER]        # 10 s on one CPU core, once noisy_digits.py has made the data

At each step a small online model scores 256 digits, and the 64 that can be learned most from are chosen. The online
model takes a step on those, then the learner does. Halfway, all state is saved. A second run starts from there.

It prints:
    wrong labels: 40.0% of the data, 6.8% of the 6,400 chosen
    the run resumed at step 50 chooses the same and ends with the same weights: True
"""

import os
import sys

import curate
import torch
import torch.nn.functional as F
from noisy_digits import prepare, print_wrong
from torch import nn

STEPS = 100
os.chdir(prepare("digits", *sys.argv[1:2]))  # where curate.toml names the data set "digits"
torch.set_num_threads(1)  # more gain nothing on images of 8 x 8 pixels
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def losses(module, batch):
    """Each example's loss, float [B], of the view that curate.Geometry made: uint8 [B, 8, 8, 3]."""
    pixels = batch.views["image"].permute(0, 3, 1, 2).float() / 255
    return F.cross_entropy(module(pixels), batch.targets, reduction="none")


def classifier(width, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width), nn.ReLU(), nn.Linear(width, 10)).to(device)


def train(checkpoint=None):
    """Train to the last step, from a checkpoint if one is given. Returns the learner, and the keys that it trained on."""
    learner, small = classifier(width=256, seed=0), classifier(width=32, seed=1)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    online = curate.OnlineModel(small, losses, torch.optim.AdamW(small.parameters(), lr=1e-3))
    batches = curate.SuperBatches("digits", 256, views={"image": curate.Geometry(size=8)}, scores="scores/digits")
    subs = curate.SubBatches(batches, curate.Selector("learnability", 64), online=online, device=device)

    stateful = {"learner": learner, "optimizer": optimizer, "online": online, "subs": subs}
    done = 0
    if checkpoint is not None:
        saved = torch.load(checkpoint)
        done = saved["step"]
        for name, part in stateful.items():
            part.load_state_dict(saved[name])

    chosen = []
    # The range comes first: when it ends, zip draws no further sub-batch.
    for step, sub in zip(range(done + 1, STEPS + 1), subs, strict=False):
        loss = losses(learner, sub).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        chosen += sub.keys
        if step == STEPS // 2:
            torch.save({"step": step, **{name: part.state_dict() for name, part in stateful.items()}}, "plain_torch.pt")
    subs.close()
    return learner, chosen


whole, chosen = train()
resumed, rest = train("plain_torch.pt")
print_wrong(chosen)
same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
same = same and rest == chosen[len(chosen) // 2 :]
print(f"the run resumed at step {STEPS // 2} chooses the same and ends with the same weights: {same}")
