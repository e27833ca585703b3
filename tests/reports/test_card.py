"""Cards, and the round trip of a run's model through timm and open_clip."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from curate.reports.card import NAME, table_card, write_card
from curate.scoring.loading import find_model, load_model, save_weights
from curate.scoring.tables.lookup import open_scores
from support.commands import curate


def finish(run, of):
    """A run's folder with the least of a summary."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    lines = {"learner_train": 2e12, "online_score": 0, "online_train": 0, "reference_score": 0, "reference_train": None}
    regimes = dict.fromkeys(("fully_amortised", "foundation", "pretrained_reference"), 2e12) | {
        "nothing_amortised": None
    }
    summary = {
        **{
            "run": run.name,
            "dataset": of,
            "policy": "uniform",
            "learner": "https://me:secret@host/m",
            "seed": 3,
            "steps": 40,
        },
        **{
            "examples_scored": 0,
            "ledger": lines,
            "regimes": regimes,
            "seconds": {"total": 61.2},
            "quality": {"top1": 0.61},
        },
        "counts": {"examples": 60, "failures": 1},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    return run


@pytest.fixture(scope="module")
def clip_run(pairs, tmp_path_factory):
    run = finish(tmp_path_factory.mktemp("runs") / "clip-run", "pairs")
    model = load_model(find_model("clip", task="image-text", config=pairs.config))
    with torch.no_grad():
        for p in model.module.parameters():
            p.add_(0.01)
    save_weights(model.module, run / "checkpoints/learner.safetensors")
    learner = {**model.spec.to_dict(), "weights": "", "preprocessing": model.preprocessing.to_dict()}
    data = {"name": "pairs", "description": "digits <b>", "fingerprint": "f" * 16, "shards": 3}
    about = {"versions": {"curate": "0"}, "hardware": "cpu", "precision": "fp32", "dataset": data}
    (run / "manifest.json").write_text(json.dumps({**about, "models": {"learner": learner}, "score_table": None}))
    (run / "config.json").write_text(json.dumps({"batch_size": 16, "filter_ratio": 0.5}))
    return run


def test_open_clip_loads_the_folder(clip_run, pairs, tmp_path):
    import open_clip

    done = curate("card", clip_run, "--license", "apache-2.0")
    assert done.code == 0, done.err
    folder = clip_run / "model"
    assert done.out.strip() == str(folder / NAME)
    module, *_ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["the digit one"])
    ours = load_model(find_model(str(clip_run), task="image-text", config=pairs.config), trained=True)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(module.encode_image(images), ours.module.encode_image(images), rtol=0, atol=0)
        torch.testing.assert_close(module.encode_text(tokens), ours.module.encode_text(tokens), rtol=0, atol=0)
    again = load_model(find_model(f"local-dir:{folder}", task="image-text", config=pairs.config))
    assert again.preprocessing.to_dict() == ours.preprocessing.to_dict()
    text = (folder / NAME).read_text()
    assert text.startswith('---\nlicense: "apache-2.0"\nlibrary_name: "open_clip"\n')
    assert "secret" not in text and "digits \\<b\\>" in text and "| learner train | 2 TF |" in text
    assert "| nothing amortised | not known |" in text and "No reference model took part." in text


def test_timm_loads_the_folder(digits, tmp_path):
    import timm

    done = curate("card", digits.reference, "--out", tmp_path / "model")
    assert done.code == 0, done.err
    module = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    ours = load_model(find_model(digits.reference, task="classification", num_classes=10), trained=True)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(module(images), ours.module(images), rtol=0, atol=0)
    data = timm.data.resolve_model_data_config(module)
    assert list(data["input_size"]) == [3, 8, 8]
    assert (tuple(data["mean"]), tuple(data["std"])) == (ours.preprocessing.mean, ours.preprocessing.std)
    again = load_model(find_model(f"local-dir:{tmp_path / 'model'}", task="classification", num_classes=10))
    with torch.no_grad():
        torch.testing.assert_close(again.module(images), ours.module(images), rtol=0, atol=0)
    text = (tmp_path / "model" / NAME).read_text()
    assert (
        'license: "unknown"' in text
        and "Licence: not stated" in text
        and "small_resnet" in (tmp_path / "model/config.json").read_text()
    )
    assert ours.fingerprint() in text and str(digits.root) not in text


