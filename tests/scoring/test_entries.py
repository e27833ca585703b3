"""What stands in [models.NAME] and cannot be: one line that names the model and the setting, before anything is made."""

import json
import sys

import pytest
import safetensors.torch
import timm
import torch
from curate.datasets.spec import Config
from curate.errors import ModelError
from curate.scoring import find_model, load_model
from curate.scoring.forward import score_blank

RESNET = {"architecture": "test_resnet"}
SMALL = {"architecture": "small_resnet", "arguments": {"channels": [4, 8], "layers": [0]}}


def entry_spec(tmp_path, entry, task="classification", num_classes=10):
    config = Config(tmp_path / "curate.toml", {}, {"mine": entry})
    return find_model("mine", task=task, num_classes=num_classes, config=config)


def made(tmp_path, entry, task="classification", num_classes=10):
    return load_model(entry_spec(tmp_path, entry, task, num_classes))


def refused(tmp_path, entry, *words, task="classification", num_classes=10):
    with pytest.raises(ModelError) as error:
        made(tmp_path, entry, task, num_classes)
    message = str(error.value)
    assert "\n" not in message
    for word in ("'mine'", *words):
        assert word in message, message


@pytest.mark.parametrize(
    ("preprocessing", "words"),
    [
        ({"sise": 32}, ("'sise'", "did you mean 'size'")),
        ({"interpolation": "bicubik"}, ("interpolation is 'bicubik'", "did you mean 'bicubic'")),
        ({"resampling": "pilow"}, ("resampling is 'pilow'", "did you mean 'pillow'")),
        ({"mode": "longest"}, ("mode is 'longest'", "shortest or squash")),
        *(({"size": size}, (f"size is {size!r}", "square")) for size in ("32", 0, -8, True, [32, 64], 32.0)),
        ({"crop_pct": 1.5}, ("crop_pct is 1.5", "at most 1")),
        ({"crop_pct": "0.9"}, ("crop_pct is '0.9'",)),
        ({"mean": [0.5, 0.5]}, ("mean is [0.5, 0.5]", "three numbers")),
        ({"std": [0.5, 0.0, 0.5]}, ("std is", "above 0")),
        ({"reduced_jpeg": "yes"}, ("reduced_jpeg is 'yes'", "true, false or 'close'")),
        ({"exif_rotation": 1}, ("exif_rotation is 1", "true or false")),
    ],
)
def test_preprocessing(tmp_path, preprocessing, words):
    refused(tmp_path, {**SMALL, "preprocessing": preprocessing}, *words)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"architecure": "resnet18"}, ("architecure", "did you mean 'architecture'")),
        ({"architecture": 18}, ("architecture is 18", "a name")),
        ({**RESNET, "arguments": "none"}, ("arguments is 'none'",)),
        ({**RESNET, "preprocessing": 32}, ("preprocessing is 32",)),
        ({**RESNET, "weights": 3}, ("weights is 3",)),
        ({**RESNET, "config": "clip.json"}, ("config", "image-text")),
        ({**RESNET, "arguments": {"drop_rat": 0.1}}, ("'drop_rat'", "did you mean 'drop_rate'")),
        ({**SMALL, "arguments": {"chanels": [4, 8]}}, ("'chanels'", "did you mean 'channels'")),
        ({**RESNET, "arguments": {"in_chans": 4}}, ("in_chans is 4", "1 for grey")),
        ({**RESNET, "arguments": {"num_classes": 7}}, ("num_classes is 7", "10 classes")),
        ({**RESNET, "arguments": {"features_only": True}}, ("features_only",)),
        ({**RESNET, "arguments": {"pretrained": True}}, ("pretrained", "NAME.TAG")),
        ({**RESNET, "arguments": {"checkpoint_path": "x.pth"}}, ("checkpoint_path", "weights =")),
        ({"architecture": "test_vit", "arguments": {"img_size": [32, 64]}}, ("img_size is [32, 64]", "square")),
        ({"architecture": "test_vit", "preprocessing": {"size": 50}}, ("50 x 50 pixels", "preprocessing.size")),
        ({"architecture": "ViT-B-32"}, ("'ViT-B-32' is for image-text", "this data set is classification")),
    ],
)
def test_classifiers(tmp_path, entry, words):
    refused(tmp_path, entry, *words)


