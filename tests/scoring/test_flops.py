"""FLOPs against figures worked out by hand from the layers' shapes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from curate.scoring import ModelSpec, forward_flops, load_model, train_flops
from curate.scoring.flops import count, unusual


def build(**options):
    return load_model(ModelSpec(name="m", num_classes=10, **options))


def test_convolutions_by_hand():
    model = build(
        task="classification",
        architecture="small_resnet",
        arguments={"channels": [4, 8], "layers": [0]},
        preprocessing={"size": 16},
    )
    stem = 2 * 16 * 16 * 4 * 3 * 9
    stage = 2 * 8 * 8 * 8 * 4 * 9
    head = 2 * 8 * 10
    measured = forward_flops(model, 3)
    assert measured.total == 3 * (stem + stage + head)
    assert measured.per_example == stem + stage + head
    assert "native_batch_norm" in measured.uncounted
    # Backward costs twice the forward, but for the pictures' own gradient, which nobody needs.
    assert train_flops(model, F.cross_entropy, 5).total == 5 * (3 * (stage + head) + 2 * stem)


def test_attention_is_counted_by_hand():
    tokens, width, depth = 17, 32, 2
    model = build(
        task="classification",
        architecture="vit_tiny_patch16_224",
        arguments={"img_size": 32, "patch_size": 8, "embed_dim": width, "depth": depth, "num_heads": 2},
    )
    patches = 2 * 16 * width * 3 * 64
    block = 2 * tokens * width * (3 * width + width + 4 * width + 4 * width) + 2 * 2 * tokens * tokens * width
    assert forward_flops(model, 2).per_example == patches + depth * block + 2 * width * 10


def test_what_usual_models_do_without_a_formula_is_not_worth_a_line_and_a_strange_kernel_is():
    models = [
        build(task="classification", architecture="vit_tiny_patch16_224", arguments={"img_size": 32, "depth": 1}),
        build(task="classification", architecture="small_resnet", arguments={"channels": [4, 8], "layers": [0]}),
    ]
    for model in models:
        uncounted = train_flops(model, F.cross_entropy, 2).uncounted
        assert uncounted and unusual(uncounted) == []
    assert unusual(["gelu", "linalg_inv_ex", "add", "my_kernel"]) == ["linalg_inv_ex", "my_kernel"]


def test_counting_leaves_the_model_as_it_was():
    model = build(task="classification", architecture="small_resnet", arguments={"channels": [4, 8], "layers": [0]})
    before, training = model.fingerprint(), model.module.training
    forward_flops(model)
    train_flops(model, F.cross_entropy, 4)
    assert model.fingerprint() == before
    assert model.module.training == training
    assert all(p.grad is None and p.device == torch.device("cpu") for p in model.module.parameters())


@pytest.mark.parametrize("batch_size", [2, 8])
def test_image_text_scales_with_the_batch(batch_size, clip_config):
    model = build(task="image-text", architecture="clip", open_clip_config=clip_config)
    assert forward_flops(model, batch_size).per_example == forward_flops(model, 2).per_example > 0


def attention_of_the_process():
    kernels = [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "math", "mem_efficient")]
    return *kernels, torch.backends.mha.get_fastpath_enabled()


def test_threads_that_count_at_one_time_leave_attention_as_it_was():
    """Which kernels attention may take is a switch of the process. Who came first would put back the fast ones, and who came
    second what the first one had set: products of whole matrices, to the end of the process."""
    before = attention_of_the_process()
    came, went = threading.Event(), threading.Event()
    within = []

    def one():
        came.wait(0.3)  # for the other, who must wait until this one is done
        within.append(attention_of_the_process())

    def two():
        came.set()
        went.wait(0.3)
        within.append(attention_of_the_process())

    def first():
        count(one, 1)
        went.set()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(first), pool.submit(count, two, 1)]:
            done.result()
    assert within == [(False, True, False, False)] * 2
    assert attention_of_the_process() == before and before[0]
