"""Vector drawings and large images to small ones on white, with one worker process per core."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from PIL import Image

from ...progress import Progress
from ...threads import cores
from ...units import Report
from .writer import encode_png

SIZE = 64
MAX_PIXELS = 89_478_485
CHUNK = 64


@dataclass(frozen=True)
class Drawing:
    """An image to render: its key and caption in the shard, its SVG or PNG bytes, and its columns of the analysis file."""

    key: str
    caption: str
    content: bytes = field(repr=False)
    known: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendered:
    """A drawing as RGB PNG bytes of SIZE x SIZE. `blank`: all its pixels have one colour (white on white, mostly)."""

    drawing: Drawing
    png: bytes = field(repr=False)
    blank: bool


def render_all(drawings: Sequence[Drawing], report: Report, skipped: list[tuple[str, str]]) -> Iterator[Rendered]:
    """Render in order, with one worker process per core. Drawings that cannot be rendered go to `skipped` as (key, reason).

    Reports examples/s. Memory holds the input and a few chunks.
    """
    # Spawned, since a forked copy of a process with torch's threads in it may hang.
    context = multiprocessing.get_context("spawn")
    workers = cores()
    done = 0
    with (
        ProcessPoolExecutor(workers, mp_context=context) as pool,
        Progress(report, "rendering", len(drawings)) as progress,
    ):

        def words() -> str:
            return f"{done:,} of {len(drawings):,} images, {done / progress.seconds:,.0f} examples/s"

        remaining = iter(drawings)
        while batch := list(islice(remaining, 16 * workers * CHUNK)):
            contents = [drawing.content for drawing in batch]
            for drawing, (png, blank, reason) in zip(
                batch, pool.map(render_or_reason, contents, chunksize=CHUNK), strict=True
            ):
                done += 1
                progress.update(done, words)
                if reason:
                    skipped.append((drawing.key, reason))
                else:
                    yield Rendered(drawing, png, blank)


def render_or_reason(content: bytes) -> tuple[bytes, bool, str]:
    """(PNG bytes, whether it is blank, "") of an SVG or PNG, or (b"", False, why not)."""
    try:
        image = render(content)
    except Exception as e:
        # resvg and Pillow raise many kinds of exceptions on damaged input; one bad image must not end the job.
        return b"", False, f"{type(e).__name__}: {e}"[:200]
    return encode_png(image), image.getcolors(maxcolors=1) is not None, ""


def render(content: bytes, size: int = SIZE) -> Image.Image:
    """RGB of `size` x `size`: the whole SVG or PNG, centred on white, with its aspect ratio.

    Raises ValueError for an SVG that resvg refuses and for a PNG over MAX_PIXELS, of which only the header is read.
    """
    if content.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width}x{height} pixels, limit {MAX_PIXELS:,}")
            image = opened.convert("RGBA")
    else:
        import resvg_py

        text = content.decode("utf-8", errors="replace")
        # The machine's fonts would make the images differ between machines. Without a dpi, sizes in points are zero.
        png = resvg_py.svg_to_bytes(svg_string=text, width=size, dpi=96, skip_system_fonts=True)
        image = Image.open(io.BytesIO(png)).convert("RGBA")
    if image.size != (size, size):
        scale = size / max(image.size)
        fitted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(fitted, Image.Resampling.BICUBIC, reducing_gap=3.0)
    canvas = Image.new("RGBA", (size, size), "white")
    canvas.alpha_composite(image, ((size - image.width) // 2, (size - image.height) // 2))
    return canvas.convert("RGB")
