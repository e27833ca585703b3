"""Pairs are scored without padding and nothing twice, and come out as plain passes over each of them would have it."""

import json

import numpy as np
import pytest
import torch
from curate.datasets import decode, list_shards, read_shard
from curate.datasets.spec import Config, find_dataset
from curate.pipelines.score_reference import score_reference
from curate.scoring import find_model, load_model, open_scores, score_batch
from curate.scoring.captions import CaptionEncoder
from curate.scoring.flops import forward_flops
from curate.scoring.shard import score_shard
from support.commands import silent
from support.tars import read_tar, write_tar


@pytest.fixture
def repeated(pairs, tmp_path):
    """A shard of 12 pictures, each three times, under captions of many lengths, some of them the same; one is broken."""
    members = read_tar(pairs.root / "data" / "00000.tar")
    pictures = [content for name, content in members if name.endswith(".png")][:12]
    captions = ["seven", "a small seven", "the digit seven as someone wrote it", "seven"]
    made = []
    for i in range(36):
        picture = b"broken" if i == 7 else pictures[i % 12]
        made += [(f"p{i:02d}.png", picture), (f"p{i:02d}.txt", f"{captions[i % 4]} {i % 6}".encode())]
    write_tar(tmp_path / "data" / "00000.tar", made)
    entry = {"train": "data/00000.tar", "text": "txt"}
    return Config(tmp_path / "curate.toml", {"repeated": entry}, pairs.config.models)


def whole_passes(model, spec):
    """Loss and embeddings of every readable example, each by a pass of its own over its whole caption."""
    found = []
    for example in read_shard(spec, list_shards(spec)[0]):
        if example.image != b"broken":
            pixels = torch.from_numpy(decode(example.image, model.geometry).copy())[None]
            scored = score_batch(model, pixels, model.tokenize([example.target]))
            found.append((example.key, scored.loss[0], scored.image_embedding[0], scored.text_embedding[0]))
    return found


def scored_shard(model, spec):
    return score_shard(
        spec,
        list_shards(spec)[0],
        model,
        device=torch.device("cpu"),
        precision="fp32",
        batch_size=5,
        embeddings=True,
        decode_threads=1,
        forward_flops=forward_flops(model).per_example,
    )


def test_every_pair_comes_out_as_by_a_pass_of_its_own(repeated, pairs):
    spec = find_dataset("repeated", repeated)
    model = load_model(pairs.options("unused").reference)
    made = scored_shard(model, spec)
    expected = whole_passes(model, spec)
    assert made.scores["key"].to_pylist() == [key for key, *_ in expected]
    assert made.scores["row"].to_pylist() == [i for i in range(36) if i != 7]
    assert [(f.row, f.stage) for f in made.failures] == [(7, "decode")]
    np.testing.assert_allclose(made.scores["loss"].to_numpy(), [float(loss) for _, loss, *_ in expected], atol=2e-6)
    for column, at in (("image_embedding", 2), ("text_embedding", 3)):
        got = np.array(made.scores[column].to_pylist(), dtype=np.float32)
        np.testing.assert_allclose(got, np.stack([e[at].numpy() for e in expected]), atol=1e-3)  # float16


def test_what_is_there_twice_and_padding_cost_nothing(repeated, pairs):
    spec = find_dataset("repeated", repeated)
    model = load_model(pairs.options("unused").reference)
    encoder = CaptionEncoder(model)
    image = forward_flops(model).per_example - encoder.flops_of_all
    captions = sorted({e.target for e in read_shard(spec, list_shards(spec)[0]) if e.image != b"broken"})
    lengths = sorted(encoder.lengths(model.tokenize(captions)).tolist())
    text = sum(len(part) * encoder.flops(max(part)) for part in (lengths[i : i + 5] for i in range(0, len(lengths), 5)))
    assert len(captions) == 12 and lengths[0] < lengths[-1]
    made = scored_shard(model, spec)
    assert made.flops == pytest.approx(12 * image + text)
    assert made.flops < 35 * forward_flops(model).per_example / 2


def test_the_table_is_charged_what_was_spent(repeated, pairs, tmp_path):
    spec = find_dataset("repeated", repeated)
    folder = score_reference(pairs.options(tmp_path / "scores", dataset=spec, max_failures=0.1), silent).folder
    manifest = open_scores(folder).manifest
    model = load_model(find_model("clip", task="image-text", config=pairs.config))
    assert manifest["flops"]["forward_per_example"] == forward_flops(model).per_example
    assert 0 < manifest["flops"]["reference_score"] < 35 * manifest["flops"]["forward_per_example"]
    about = json.loads(open_scores(folder).read().schema.metadata[b"curate"])
    assert about["flops"] == manifest["flops"]["reference_score"]
