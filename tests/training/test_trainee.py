"""How a model is trained: optimizer settings against torch's own arithmetic, clipping, the moving average, CLIP's recipe."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from curate.errors import ModelError, SpecError
from curate.scoring import ModelSpec, load_model
from curate.scoring.loading import find_model
from curate.training import RunOptions, train
from curate.training.schedule import learning_rate
from curate.training.trainee import MAX_LOGIT_SCALE, Trainee
from support.commands import silent
from support.prepared import TINY_CLIP

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}


def classifier(architecture="vit_tiny_patch16_224", arguments=VIT):
    spec = dict(name="m", task="classification", num_classes=10, preprocessing={"size": 16})
    return load_model(ModelSpec(**spec, architecture=architecture, arguments=arguments))


def clip(**config):
    made = {**TINY_CLIP, **config}
    return load_model(ModelSpec(name="m", task="image-text", architecture="clip", open_clip_config=made))


def trainee(model, **settings):
    return Trainee(model, **{"lr": 1e-3, "device": torch.device("cpu"), **settings})


def batch(model, size=6, seed=0):
    pixels = torch.randint(
        0, 255, (size, *[model.geometry.size] * 2, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    values = ["a cat", "a dog", "the sea", "a cat", "two", "ten"] if model.task.compares else range(size)
    return pixels, model.targets(list(values))


def test_a_step_is_torchs_own_adamw():
    """Written out: one group without decay for vectors, scalars and position embeddings, one with it."""
    made = trainee(clip(), weight_decay=0.2, beta1=0.85, beta2=0.98, eps=1e-6, clip_grad=0.5)
    module, loss = copy.deepcopy(made.module), made.model.task.training_loss(made.model)
    plain = [p for name, p in module.named_parameters() if p.ndim < 2 or "positional_embedding" in name]
    decayed = [p for name, p in module.named_parameters() if not (p.ndim < 2 or "positional_embedding" in name)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    own = torch.optim.AdamW(groups, lr=1e-3, betas=(0.85, 0.98), eps=1e-6)
    for seed in range(3):
        pixels, tokens = batch(made.model, seed=seed)
        value = made.step(pixels, tokens)
        expected = loss(module.train()(made.model.normalize(pixels), tokens), tokens)
        torch.testing.assert_close(value, expected.detach())
        own.zero_grad()
        expected.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in module.parameters()))
        assert norm > 0.5
        for p in module.parameters():
            p.grad *= 0.5 / norm
        own.step()
    for (name, found), (_, wanted) in zip(made.module.named_parameters(), module.named_parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_clips_published_recipe_can_be_written_down():
    """Radford et al., arXiv 2103.00020, table 20 of ViT-B/32: each value, and what does not decay."""
    options = RunOptions.of(
        dataset="D",
        learner="L",
        steps=390_625,
        batch_size=32_768,
        accumulate=64,
        lr=5e-4,
        weight_decay=0.2,
        beta1=0.9,
        beta2=0.98,
        eps=1e-6,
        warmup=0.00512,
    ).optimization
    warmup = round(options.warmup * 390_625)
    assert warmup == 2000
    assert learning_rate(1999, 390_625, 5e-4, warmup) == 5e-4 and learning_rate(0, 390_625, 5e-4, warmup) == 5e-4 / 2000
    model = clip()
    module = model.module
    made = trainee(model, lr=options.lr, **options.stepping, **options.of_the_learner)
    decays = {id(p): group["weight_decay"] for group in made.optimizer.param_groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        gain_or_bias = name.endswith(("bias", "ln_1.weight", "ln_2.weight", "ln_pre.weight", "ln_post.weight"))
        if gain_or_bias or name in ("ln_final.weight", "logit_scale"):
            assert decays[id(parameter)] == 0, name
        elif "embedding" not in name:
            assert decays[id(parameter)] == 0.2, name
    assert decays[id(module.token_embedding.weight)] == 0.2
    assert {(group["betas"], group["eps"]) for group in made.optimizer.param_groups} == {((0.9, 0.98), 1e-6)}
    assert module.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    with torch.no_grad():
        module.logit_scale.fill_(4.7)
    made.accumulate = 2
    made.step(*batch(model))
    assert module.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE) == math.log(100)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": "sgd", "beta2": 0.98}, "--beta2 is 0.98, but --optimizer sgd has none; leave it out"),
        ({"optimizer": "lion", "eps": 1e-6}, "--eps is 1e-06, but --optimizer lion has none; leave it out"),
        ({"optimizer": "adamx"}, "--optimizer is 'adamx', expected one of timm's"),
    ],
)
def test_what_an_optimizer_lacks_is_not_passed_over(settings, told):
    with pytest.raises(SpecError, match=told):
        trainee(classifier(), **settings)


def test_unset_betas_stay_the_optimizers_own():
    for optimizer, own in (("adamw", (0.9, 0.999)), ("lion", (0.9, 0.99)), ("adan", (0.98, 0.92, 0.99))):
        assert trainee(classifier(), optimizer=optimizer).optimizer.defaults["betas"] == own
        changed = trainee(classifier(), optimizer=optimizer, beta2=0.5).optimizer
        assert changed.defaults["betas"] == (own[0], 0.5, *own[2:])
        assert all(group["betas"] == (own[0], 0.5, *own[2:]) for group in changed.param_groups)


def test_layers_below_learn_more_slowly():
    made = trainee(classifier(), layer_decay=0.5)
    pixels, labels = batch(made.model)
    made.step(pixels, labels, lr_share=0.5)
    rates = {id(p): group["lr"] for group in made.optimizer.param_groups for p in group["params"]}
    module = made.module
    assert rates[id(module.head.weight)] == 0.5 * 1e-3
    assert rates[id(module.blocks[1].mlp.fc1.weight)] == rates[id(module.blocks[2].mlp.fc1.weight)] / 2
    assert rates[id(module.patch_embed.proj.weight)] == rates[id(module.blocks[0].mlp.fc1.weight)] / 2


@pytest.mark.parametrize("make", [clip, lambda: classifier("small_resnet", {"channels": [4, 8], "layers": [0]})])
def test_layers_without_an_order_are_refused(make):
    with pytest.raises(ModelError, match=r"model 'm' .* does not tell timm the order of its layers"):
        trainee(make(), layer_decay=0.5)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_timms_arithmetic(warmup):
    made = trainee(classifier("resnet10t", {}), ema=0.9, ema_warmup=warmup)
    average = None
    for step in range(1, 5):
        made.step(*batch(made.model, seed=step))
        # timm takes the weights as they are at the first step.
        grown = 1 - (1 + (step - 1)) ** (-2 / 3)
        decay = 0.0 if step == 1 else min(0.9, grown) if warmup else 0.9
        now = {name: value.detach().double() for name, value in made.module.state_dict().items()}
        average = now if average is None else {n: decay * average[n] + (1 - decay) * now[n] for n in now}
    for name, value in made.result.module.state_dict().items():
        wanted = now[name] if name.endswith("num_batches_tracked") else average[name]
        torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert made.result.module is not made.module and made.model.module is made.module
    assert trainee(classifier()).result.module is not None


def test_gradients_are_gone_after_a_step():
    made = trainee(classifier(), accumulate=2)
    made.step(*batch(made.model))
    assert all(p.grad is None for p in made.module.parameters())


def test_the_average_is_what_a_run_evaluates_and_writes(digits, tmp_path, monkeypatch):
    from curate.training import finish

    seen = []

    def evaluate(model, dataset, **how):
        seen.append({name: value.clone() for name, value in model.module.state_dict().items()})
        return {"top1": 0.5, "test_examples": 500}

    monkeypatch.setattr(finish, "evaluate", evaluate)
    settings = dict(dataset="digits", learner="learner", steps=12, batch_size=16, precision="fp32", out=str(tmp_path))
    train(RunOptions.of(**settings, ema=0.9, name="averaged"), config=digits.config, report=silent)
    train(RunOptions.of(**settings, name="plain"), config=digits.config, report=silent)
    folders = [tmp_path / name / "checkpoints" for name in ("averaged", "plain")]
    assert [sorted(p.name for p in f.iterdir()) for f in folders] == [
        ["learner-last.safetensors", "learner.safetensors"],
        ["learner.safetensors"],
    ]
    averaged, last = (safetensors.torch.load_file(folders[0] / f"learner{x}.safetensors") for x in ("", "-last"))
    plain = safetensors.torch.load_file(folders[1] / "learner.safetensors")
    for name, value in seen[0].items():
        assert torch.equal(value, averaged[name]), name
        assert torch.equal(last[name], plain[name]), name  # an average changes nothing of the training
    assert any(not torch.equal(averaged[name], last[name]) for name in last)
    spec = find_model(str(tmp_path / "averaged"), task="classification", num_classes=10, config=digits.config)
    assert torch.equal(load_model(spec).module.head.weight, averaged["head.weight"])


@pytest.mark.parametrize("task", ["classes", "pairs"])
def test_a_run_in_parts_ends_where_the_whole_batch_does(digits, pairs, tmp_path, task):
    """In one run each, with selection: to rounding, since sums are formed in another order."""
    known = (
        dict(dataset="pairs", learner="clip", batch_size=10)
        if task == "pairs"
        else dict(dataset="digits", learner="vit")
    )
    vit = {"architecture": "vit_tiny_patch16_224", "arguments": {**VIT, "img_size": 8}, "preprocessing": {"size": 8}}
    config = (pairs if task == "pairs" else digits).config
    config = replace(config, models={**config.models, "vit": vit})
    losses = {}
    for accumulate in (1, 3):
        options = RunOptions.of(
            **known,
            steps=6,
            accumulate=accumulate,
            precision="fp32",
            evaluate=False,
            log_every=1,
            out=str(tmp_path),
            name=str(accumulate),
        )
        train(options, config=config, report=silent)
        lines = (tmp_path / str(accumulate) / "metrics.jsonl").read_text().splitlines()
        losses[accumulate] = [json.loads(line)["loss"] for line in lines]
        flops = json.loads(lines[-1])["flops"]["learner_train"]
        losses[accumulate, "flops"] = flops
    assert losses[3] == pytest.approx(losses[1], rel=1e-3)
    assert (losses[3, "flops"] > 1.2 * losses[1, "flops"]) == (task == "pairs")