def test_a_timm_model_of_timm_keeps_its_arguments(tmp_path):
    import timm
    from curate.reports.card_weights import write_library_files
    from curate.scoring.models import ModelSpec

    arguments = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
    spec = ModelSpec(
        name="v", task="classification", architecture="vit_tiny_patch16_224", arguments=arguments, num_classes=7
    )
    model = load_model(spec, seed=1)
    assert write_library_files(model, tmp_path)[0] == "timm"
    module = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(module(images), model.module.eval()(images), rtol=0, atol=0)


def test_a_table_says_how_to_join_it(digits, pairs, tmp_path):
    done = curate("card", digits.table, "--out", tmp_path / "card")
    assert done.code == 0, done.err
    text = (tmp_path / "card" / NAME).read_text()
    table = open_scores(str(digits.table))
    assert "900 examples" in text and table.reference_fingerprint in text
    assert "| `predicted` |" in text and "similarity" not in text and str(digits.root) not in text
    assert text == table_card(table, None)


def test_a_readme_that_is_no_card_stays(digits, tmp_path):
    (tmp_path / NAME).write_text("# My project\n")
    for what in (digits.table, digits.reference):
        told = curate("card", what, "--out", tmp_path)
        assert told.code == 1 and told.error.startswith(f"{tmp_path}/{NAME}: is there, and is no card of curate;")
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_text() == "# My project\n"
    for _ in range(2):  # a card is made again
        assert curate("card", digits.table, "--out", tmp_path / "card").code == 0


def test_a_table_with_its_card_is_still_a_table(digits, tmp_path):
    import shutil

    folder = tmp_path / "scores" / digits.table.parent.name / digits.table.name
    shutil.copytree(digits.table, folder)
    assert write_card(str(tmp_path / "scores"), None, "cc-by-4.0") == str(folder / NAME)
    assert open_scores(str(folder)).check() == (900, 0)
    assert 'license: "cc-by-4.0"' in (folder / NAME).read_text()


def test_an_unfinished_run_is_refused(clip_run, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = curate("card", tmp_path)
    assert done.code == 1 and "it is not finished" in done.error
    done = curate("card", clip_run, "--out", "s3://bucket/x")
    assert done.code == 1 and "a URL" in done.error


@pytest.mark.parametrize("library", ["open_clip", "timm"])
def test_the_lines_of_the_card_load_curates_own_architecture_in_another_process(library, tmp_path):
    from curate.reports.card_weights import write_library_files
    from curate.scoring.models import ModelSpec

    tower = {"image_size": 32, "timm_model_name": "small_resnet_w8", "timm_pool": "avg", "timm_proj": ""}
    words = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    spec = {
        "open_clip": ModelSpec(
            name="pair",
            task="image-text",
            architecture="",
            open_clip_config={"embed_dim": 16, "vision_cfg": tower, "text_cfg": words},
        ),
        "timm": ModelSpec(name="one", task="classification", architecture="small_resnet_w8", num_classes=3),
    }[library]
    model = load_model(spec, seed=1)
    found, lines = write_library_files(model, tmp_path)
    assert found == library
    code = (
        f"{lines.replace('FOLDER', str(tmp_path))}\nimport torch\n"
        "images = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)\n"
        "image_tower = getattr(model, 'encode_image', model)\n"
        "with torch.no_grad(): torch.save(image_tower(images), 'out.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    module = model.module.eval()
    with torch.no_grad():
        expected = getattr(module, "encode_image", module)(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32))
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected, rtol=0, atol=0)
