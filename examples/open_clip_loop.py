"""open_clip: its own `train_one_epoch` and `evaluate`, on pairs that curate chooses (ActiveCLIP).

    python examples/open_clip_loop.py               # on the pairs of noisy_digits.py: 20 s on one CPU core
    python examples/open_clip_loop.py --folder . --scores scores --online ViT-S-32 --train-data align --model ViT-B-32 \\
        --val-data 'test/{00..09}.tar' --batch-size 1024 --train-num-samples 10000000 --precision amp_bf16

`--train-data` is a data set of curate.toml, or shards of images and captions such as 'pairs/{000..099}.tar'; `--scores`
is its score table, `--online` the online model: best the reference's own architecture. All other options are
open_clip's. Its loop sees a loader of (images, texts); its loss, schedule and evaluation are what they are without us.
The checkpoint at the end is open_clip's own: `open_clip.create_model(NAME, pretrained=PATH)` loads it.

It prints (about 30 of the 297 test images share a caption, so the best median rank is 15):
    median rank of the right caption: 148 before, 32 after
    wrong labels: 40.0% of the data, 2.2% of the 3,840 chosen
    open_clip loads open_clip_loop.pt with the same weights: True
"""

import argparse
import os
from dataclasses import dataclass
from types import SimpleNamespace

import curate
import open_clip
import torch
import webdataset as wds
from noisy_digits import FOLDER, prepare, print_wrong
from open_clip_train.distributed import init_distributed_device
from open_clip_train.params import parse_args
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import evaluate, train_one_epoch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--folder", default=FOLDER, help="folder of curate.toml")
parser.add_argument("--scores", default="scores/pairs")
parser.add_argument("--online", default="tiny-clip")
given, others = parser.parse_known_args()
defaults = """--train-data pairs --val-data test/{00000..00001}.tar --model tiny-clip --precision fp32 --batch-size 64
    --train-num-samples 3840 --lr 1e-3 --warmup 10 --device"""
args = parse_args([*defaults.split(), "cuda" if torch.cuda.is_available() else "cpu", *others])
args.distill = args.save_logs = args.wandb = False
on_digits = args.train_data == "pairs"
os.chdir(prepare("pairs", given.folder) if on_digits else given.folder)
if on_digits:
    open_clip.add_model_config("tiny-clip.json")
    torch.set_num_threads(1)  # more gain nothing on images of 16 x 16 pixels

device = init_distributed_device(args)
torch.manual_seed(args.seed)
model, _, preprocess = open_clip.create_model_and_transforms(args.model, device=device, output_dict=True)
small, _, small_preprocess = open_clip.create_model_and_transforms(given.online, device=device, output_dict=True)
tokenizer, small_tokenizer = open_clip.get_tokenizer(args.model), open_clip.get_tokenizer(given.online)
optimizer, small_optimizer = (
    torch.optim.AdamW(one.parameters(), args.lr, (args.beta1, args.beta2), args.eps, args.wd) for one in (model, small)
)
loss = open_clip.create_loss(args)
steps = args.train_num_samples // args.batch_size


def negative_dot_product(module, batch):
    """How pairs are scored, float [B]: as the reference scored them."""
    seen = module(batch.views["online"], batch.tokens["online"])
    return -(seen["image_features"] * seen["text_features"]).sum(-1)


def contrastive(module, batch):
    """What the online model trains on: the learner's loss."""
    return loss(**module(batch.views["online"], batch.tokens["online"]))


batches = curate.SuperBatches(
    args.train_data,
    4 * args.batch_size,
    views={"learner": preprocess, "online": small_preprocess},
    tokenize={"learner": tokenizer, "online": small_tokenizer},
    scores=given.scores,
    seed=args.seed,
)
selector = curate.Selector("learnability", args.batch_size, scale=20.0, seed=args.seed)  # dot products lie in [-1, 1]
online = curate.OnlineModel(small, negative_dot_product, small_optimizer, training_loss=contrastive)
subs, chosen = curate.SubBatches(batches, selector, online=online, device=device), []


def chosen_pairs():
    for _, sub in zip(range(steps), subs, strict=False):
        chosen.extend(sub.keys)
        yield sub.views["learner"], sub.tokens["learner"]


@dataclass
class Loader:
    """A loader as open_clip knows it: batches of (images, texts) that say how many they are."""

    batches: object
    num_samples: int
    num_batches: int

    def __iter__(self):
        return iter(self.batches)


images = wds.WebDataset(args.val_data, shardshuffle=False).decode("pil").to_tuple("png;jpg;jpeg;webp", "txt")
tests = list(images.map_tuple(preprocess, lambda text: tokenizer(text)[0]).batched(args.batch_size))
val = SimpleNamespace(dataloader=Loader(tests, sum(len(texts) for _, texts in tests), len(tests)))
train = SimpleNamespace(dataloader=Loader(chosen_pairs(), steps * args.batch_size, steps), set_epoch=lambda epoch: None)

rank = "image_to_text_median_rank"
before = evaluate(model, {"val": val}, 0, args)[rank]
scheduler = cosine_lr(optimizer, args.lr, args.warmup, steps)
train_one_epoch(model, {"train": train}, loss, 0, optimizer, None, scheduler, None, args)
after = evaluate(model, {"val": val}, 1, args)[rank]
subs.close()
torch.save({"epoch": 1, "name": "curated", "state_dict": model.state_dict()}, "open_clip_loop.pt")
loaded = open_clip.create_model(args.model, pretrained="open_clip_loop.pt", device=device)
same = all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))

print(f"median rank of the right caption: {before:.0f} before, {after:.0f} after")
if on_digits:
    print_wrong(chosen)
print(f"open_clip loads open_clip_loop.pt with the same weights: {same}")
