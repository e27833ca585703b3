"""Gradients in parts against those of the whole batch, and against what torch's own counters see."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from curate.errors import ModelError
from curate.scoring import ModelSpec, load_model, train_flops
from curate.scoring.gradients import add_gradients, checkpoint_activations
from support.prepared import TINY_CLIP

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
CAPTIONS = ["a cat", "a dog", "a cat", "two birds", "a cat", "a dog", "the sea"]


def classifier(architecture="vit_tiny_patch16_224", arguments=VIT, **more):
    spec = ModelSpec(
        name="m", task="classification", num_classes=10, architecture=architecture, arguments=arguments, **more
    )
    return load_model(spec)


def pairs(sigmoid=False, vision=None, **more):
    config = {**TINY_CLIP, "vision_cfg": {**(vision or TINY_CLIP["vision_cfg"])}, **more}
    config |= {"init_logit_bias": -3.0} if sigmoid else {}
    return load_model(ModelSpec(name="m", task="image-text", architecture="clip", open_clip_config=config))


def images(size, side=32):
    return torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def step(model, pixels, targets, loss=None, seed=0, **how):
    """(loss, gradients by name) in float64, at a fresh start of the random numbers."""
    model = copy.copy(model)
    model.module = copy.deepcopy(model.module).double().train()
    torch.manual_seed(seed)
    loss = loss or model.task.training_loss(model, 0.1)
    value = add_gradients(model, model.module, loss, pixels.__getitem__, targets, **how)
    found = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    return value, found, model.module


def assert_same(left, right, **close):
    assert left.keys() == right.keys()
    for name, gradient in left.items():
        torch.testing.assert_close(
            gradient, right[name], rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}", **close
        )


@pytest.mark.parametrize("accumulate", [2, 3, 7])
def test_classes_in_parts_have_the_gradients_of_the_whole_batch(accumulate):
    model, pixels, labels = classifier(), images(7), torch.arange(7)
    whole, expected, _ = step(model, pixels, labels)
    value, found, _ = step(model, pixels, labels, accumulate=accumulate)
    torch.testing.assert_close(value, whole)
    assert_same(found, expected)


@pytest.mark.parametrize("accumulate", [2, 3, 7])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_pairs_in_parts_have_the_gradients_of_the_whole_batch(sigmoid, accumulate):
    """Identical captions lie in different parts, and are no negatives there either; scale and bias learn once."""
    model, pixels = pairs(sigmoid), images(7)
    tokens = model.tokenize(CAPTIONS)
    whole, expected, _ = step(model, pixels, tokens)
    value, found, _ = step(model, pixels, tokens, accumulate=accumulate)
    torch.testing.assert_close(value, whole)
    assert ("logit_bias" in expected) == sigmoid and "logit_scale" in expected
    assert_same(found, expected)
    # Not what each part by itself would give.
    loss = model.task.training_loss(model)
    alone = [step(model, pixels[part], tokens[part], loss)[0] for part in (slice(0, 4), slice(4, 7))]
    assert abs(float(sum(alone)) / 2 - float(whole)) > 0.1


def test_both_passes_over_a_part_drop_the_same(monkeypatch):
    """Against one graph over all parts, whose random numbers are drawn in the same order."""
    model, pixels = pairs(vision={**TINY_CLIP["vision_cfg"], "patch_dropout": 0.5, "layers": 2}), images(6)
    tokens = model.tokenize(CAPTIONS[:6])
    _, found, _ = step(model, pixels, tokens, accumulate=3)
    after = torch.get_rng_state()

    module = copy.deepcopy(model.module).double().train()
    torch.manual_seed(0)
    outputs = [module(pixels[i : i + 2], tokens[i : i + 2]) for i in (0, 2, 4)]
    assert torch.equal(torch.get_rng_state(), after)
    features = [torch.cat([o[i] for o in outputs]) for i in (0, 1)]
    model.task.training_loss(model)([*features, outputs[0][2]], tokens).backward()
    assert_same(found, {name: p.grad for name, p in module.named_parameters()})


def resnet_pairs():
    return pairs(vision={"timm_model_name": "resnet10t", "image_size": 32, "timm_pool": "", "timm_proj": "linear"})


@pytest.mark.parametrize("how", ["two passes", "checkpointing"])
def test_running_statistics_see_an_example_once(how):
    model, pixels = (resnet_pairs(), images(6)) if how == "two passes" else (classifier("resnet10t", {}), images(6))
    targets = model.tokenize(CAPTIONS[:6]) if how == "two passes" else torch.arange(6)
    expected = copy.deepcopy(model.module).double().train()
    with torch.no_grad():
        for part in (slice(0, 3), slice(3, 6)):
            expected(*((pixels[part], targets[part]) if how == "two passes" else (pixels[part],)))
    if how == "checkpointing":
        checkpoint_activations(model)
    _, _, module = step(model, pixels, targets, accumulate=2, recomputes=how == "checkpointing")
    found = dict(module.named_buffers())
    assert any(name.endswith("num_batches_tracked") for name in found)
    for name, value in expected.named_buffers():
        torch.testing.assert_close(found[name], value, msg=lambda m, n=name: f"{n}: {m}")
    assert {m.momentum for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize(
    "make", [classifier, pairs, partial(classifier, "resnet10t", {})], ids=["vit", "clip", "resnet"]
)
def test_checkpointing_changes_no_gradient_and_keeps_less(make):
    model, pixels = make(), images(4)
    targets = model.tokenize(CAPTIONS[:4]) if model.task.compares else torch.arange(4)
    _, expected, _ = step(model, pixels, targets)
    before, flops = saved_bytes(model, pixels, targets), train_flops(model, model.task.training_loss(model), 4).total
    checkpoint_activations(model)
    assert_same(step(model, pixels, targets, recomputes=True)[1], expected)
    assert saved_bytes(model, pixels, targets) < 0.75 * before
    assert train_flops(model, model.task.training_loss(model), 4).total > flops


def saved_bytes(model, pixels, targets):
    """What autograd holds between forward and backward."""
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    module = copy.deepcopy(model.module).double().train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.task.forward(module, pixels, targets)
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    del output
    return sum(size for key, size in saved.items() if key not in own)


@pytest.mark.parametrize(
    "make",
    [
        partial(classifier, "small_resnet", {"channels": [4, 8], "layers": [0]}),
        partial(
            pairs, vision={"timm_model_name": "small_resnet_w8", "image_size": 32, "timm_pool": "avg", "timm_proj": ""}
        ),
        partial(pairs, vision={"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 8}),
    ],
    ids=["of our own", "timm's tower in open_clip", "open_clip's resnet"],
)
def test_who_has_no_checkpointing_says_so(make):
    with pytest.raises(
        ModelError, match=r"model 'm' \(.*\) has no activation checkpointing; leave --grad-checkpointing"
    ):
        checkpoint_activations(make())


def test_the_ledger_counts_what_is_computed_twice():
    """Two passes cost a forward more: 4 forwards where there were 3, but for the images' own gradient and the loss."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model, pixels = pairs(), images(8).float()
    tokens = model.tokenize([*CAPTIONS, "a hill"])
    loss = model.task.training_loss(model)
    with sdpa_kernel(SDPBackend.MATH):
        for accumulate in (1, 3):
            with FlopCounterMode(display=False) as counter:
                add_gradients(model, model.module.train(), loss, pixels.__getitem__, tokens, accumulate=accumulate)
            assert train_flops(model, loss, 8, accumulate).total == counter.get_total_flops(), accumulate
    whole, parts = (train_flops(model, loss, 8, accumulate).total for accumulate in (1, 4))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.module(pixels, tokens)
    assert parts - whole == counter.get_total_flops()
