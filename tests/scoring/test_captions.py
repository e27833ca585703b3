"""Cutting the padding off changes no embedding, and costs less."""

import pytest
import torch
from curate.datasets.spec import Config
from curate.scoring import find_model, load_model
from curate.scoring.captions import CaptionEncoder
from curate.scoring.flops import count
from curate.scoring.forward import score_batch

CAPTIONS = ["a", "two dogs", "three small cats on a mat", "a"]


def clip(tmp_path, clip_config, **text):
    config = {**clip_config, "text_cfg": {**clip_config["text_cfg"], "context_length": 20, "layers": 2, **text}}
    entry = {"config": config}
    return load_model(find_model("mine", task="image-text", config=Config(tmp_path / "c.toml", {}, {"mine": entry})))


def whole(model, tokens):
    size = model.geometry.size
    return score_batch(model, torch.zeros(len(tokens), size, size, 3, dtype=torch.uint8), tokens).text_embedding


@pytest.mark.parametrize("custom", [False, True])
def test_the_same_embeddings_without_the_padding(custom, tmp_path, clip_config):
    model = clip(tmp_path, {**clip_config, "custom_text": custom})
    assert type(model.module).__name__ == ("CustomTextCLIP" if custom else "CLIP")
    encode, tokens = CaptionEncoder(model), model.tokenize(CAPTIONS)
    assert encode.lengths(tokens).tolist() == [3, 4, 8, 3]
    torch.testing.assert_close(encode(tokens), whole(model, tokens), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(encode(tokens[:1]), whole(model, tokens[:1]), atol=1e-6, rtol=1e-5)


def test_a_caption_that_fills_the_context(tmp_path, clip_config):
    model = clip(tmp_path, clip_config)
    tokens = model.tokenize(["word " * 40])
    assert CaptionEncoder(model).lengths(tokens).tolist() == [20]
    assert torch.equal(CaptionEncoder(model)(tokens), whole(model, tokens))


def test_its_flops_are_those_of_the_pass_as_it_is_made(tmp_path, clip_config):
    model = clip(tmp_path, clip_config)
    encode, tokens = CaptionEncoder(model), model.tokenize(CAPTIONS)
    assert count(lambda: encode(tokens), 4).total == 4 * encode.flops(8)
    assert encode.flops(8) < encode.flops(20) / 2


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"pool_type": "last"}])
def test_towers_that_look_at_padding_see_all_of_it(text, tmp_path, clip_config):
    model = clip(tmp_path, {**clip_config, "custom_text": True}, **text)
    encode, tokens = CaptionEncoder(model), model.tokenize(CAPTIONS)
    assert encode.lengths(tokens).tolist() == [20] * 4
    assert torch.equal(encode(tokens), whole(model, tokens))
