from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from curate.datasets import decode, list_shards, read_shard
from curate.datasets.spec import spec_from_table
from curate.errors import CurateError, FailuresError, ShardError, SpecError
from curate.scoring import load_model
from curate.scoring.evaluation import recalls
from curate.scoring.ranks import ALONE
from curate.training.evaluate import evaluate
from support.counting import OfRealTensors
from support.rank_runs import measured
from support.ranks import run_ranks
from support.tars import read_tar, replace_member, write_tar
from support.tiny import go, shard, write_toml
from torch.nn.attention import SDPBackend, sdpa_kernel


def slow_recall(query, answer, right, k):
    """`right` holds the pairs (query, answer) that are."""
    similarity = query.double().numpy() @ answer.double().numpy().T
    hits = 0
    for i, row in enumerate(similarity.tolist()):
        nearest = sorted(range(len(row)), key=lambda j: -row[j])[:k]
        hits += any((i, j) in right for j in nearest)
    return hits / len(query)


def test_recall_equals_a_slow_computation():
    """50 images of one to three captions, some of which are the same words."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(50, 8, generator=generator)
    of = torch.tensor([i for i in range(50) for _ in range(1 + i % 3)])
    text = image[of] + torch.randn(len(of), 8, generator=generator)
    words = torch.arange(len(of)) // 2
    told = {(int(i), int(w)) for i, w in zip(of, words, strict=True)}
    found = [(i, j) for i in range(50) for j in range(len(of)) if (i, int(words[j])) in told]
    got = recalls(image, text, of, words)
    for k in (1, 5, 10):
        assert got[f"image_to_text_r{k}"] == pytest.approx(slow_recall(image, text, set(found), k))
        assert got[f"text_to_image_r{k}"] == pytest.approx(slow_recall(text, image, {(j, i) for i, j in found}, k))
    assert got["text_to_image_r1"] < got["text_to_image_r10"] < 1


def test_recall_of_three_images_with_two_captions_each_by_hand():
    image = torch.eye(3)
    text = torch.tensor(
        [
            *([1.0, 0, 0], [0.1, 1, 0]),  # nearest to images 0 and 1
            *([0, 0.9, 0], [0.5, 0.2, 0]),  # 1 and 0
            *([0, 0.95, 0.3], [0, 0, 0.2]),  # 1 and 2
        ]
    )
    of = torch.tensor([0, 0, 1, 1, 2, 2])
    # The first captions of images 0, 1 and 2 are the nearest to image 0; to image 1 one of image 0; to image 2 its own.
    got = recalls(image, text, of, torch.arange(6))
    assert got["text_to_image_r1"] == pytest.approx(3 / 6) and got["image_to_text_r1"] == pytest.approx(2 / 3)
    assert got["text_to_image_r5"] == got["image_to_text_r5"] == 1
    # Image 1 has a caption of the words that are nearest to it and were written for image 0.
    same = recalls(image, text, of, torch.tensor([0, 1, 1, 3, 4, 5]))
    assert same["text_to_image_r1"] == pytest.approx(4 / 6) and same["image_to_text_r1"] == 1


def test_fewer_answers_than_k():
    assert set(recalls(torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3)).values()) == {1.0}


def captioned(pairs, folder, how):
    """A test split of 20 images with three captions each, written in one of the ways in which data sets have them."""
    source = [member for member in read_tar(pairs.root / "data/00000.tar") if member[0].endswith(".png")]
    words = ("a digit", "the number", "seven or one", "small and grey")
    members = []
    for i, (name, png) in enumerate(source):
        told = [f"{words[(i + j) % 4]} {i // 2 * 3 + j}" for j in range(3)]
        if how == "list":
            members += [(name, png), (name.replace("png", "json"), json.dumps({"captions": told}).encode())]
        elif how == "lines":
            members += [(name, png), (name.replace("png", "txt"), "\n".join(told).encode())]
        else:
            for j, one in enumerate(told):
                members += [(f"{i}-{j}.png", png), (f"{i}-{j}.txt", one.encode())]
    path = str(write_tar(folder / f"{how}.tar", members))
    more = {"list": {"text": "json:captions"}, "lines": {"text": "txt", "captions": "lines"}, "rows": {"text": "txt"}}
    return spec_from_table("captioned", {"train": path, "test": path, **more[how]})


def test_several_captions_an_image_are_measured_however_they_are_written(pairs, tmp_path):
    model = load_model(pairs.options("unused").reference)
    found = {}
    for how in ("list", "lines", "rows"):
        found[how] = evaluate(
            model, captioned(pairs, tmp_path, how), device=torch.device("cpu"), precision="fp32", batch_size=7
        )
    sizes = {
        name: [found[name].pop(n, None) for n in ("test_examples", "test_images", "test_captions")] for name in found
    }
    assert sizes == {"list": [20, None, 60], "lines": [20, None, 60], "rows": [60, 20, None]}
    assert found["list"] == found["lines"] == pytest.approx(found["rows"])
    # The same by a loop over what the model's own towers say.
    images, texts, right = [], [], set()
    with torch.no_grad():
        for shard in list_shards(captioned(pairs, tmp_path, "list"), "test"):
            for example in read_shard(captioned(pairs, tmp_path, "list"), shard):
                pixels = torch.from_numpy(decode(example.image, model.geometry).copy())[None]
                images.append(model.module.encode_image(model.normalize(pixels), normalize=True)[0])
                for caption in (example.target, *example.more_captions):
                    right.add((len(images) - 1, len(texts)))
                    texts.append(model.module.encode_text(model.tokenize([caption]), normalize=True)[0])
    assert len(right) == 60
    assert found["list"]["text_to_image_r5"] == pytest.approx(
        slow_recall(torch.stack(texts), torch.stack(images), {(j, i) for i, j in right}, 5)
    )
    assert found["list"]["image_to_text_r5"] == pytest.approx(
        slow_recall(torch.stack(images), torch.stack(texts), right, 5)
    )


@pytest.mark.parametrize("classes", [(), ("digit", "number", "picture")])
def test_the_flops_of_an_evaluation_are_those_that_run(pairs, digits, tmp_path, monkeypatch, classes):
    """Every caption of an image, the comparison of all, and zero-shot classification, of which one example has no label."""
    spec = captioned(pairs, tmp_path, "list")
    if classes:
        members = []
        for i, (name, content) in enumerate(read_tar(tmp_path / "list.tar")):
            label = {} if i == 1 else {"label": i % 3}
            members.append((name, json.dumps({**json.loads(content), **label}).encode() if i % 2 else content))
        write_tar(tmp_path / "list.tar", members)
        spec = replace(spec, label="json:label", classes=classes, templates=("a {}", "one {}"))
    # A fused kernel of attention, taken in evaluation mode, is one that this outer counter does not know.
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    for model, dataset in (
        (load_model(pairs.options("unused").reference), spec),
        (load_model(digits.options("unused").reference), digits.dataset()),
    ):
        with sdpa_kernel(SDPBackend.MATH), OfRealTensors(display=False) as counter:
            quality = evaluate(model, dataset, device=torch.device("cpu"), precision="fp32")
        assert model.task.evaluation_flops(model).of(quality, dataset) == counter.get_total_flops() > 0
        if dataset is spec:
            assert quality.get("zero_shot_examples") == (19 if classes else None)


def test_top1_equals_a_plain_loop(digits):
    model = load_model(digits.options("unused").reference)
    spec = digits.dataset()
    right = total = 0
    with torch.no_grad():
        for shard in list_shards(spec, "test"):
            for example in read_shard(spec, shard):
                pixels = torch.from_numpy(decode(example.image, model.geometry).copy())[None]
                right += int(model.module(model.normalize(pixels)).argmax()) == example.target
                total += 1
    quality = evaluate(model, spec, device=torch.device("cpu"), precision="fp32")
    assert total == quality["test_examples"] == 597
    assert quality["top1"] == pytest.approx(right / total)


def test_ranks_share_the_batches_and_measure_the_same(digits, pairs, tmp_path):
    pairs_options = pairs.options("unused")
    sets = [
        (digits.options("unused").reference, digits.dataset()),
        (pairs_options.reference, replace(pairs_options.dataset, test=pairs_options.dataset.train)),
        *((pairs_options.reference, captioned(pairs, tmp_path, how)) for how in ("list", "rows")),
    ]
    for found in run_ranks(3, measured, sets):
        for quality, alone in zip(found, measured(ALONE, sets), strict=True):
            assert quality == pytest.approx(alone)


@pytest.fixture
def tested(tmp_path):
    """A data set whose test split is to be spoilt."""
    shard(tmp_path / "a.tar", range(64))
    shard(tmp_path / "test.tar", range(500, 600))
    write_toml(tmp_path, test="test.tar")
    return tmp_path


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILT = {
    "missing": (lambda path: path.unlink(), ShardError, "^data set '[a-z]+', test split: no shard matches"),
    "empty": (lambda path: write_tar(path, []), CurateError, "no example can be used|no example"),
    "cut": (cut_in_half, ShardError, "test split: .*cut or damaged"),
    "no images": (
        lambda path: write_tar(path, [(f"{i}.{e}", b"7") for i in range(3) for e in ("png", "cls")]),
        SpecError,
        "no example can be used",
    ),
    "two of a hundred bad": (
        lambda path: replace_member(path, {"500.cls": b"horse", "501.cls": b"cow"}),
        FailuresError,
        r"2 of 100 examples are bad \(allowed 1\.0%: --max-failures\)",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_test_split_that_cannot_be_used_is_found_before_the_first_step(tested, how):
    spoil, kind, told = SPOILT[how]
    spoil(tested / "test.tar")
    with pytest.raises(kind, match=told):
        go(tested, evaluate=True)
    assert not (tested / "runs/run").exists()
    assert go(tested)["steps"] == 12  # without evaluation nobody reads it


def test_quality_on_fewer_examples_is_said(tested):
    replace_member(tested / "test.tar", {"500.cls": b"horse", "501.png": b"no image"})
    told = []
    summary = go(tested, evaluate=True, max_failures=0.05, report=told.append)
    assert summary["quality"]["test_examples"] == 98
    assert summary["quality"]["test_failures"] == 2
    assert told[-1].endswith("test_examples 98, test_failures 2")


def test_a_run_that_was_trained_and_not_evaluated_has_a_summary_and_is_evaluated_by_a_resume(tested):
    replace_member(tested / "test.tar", {f"{i}.png": b"no image" for i in range(500, 510)})  # found when decoded
    with pytest.raises(FailuresError, match=r"trained, its weights are kept, but not evaluated: .* 10 of 100"):
        go(tested, evaluate=True)
    summary = json.loads((tested / "runs/run/summary.json").read_text())
    assert summary["quality"] == {} and "10 of 100" in summary["not_evaluated"]
    assert not list((tested / "runs/run/checkpoints").glob("resume-*"))
    again = go(tested, resume=True, evaluate=True, max_failures=0.2)
    assert again["quality"]["test_examples"] == 90
    assert json.loads((tested / "runs/run/summary.json").read_text()) == again
    assert "not_evaluated" not in again and again["outside_the_ledger"]["evaluation"] > 0
