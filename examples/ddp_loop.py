"""Several processes: one sequence of super-batches and one choice, with the work divided among the ranks.

    torchrun --nproc-per-node 2 examples/ddp_loop.py [FOLDER]        # 20 s on two CPU cores

Every rank reads its part of each super-batch, scores it, and is told all scores. So all ranks choose the same 64 of 256
digits, and each trains on 32 of them. With one process, or with four, the same examples are chosen while the scores are
the same to the last bit.

It prints (rank 0):
    2 ranks chose 6,400 digits together; 4.7% of them moved to another rank
    wrong labels: 40.0% of the data, 6.8% of the 6,400 chosen
"""

import os
import sys

import curate
import torch
import torch.nn.functional as F
from noisy_digits import prepare, print_wrong
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STEPS = 100
torch.set_num_threads(1)  # more gain nothing on images of 8 x 8 pixels
group = curate.Group.from_env()
os.chdir(group.first(lambda: prepare("digits", *sys.argv[1:2])))  # rank 0 prepares the data, all are told where
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def losses(module, batch):
    """Each example's loss, float [n], of this rank's rows."""
    pixels = batch.views["image"].permute(0, 3, 1, 2).float() / 255
    return F.cross_entropy(module(pixels), batch.targets, reduction="none")


def classifier(width, seed):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width), nn.ReLU(), nn.Linear(width, 10)).to(device)
    return DistributedDataParallel(module) if group.size > 1 else module


learner, small = classifier(width=256, seed=0), classifier(width=32, seed=1)
optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
online = curate.OnlineModel(small, losses, torch.optim.AdamW(small.parameters(), lr=1e-3))
views = {"image": curate.Geometry(size=8)}
batches = curate.SuperBatches("digits", 256, views=views, scores="scores/digits", group=group)
subs = curate.SubBatches(batches, curate.Selector("learnability", 64), online=online, device=device)

chosen, moved = [], 0
for _, sub in zip(range(STEPS), subs, strict=False):
    # DistributedDataParallel averages the ranks' gradients; `weight` makes that the mean over all 64.
    loss = losses(learner, sub).mean() * sub.weight
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    chosen += sub.keys
    moved += sub.moved
subs.close()
everywhere = [key for keys in group.share(chosen) for key in keys]
weights = group.share([parameter.detach().cpu() for parameter in learner.parameters()])
assert all(torch.equal(a, b) for other in weights for a, b in zip(weights[0], other, strict=True))
if group.is_first:
    share = moved / len(everywhere)
    print(f"{group.size} ranks chose {len(everywhere):,} digits together; {share:.1%} of them moved to another rank")
    print_wrong(everywhere)
group.close()
