import json

import numpy as np
import open_clip
import pytest
import safetensors.torch
import timm
import torch
from curate.datasets.spec import Config
from curate.errors import ModelError
from curate.scoring import find_model, load_model
from curate.scoring.loading import save_weights

NO_CONFIG = Config(None, {}, {})


def config_with(tmp_path, **entry):
    return Config(tmp_path / "curate.toml", {}, {"mine": entry})


def classifier(config, name="mine"):
    return find_model(name, task="classification", num_classes=10, config=config)


def test_timm_entry_loads_the_weights_of_a_checkpoint_made_on_the_spot(tmp_path):
    theirs = timm.create_model("resnet10t", num_classes=10)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        model = load_model(classifier(config_with(tmp_path, architecture="resnet10t", weights=file)), trained=True)
        images = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(model.module(images), theirs.eval()(images))


def test_open_clip_checkpoint_and_local_dir_give_the_same_embeddings(tmp_path, clip_config):
    name = "tiny-for-test"
    (tmp_path / f"{name}.json").write_text(json.dumps(clip_config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    theirs = open_clip.create_model(name).eval()
    weights = {k: v.contiguous() for k, v in theirs.state_dict().items()}
    safetensors.torch.save_file(weights, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": clip_config, "preprocess_cfg": open_clip.get_model_preprocess_cfg(theirs)})
    )
    images, tokens = torch.randn(2, 3, 32, 32), open_clip.get_tokenizer(name)(["a cat", "two dogs"])
    expected = theirs(images, tokens)
    entry = {"config": clip_config, "weights": "open_clip_model.safetensors"}
    by_entry = find_model("mine", task="image-text", config=Config(tmp_path / "curate.toml", {}, {"mine": entry}))
    by_folder = find_model(f"local-dir:{tmp_path}", task="image-text", config=NO_CONFIG)
    by_tag = find_model(f"{name}:{tmp_path}/open_clip_model.safetensors", task="image-text", config=NO_CONFIG)
    for spec in (by_entry, by_folder, by_tag):
        model = load_model(spec, trained=True)
        assert torch.equal(model.tokenize(["a cat", "two dogs"]), tokens)
        got = model.module(images, tokens)
        torch.testing.assert_close(got[0], expected[0])
        torch.testing.assert_close(got[1], expected[1])


def test_fingerprint_is_of_content_not_of_names(tmp_path):
    entry = {"architecture": "small_resnet", "arguments": {"channels": [4, 8], "layers": [0]}}
    model = load_model(classifier(config_with(tmp_path, **entry)), seed=1)
    save_weights(model.module, tmp_path / "w.safetensors")
    again = load_model(classifier(config_with(tmp_path, **entry, weights="w.safetensors")), seed=2)
    assert again.fingerprint() == model.fingerprint()
    other_size = {**entry, "weights": "w.safetensors", "preprocessing": {"size": 16}}
    assert load_model(classifier(config_with(tmp_path, **other_size))).fingerprint() != model.fingerprint()
    with torch.no_grad():
        next(again.module.parameters()).view(-1)[0] += 1e-3
    assert again.fingerprint() != model.fingerprint()


def test_random_weights_come_from_the_seed_and_leave_the_global_generator_alone(tmp_path):
    spec = classifier(config_with(tmp_path, architecture="small_resnet", arguments={"channels": [4, 8], "layers": [0]}))
    state = torch.get_rng_state()
    prints = [load_model(spec, seed=s).fingerprint() for s in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("task", "name", "message"),
    [
        ("classification", "resnet18x", "unknown model 'resnet18x'.*near it: .*resnet18"),
        ("classification", "resnet18.nonsense", "unknown weights 'nonsense' of timm's resnet18"),
        ("image-text", "ViT-B-33", "unknown model 'ViT-B-33'.*near it: .*ViT-B-"),
        ("image-text", "ViT-B-32:nonsense", "unknown weights 'nonsense'.*laion2b"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(task, name, message):
    with pytest.raises(ModelError, match=message):
        find_model(name, task=task, num_classes=10, config=NO_CONFIG)


def test_published_names_resolve_without_fetching():
    assert find_model("resnet18.a1_in1k", task="classification", config=NO_CONFIG).weights == "published"
    assert find_model("ViT-B-32:laion2b_s34b_b79k", task="image-text", config=NO_CONFIG).weights == "published"
    assert find_model("hf-hub:a/b", task="image-text", config=NO_CONFIG).weights == "published"
    assert find_model("ViT-B-32", task="image-text", config=NO_CONFIG).weights == ""


def test_an_untrained_reference_is_refused():
    spec = find_model("resnet10t", task="classification", num_classes=10, config=NO_CONFIG)
    with pytest.raises(ModelError, match="no trained weights"):
        load_model(spec, trained=True)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    for file in ("w.safetensors", "cut.safetensors", "none.safetensors"):
        entry = {"architecture": "small_resnet", "weights": file}
        with pytest.raises(ModelError) as error:
            load_model(classifier(config_with(tmp_path, **entry)))
        assert file in str(error.value)
        assert "\n" not in str(error.value)


def test_arguments_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ModelError, match="'mine': arguments has an unknown setting 'nonsense'"):
        load_model(classifier(config_with(tmp_path, architecture="small_resnet", arguments={"nonsense": 1})))
    with pytest.raises(ModelError, match="unknown setting args"):
        classifier(config_with(tmp_path, architecture="small_resnet", args={}))


def test_normalize_is_the_plain_formula_and_leaves_its_input_alone():
    model = load_model(find_model("resnet10t", task="classification", num_classes=3, config=NO_CONFIG))
    pixels = torch.randint(0, 256, (5, 7, 9, 3), dtype=torch.uint8)
    before = pixels.clone()
    images = model.normalize(pixels)
    mean, std = (np.array(x) for x in (model.preprocessing.mean, model.preprocessing.std))
    expected = ((pixels.numpy().astype(np.float64) / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-5)
    assert torch.equal(pixels, before)