def test_a_data_set_without_classes_still_needs_outputs(tmp_path):
    refused(tmp_path, {**RESNET, "arguments": {"num_classes": 0}}, "num_classes is 0", num_classes=0)
    refused(tmp_path, {**RESNET, "arguments": {"global_pool": ""}}, "does not take images")
    assert made(tmp_path, {**RESNET, "arguments": {"num_classes": 10}}).outputs == 10
    assert made(tmp_path, {**RESNET, "arguments": {"num_classes": 7}}, num_classes=0).outputs == 7


def changed(config, tower=None, **values):
    return {**config, **({tower: {**config[tower], **values}} if tower else values)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: changed(c, "vision_cfg", layer=1), ("config.vision_cfg", "'layer'", "did you mean 'layers'")),
        (lambda c: changed(c, "text_cfg", contextlength=9), ("'contextlength'", "did you mean 'context_length'")),
        (lambda c: changed(c, embed_dims=16), ("'embed_dims'", "did you mean 'embed_dim'")),
        (lambda c: {k: v for k, v in c.items() if k != "embed_dim"}, ("no embed_dim",)),
        (lambda c: {**c, "text_cfg": "small"}, ("config.text_cfg is 'small'",)),
        (lambda c: {"model_cfg": c}, ("local-dir:FOLDER",)),
        (lambda c: {**c, "multimodal_cfg": {}}, ("custom_text = true",)),
        (lambda c: changed(c, "vision_cfg", head_width=64), ("cannot be built", "num_heads=0")),
        (lambda c: changed(c, "vision_cfg", image_size=[32, 64]), ("32 x 64 pixels", "square")),
        (lambda c: changed(c, "text_cfg", vocab_size=100), ("vocab_size is 100", "token 49407")),
        (lambda c: changed(c, "text_cfg", tokenizer_kwargs={"cleen": "lower"}), ("tokenizer", "cleen")),
    ],
)
def test_open_clip_configs(tmp_path, clip_config, change, words):
    refused(tmp_path, {"config": change(clip_config)}, *words, task="image-text")


def test_config_files(tmp_path, clip_config):
    files = {"broken.json": b"{", "list.json": b"[1]", "latin.json": b'{"embed_dim": "\xe9"}'}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name, word in (
        ("none.json", "no such file"),
        ("broken.json", "not valid JSON"),
        ("list.json", "holds a JSON list"),
        ("latin.json", "not valid JSON"),
    ):
        refused(tmp_path, {"config": name}, "config = ", name, word, task="image-text")
    both = {"config": clip_config, "architecture": "ViT-B-32"}
    refused(tmp_path, both, "one of them", task="image-text")
    refused(tmp_path, {"config": clip_config, "arguments": {}}, "timm's classifiers", task="image-text")
    refused(tmp_path, {"architecture": "test_resnet"}, "is for classification", task="image-text")


def test_a_tokenizer_whose_library_is_missing(tmp_path, clip_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    config = changed(clip_config, "text_cfg", hf_tokenizer_name="some/tokenizer")
    refused(tmp_path, {"config": config}, "its tokenizer needs a library", "transformers", task="image-text")


def test_a_tokenizer_that_cannot_be_fetched(tmp_path, clip_config, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = changed(clip_config, "text_cfg", hf_tokenizer_name=str(tmp_path / "none"))
    refused(tmp_path, {"config": config}, "its tokenizer cannot be made", "hf_tokenizer_name", task="image-text")


class NotATensor:
    pass


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(2)], ("holds a list", "a state dict")),
        ({"epoch": 3}, ("holds a dict", "tensors by name")),
        ({"weight": torch.zeros(2), "arguments": NotATensor()}, ("Python objects", "state_dict() alone")),
        ({"other.weight": torch.zeros(2)}, ("do not load", "other.weight")),
    ],
)
def test_weights_that_are_no_state_dict(tmp_path, content, words):
    torch.save(content, tmp_path / "w.bin")
    refused(tmp_path, {**SMALL, "weights": "w.bin"}, "w.bin", *words)


