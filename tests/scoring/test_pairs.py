"""Pairs are scored without padding and nothing twice, and come out as plain passes over each of them would have it."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from curate.datasets import decode, list_shards, read_shard
from curate.datasets.spec import Config, find_dataset, spec_from_path
from curate.pipelines.score_reference import score_reference
from curate.scoring import ModelSpec, find_model, load_model, open_scores, score_batch
from curate.scoring.captions import CaptionEncoder
from curate.scoring.flops import count, count_on_meta, forward_flops
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


def scored_shard(model, spec, shard=None, kept=None):
    return score_shard(
        spec,
        shard or list_shards(spec)[0],
        model,
        device=torch.device("cpu"),
        precision="fp32",
        batch_size=5,
        vectors=True,
        decode_threads=1,
        forward_flops=forward_flops(model).per_example,
        kept=kept,
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


def test_threads_that_share_a_model_do_not_see_each_others_cuts(clip_config, pairs, tmp_path):
    """As bundles of one worker process do: one model, an encoder for each thread."""
    text = {**clip_config["text_cfg"], "context_length": 24}
    spec = ModelSpec(name="m", task="image-text", architecture="m", open_clip_config={**clip_config, "text_cfg": text})
    model = load_model(spec, seed=1)
    picture = read_tar(pairs.root / "data" / "00000.tar")[0][1]
    for i in range(24):
        members = [
            (f"{k}.{end}", content) for k in range(3) for end, content in (("png", picture), ("txt", b"a " * (i + k)))
        ]
        write_tar(tmp_path / f"{i:02d}.tar", [*members, ("z.png", picture), ("z.txt", b"one")])
    dataset = spec_from_path(str(tmp_path / "*.tar"))
    own = threading.local()
    switches = [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "math", "mem_efficient")]

    def losses(shard):
        own.kept = getattr(own, "kept", None) or CaptionEncoder(model)
        return scored_shard(model, dataset, shard, own.kept).scores["loss"].to_pylist()

    alone = [losses(shard) for shard in list_shards(dataset)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(losses, list_shards(dataset)))
    assert together == alone
    assert model.module.positional_embedding.shape == (24, 32)
    assert model.module.attn_mask.shape == (24, 24)
    assert switches == [
        getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "math", "mem_efficient")
    ]


def test_counting_on_shapes_leaves_the_attention_of_other_threads_alone(clip_config):
    model = load_model(ModelSpec(name="m", task="image-text", architecture="m", open_clip_config=clip_config))
    seen = []
    count_on_meta(lambda: seen.append(torch.backends.cuda.flash_sdp_enabled()), 1)
    count(lambda: seen.append(torch.backends.cuda.flash_sdp_enabled()), 1)
    assert seen == [True, False]
    images, tokens = torch.zeros(2, 3, 32, 32), model.tokenize(["a", "b"])
    with torch.no_grad():
        counted = count(lambda: model.task.infer(model.module, images, tokens), 2)
    assert counted.total == forward_flops(model, 2).total
