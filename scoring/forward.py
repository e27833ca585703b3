"""The forward pass that scores. Both Beam's workers and training runs use this code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from . import losses
from .models import Model, Scored
from .settings import Precision

# At once on a CPU. The allocator gives larger buffers back to the system after each layer, and getting their pages anew took
# longer than the pass: 640 images of 32 px through a small network 38 to 42 ms at once, 16 to 18 ms in parts of 128 to 320.
CPU_BATCH = 256


def score_batch(
    model: Model,
    pixels_BHWC: torch.Tensor,
    targets: torch.Tensor,
    *,
    precision: Precision = "fp32",
    micro_batch: int | None = None,
    forward: Any = None,
    logits: bool = False,
) -> Scored:
    """Scoring losses of one batch, in evaluation mode and without gradients. The training mode is restored.

    `pixels_BHWC` uint8; `targets` are labels int64 [B] or caption tokens int64 [B, L]; both on the model's device.
    `micro_batch` bounds how many are processed at once; on a CPU no more than 256 are. `forward`, if given, is called instead
    of the module (a compiled one). With `logits`, a classifier's are kept.
    """
    run = forward if forward is not None else model.module
    parts = []
    B = max(1, len(pixels_BHWC))  # a pass over no rows gives outputs of no rows
    step = min(micro_batch or B, B if pixels_BHWC.is_cuda else CPU_BATCH)
    with evaluating(model.module), torch.inference_mode(), autocast(pixels_BHWC.device, precision):
        for start in range(0, B, step):
            part = slice(start, start + step)
            inferred = model.task.infer(run, model.normalize(pixels_BHWC[part]), targets[part])
            scored = model.task.scored(inferred, targets[part])
            parts.append(replace(scored, logits=inferred.float()) if logits else scored)
    if len(parts) == 1:
        return parts[0]
    fields = ("loss", "predicted", "similarity", "image_embedding", "text_embedding", "logits")
    whole: dict[str, Any] = {
        name: None if getattr(parts[0], name) is None else torch.cat([getattr(p, name) for p in parts])
        for name in fields
    }
    return Scored(**whole)


def score_embeddings(image_BD: torch.Tensor, text_BD: torch.Tensor) -> Scored:
    """ActiveCLIP's scoring loss of B pairs from their unit-norm embeddings."""
    loss_B = losses.negative_dot_product(image_BD, text_BD)
    return Scored(loss=loss_B, similarity=-loss_B, image_embedding=image_BD, text_embedding=text_BD)


def embed(run: Any, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit-norm float32 embeddings [B, D] of images and captions by an open_clip module, which normalises them."""
    if hasattr(run, "text_decoder"):  # CoCa: writing captions is no part of the score
        image_BD, text_BD = run.encode_image(images), run.encode_text(tokens)
    else:
        image_BD, text_BD = embeddings_of(run(images, tokens))
    return nn.functional.normalize(image_BD.float(), dim=-1), nn.functional.normalize(text_BD.float(), dim=-1)


def embeddings_of(output: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The two embeddings [B, D] in the output of an open_clip module's pass, a dictionary or a tuple."""
    if isinstance(output, dict):
        return output["image_features"], output["text_features"]
    return output[0], output[1]


def embed_images(model: Model, pixels_BHWC: torch.Tensor, precision: Precision = "fp32") -> torch.Tensor:
    """Unit-norm float32 embeddings [B, D] of images uint8 [B, H, W, 3] alone, as `score_batch` makes them."""
    module: Any = model.module
    with evaluating(module), torch.inference_mode(), autocast(pixels_BHWC.device, precision):
        image_BD = module.encode_image(model.normalize(pixels_BHWC), normalize=True)
        return nn.functional.normalize(image_BD.float(), dim=-1)


def embed_captions(model: Model, tokens_BL: torch.Tensor, precision: Precision = "fp32") -> torch.Tensor:
    """Unit-norm float32 embeddings [B, D] of captions alone, as `score_batch` makes them."""
    module: Any = model.module
    with evaluating(module), torch.inference_mode(), autocast(tokens_BL.device, precision):
        return nn.functional.normalize(module.encode_text(tokens_BL, normalize=True).float(), dim=-1)


def embedding_width(model: Model) -> int:
    """D of an image-text model's embeddings, by embedding one blank image."""
    scored = score_blank(model)
    assert scored.image_embedding is not None
    return int(scored.image_embedding.shape[1])


def score_blank(model: Model) -> Scored:
    """Score one blank image, to find out whether the model works and which shapes it gives."""
    size = model.geometry.size
    device = next(model.module.parameters()).device
    pixels = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device)
    return score_batch(model, pixels, model.targets([model.task.blank()]).to(device))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode: dropout off, BatchNorm on its running statistics. Afterwards the mode is restored."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def autocast(device: torch.device, precision: Precision) -> Any:
    """torch's autocast to bf16 at that precision; nothing at fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def float32_products(device: torch.device, precision: Precision) -> Iterator[None]:
    """Within, a GPU at bf16 multiplies in TF32 what stays in float32, such as a joint choice's products of embeddings: TF32
    keeps more of a number than bf16 does. At fp32 nothing is rounded, convolutions neither, which torch rounds by default.
    The setting is the process's, so only what has a process to itself sets it: a run, a scoring job, an evaluation."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_float32_products(device, precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def set_float32_products(device: torch.device, precision: Precision) -> None:
    """The same for good: for a worker of a scoring job, whose process ends with the job."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "bf16" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "bf16"


def best_precision(device: torch.device) -> Precision:
    """bf16 where the hardware multiplies it faster than float32: GPUs from Ampere on, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    fast = device.type == "cpu" and any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return "bf16" if fast else "fp32"


def best_device(worker: int | None = None) -> torch.device:
    """A GPU where there is one, else the CPU. A machine's workers, counted from 0, are dealt to its GPUs."""
    return device_of(worker, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def device_of(worker: int | None, gpus: int) -> torch.device:
    """The device of one worker on a machine of so many GPUs; the CPU where there is none."""
    if not gpus:
        return torch.device("cpu")
    return torch.device("cuda") if worker is None else torch.device("cuda", worker % gpus)