def test_weights_that_are_cut_missing_or_a_folder(tmp_path):
    theirs = load_model(entry_spec(tmp_path, SMALL)).module.state_dict()
    whole = safetensors.torch.save(theirs)
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder").mkdir()
    for file in ("cut.safetensors", "none.safetensors", "folder"):
        refused(tmp_path, {**SMALL, "weights": file}, "weights = ", file)
    torch.save({"model": {f"module.{k}": v for k, v in theirs.items()}, "epoch": 3}, tmp_path / "checkpoint.pth")
    again = made(tmp_path, {**SMALL, "weights": "checkpoint.pth"}).module.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.items())


def test_a_model_of_grey_images_sees_luminance(tmp_path):
    model = made(tmp_path, {**SMALL, "arguments": {**SMALL["arguments"], "in_chans": 1}})
    assert model.preprocessing.to_dict()["mean"] == [0.5]
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    red, green, blue = (pixels[..., c].double() / 255 for c in range(3))
    grey = (0.299 * red + 0.587 * green + 0.114 * blue - 0.5) / 0.25
    torch.testing.assert_close(model.normalize(pixels), grey.float()[:, None], atol=1e-5, rtol=0)
    assert score_blank(model).loss.isfinite().all()
    # Weights of three channels say the same of a grey image as their sum over channels.
    theirs = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    assert (
        made(tmp_path, {**RESNET, "arguments": {"in_chans": 1}}).module.state_dict().keys()
        == theirs.state_dict().keys()
    )


def test_timm_from_a_local_folder(tmp_path):
    theirs = timm.create_model("test_resnet", num_classes=10).eval()
    folder = tmp_path / "saved"
    folder.mkdir()
    pretrained = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 10}
    about = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(about))
    safetensors.torch.save_file(theirs.state_dict(), folder / "model.safetensors")
    spec = entry_spec(tmp_path, {"architecture": "local-dir:saved"})
    model = load_model(spec, trained=True)
    assert model.geometry.size == 64
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.module(images), theirs(images))
    refused(tmp_path, {"architecture": "local-dir:gone"}, "gone", "no config.json")
    refused(tmp_path, {"architecture": "local-dir:"}, "nothing stands behind local-dir:")


def test_timm_from_the_hub_is_asked_for_by_its_name(tmp_path, monkeypatch):
    asked = []

    def create(name, **arguments):
        asked.append((name, arguments))
        return timm.models.create_model("test_resnet", num_classes=arguments["num_classes"])

    monkeypatch.setattr(timm, "create_model", create)
    spec = find_model("hf-hub:timm/any", task="classification", num_classes=10, config=Config(None, {}, {}))
    load_model(spec, trained=True)
    assert asked == [("hf-hub:timm/any", {"pretrained": True, "num_classes": 10})]


COCA = {
    "custom_text": True,
    "multimodal_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def coca(clip_config):
    vision = {**clip_config["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    text = {**clip_config["text_cfg"], "width": 16, "embed_cls": True, "output_tokens": True}
    return {**clip_config, **COCA, "vision_cfg": vision, "text_cfg": text}


def test_coca_scores_by_its_embeddings_and_trains_with_its_captioning_loss(tmp_path, clip_config):
    from open_clip.loss import CoCaLoss

    model = made(tmp_path, {"config": coca(clip_config)}, task="image-text")
    tokens = model.tokenize(["a cat", "two dogs", "three mice"])
    images = torch.randn(3, 3, 32, 32)
    image_BD, text_BD = model.task.infer(model.module, images, tokens)
    torch.testing.assert_close(image_BD, model.module.encode_image(images))
    torch.testing.assert_close(text_BD, model.module.encode_text(tokens))
    theirs = sum(CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)(**model.module(images, tokens)))
    ours = model.task.training_loss(model)(model.task.forward(model.module, images, tokens), tokens)
    torch.testing.assert_close(ours, theirs)
    again = made(tmp_path, {"config": coca(clip_config)}, task="image-text")
    assert again.fingerprint() == model.fingerprint()  # every weight is drawn from the seed
    assert 0.01 < model.module.text_decoder.text_projection.std() * 4 < 2
    without_tokens = coca(clip_config)
    del without_tokens["vision_cfg"]["output_tokens"]
    refused(tmp_path, {"config": without_tokens}, "does not take images", task="image-text")
