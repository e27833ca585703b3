"""Scoring at a lower resolution or with fewer patches, on every kind of image tower that learns positions."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from curate.datasets.spec import Config
from curate.errors import ModelError, SpecError
from curate.scoring import find_model, load_model
from curate.scoring.coarse import coarsened
from curate.scoring.flops import forward_flops
from curate.scoring.forward import score_batch
from curate.scoring.loading import save_weights
from curate.scoring.settings import Coarse
from timm.layers import resample_abs_pos_embed

VIT = {"architecture": "vit_tiny_patch16_224", "arguments": {"img_size": 32, "patch_size": 8, "depth": 1}}
CONV = {"architecture": "small_resnet", "arguments": {"channels": [4, 8], "layers": [0]}}


def built(task, entry, tmp_path, **changes):
    config = Config(tmp_path / "curate.toml", {}, {"mine": {**entry, **changes}})
    return load_model(find_model("mine", task=task, num_classes=10, config=config))


@pytest.fixture
def models(tmp_path, clip_config):
    resnet = {**clip_config, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}}
    trunk = {**clip_config, "vision_cfg": {"image_size": 32, "timm_model_name": "small_resnet_w8", "timm_proj": ""}}
    vit = {**clip_config, "vision_cfg": {**clip_config["vision_cfg"], "patch_size": 8}}
    return {
        "timm vit": built("classification", VIT, tmp_path),
        "timm conv": built("classification", CONV, tmp_path),
        "open_clip vit": built("image-text", {"config": vit}, tmp_path),
        "open_clip resnet": built("image-text", {"config": resnet}, tmp_path),
        "open_clip timm": built("image-text", {"config": trunk}, tmp_path),
    }


def inputs(model, n=3):
    size = model.geometry.size
    pixels = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    if model.spec.task == "classification":
        return pixels, torch.arange(n)
    return pixels, model.tokenize([f"{i} cats" for i in range(n)])


KINDS = ["timm vit", "timm conv", "open_clip vit", "open_clip resnet", "open_clip timm"]


@pytest.mark.parametrize("kind", KINDS)
def test_half_the_size_takes_a_fraction_of_the_flops_and_leaves_the_model_as_it_was(kind, models):
    model = models[kind]
    before, fingerprint = score_batch(model, *inputs(model)).loss, model.fingerprint()
    coarse = coarsened(model, Coarse(size=model.geometry.size // 2))
    assert coarse.geometry.size == model.geometry.size // 2
    assert torch.isfinite(score_batch(coarse, *inputs(coarse)).loss).all()
    assert forward_flops(coarse).per_example < forward_flops(model).per_example
    assert torch.equal(score_batch(model, *inputs(model)).loss, before)
    assert model.fingerprint() == fingerprint != coarse.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_shared_with_the_model_that_trains(kind, models):
    model = models[kind]
    coarse = coarsened(model, Coarse(size=model.geometry.size // 2))
    before = score_batch(coarse, *inputs(coarse)).loss
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.5)
    pixels, targets = inputs(model)
    args = (model.normalize(pixels),) if model.spec.task == "classification" else (model.normalize(pixels), targets)
    model.module.train()
    out = model.module(*args)
    (out if isinstance(out, torch.Tensor) else out[0])[:, 0].sum().backward()
    optimizer.step()
    model.module.eval()
    after = score_batch(coarse, *inputs(coarse)).loss
    assert not torch.allclose(before, after)
    torch.testing.assert_close(
        after, score_batch(coarsened(model, Coarse(size=coarse.geometry.size)), *inputs(coarse)).loss
    )


def test_a_timm_vit_scores_as_one_built_for_that_size(tmp_path, models):
    model = models["timm vit"]
    small = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1, num_classes=10).eval()
    state = copy.deepcopy(model.module.state_dict())
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [2, 2])
    small.load_state_dict(state)
    coarse = coarsened(model, Coarse(size=16))
    pixels, labels = inputs(coarse)
    expected = F.cross_entropy(small(coarse.normalize(pixels)), labels, reduction="none")
    torch.testing.assert_close(score_batch(coarse, pixels, labels).loss, expected)


def test_an_open_clip_vit_scores_as_one_that_open_clip_loads_for_that_size(tmp_path, clip_config, models):
    import open_clip

    model = models["open_clip vit"]
    vision = {**clip_config["vision_cfg"], "patch_size": 8, "image_size": 16}
    small = built("image-text", {"config": {**clip_config, "vision_cfg": vision}}, tmp_path)
    state = copy.deepcopy(model.module.state_dict())
    open_clip.model.resize_pos_embed(state, small.module)
    small.module.load_state_dict(state)
    coarse = coarsened(model, Coarse(size=16))
    torch.testing.assert_close(score_batch(coarse, *inputs(coarse)).loss, score_batch(small, *inputs(small)).loss)


@pytest.mark.parametrize("kind", ["timm vit", "open_clip vit"])
def test_dropping_half_of_the_patches_is_the_same_every_time_and_halves_the_work(kind, models):
    model = models[kind]
    coarse = coarsened(model, Coarse(patch_dropout=0.5))
    losses = [score_batch(coarse, *inputs(coarse)).loss for _ in range(2)]
    assert torch.equal(*losses)
    assert not torch.allclose(losses[0], score_batch(model, *inputs(model)).loss)
    seen = []
    for part in coarse.module.modules():
        if type(part).__name__ in ("Block", "ResidualAttentionBlock"):
            part.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    score_batch(coarse, *inputs(coarse))
    assert seen[0] == 1 + 8  # the class token and half of the 4 x 4 patches


def test_a_coarse_model_is_built_again_from_its_spec(tmp_path, models):
    model = models["timm vit"]
    save_weights(model.module, tmp_path / "w.safetensors")
    again = built("classification", VIT, tmp_path, weights="w.safetensors")
    coarse = coarsened(again, Coarse(size=16, patch_dropout=0.25))
    rebuilt = load_model(type(coarse.spec)(**coarse.spec.to_dict()))
    assert rebuilt.fingerprint() == coarse.fingerprint()
    torch.testing.assert_close(score_batch(rebuilt, *inputs(coarse)).loss, score_batch(coarse, *inputs(coarse)).loss)


@pytest.mark.parametrize(
    ("kind", "coarse", "message"),
    [
        ("timm conv", {"patch_dropout": 0.5}, "no patches to drop"),
        ("open_clip vit", {"size": 20}, "20 px is no whole number of its 8 px patches"),
        ("timm vit", {"size": 20}, "cannot score with 20 px"),
    ],
)
def test_what_a_tower_cannot_do_is_refused_by_name(kind, coarse, message, models):
    with pytest.raises(ModelError, match=message):
        coarsened(models[kind], Coarse(**coarse))


def test_settings_out_of_range_are_refused():
    with pytest.raises(SpecError, match="--score-size is 0"):
        Coarse(size=0)
    with pytest.raises(SpecError, match="--score-patch-dropout is 1"):
        Coarse(patch_dropout=1.0)
