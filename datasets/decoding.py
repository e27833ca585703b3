"""From the bytes of an image to pixels of one size, as the model's own preprocessing makes them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ExampleError, SpecError
from .notices import say_once

T = TypeVar("T")
MAX_PIXELS = 89_478_485
# Pillow knows some forty formats. These are the ones that data sets are made of, and are decoded inside this process by
# libraries that are maintained; for EPS it would start Ghostscript, an interpreter, on data of strangers.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
# Pillow cuts the values of these at 255 where it makes RGB of them.
CLIPPED_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
EXIF_ORIENTATION = 0x0112
CLOSE = "close"
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CHOICES = {"mode": ("shortest", "squash"), "interpolation": tuple(INTERPOLATIONS), "resampling": ("torch", "pillow")}
# We check the size ourselves, below. Pillow's check would also warn, at half of the same limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How an image becomes `size` x `size` pixels.

    `shortest`: scale the shorter side to size / crop_pct, crop the centre (timm's and open_clip's default).
    `squash`: scale both sides to size and ignore the aspect ratio (SigLIP's).

    `resampling`: `torch` (bilinear and bicubic) is more than four times as fast as `pillow`; its pixels differ by at most
    one level of 255, seldom two. `pillow` gives exactly the pixels of open_clip's and timm's transforms.
    `reduced_jpeg` decodes JPEGs of at least four times the target's sides at a half, a quarter or an eighth of their
    size, never below twice the target's: several times as fast for large photographs, and pixels differ by 1 to 3 levels
    of 255 on average. "close" does so for JPEGs of at least twice the target's sides, never below the target's: for small
    views of images that are not much larger, such as a scorer's; pixels differ by 2 to 6 levels on average.
    `exif_rotation` turns an image as its EXIF data says. Most published models were trained without.
    """

    size: int
    mode: Literal["shortest", "squash"] = "shortest"
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    resampling: Literal["torch", "pillow"] = "torch"
    reduced_jpeg: bool | Literal["close"] = False
    exif_rotation: bool = False

    def __post_init__(self) -> None:
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise SpecError(f"{name} of a geometry is '{getattr(self, name)}', expected {', '.join(values)}")
        if self.size < 1 or not 0 < self.crop_pct <= 1:
            raise SpecError(
                f"a geometry has size {self.size} and crop_pct {self.crop_pct}, expected pixels and a share above 0 and up to 1"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able. What is off is left out, so that older fingerprints stay the same."""
        return {k: v for k, v in asdict(self).items() if v is not False}


# How an image is seen: a geometry, or the user's function. A transform of torchvision's kind (timm's and open_clip's
# preprocessing is one) gets the decoded image, any other function gets the bytes. It returns a tensor, of one shape for
# all images.
View = Geometry | Callable[[Any], Any]


def takes_image(view: Callable[[Any], Any]) -> bool:
    """Whether a transform is of torchvision's kind: one of its own, a composition, or a module."""
    homes = tuple(kind.__module__.partition(".")[0] for kind in type(view).__mro__)
    is_module = any(kind.__module__.startswith("torch.nn") for kind in type(view).__mro__)
    return is_module or "torchvision" in homes or hasattr(view, "transforms")


def look(data: bytes, view: View) -> Any:
    """What a view makes of an image's bytes: uint8 [size, size, 3] for a geometry, else what its function returns.

    Raises ExampleError (stage `decode`, or `view` for what the user's function raises).
    """
    if isinstance(view, Geometry):
        return decode(data, view)
    given = open_image(data) if takes_image(view) else data
    try:
        return view(given)
    except Exception as e:
        raise ExampleError("view", f"the view's function raised {type(e).__name__}: {e}"[:300]) from e


def open_image(data: bytes) -> Image.Image:
    """Decode to a Pillow image in RGB, at its own size. Raises ExampleError as `decode` does."""

    def whole(image: Image.Image) -> Image.Image:
        image.load()  # it is read no more once it is closed
        return _rgb(image).copy()

    return _opened(data, MAX_PIXELS, whole)


def decode(data: bytes, geometry: Geometry, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode to uint8 [size, size, 3] RGB.

    Raises ExampleError (stage `decode`) for anything that Pillow cannot decode whole, and for images of more than
    `max_pixels` (decompression bombs), which are refused from their header alone.
    """

    def fit(image: Image.Image) -> np.ndarray:
        own_size = image.size
        if geometry.reduced_jpeg:
            wide, high = _target(own_size, geometry)
            times = 1 if geometry.reduced_jpeg == CLOSE else 2
            image.draft(None, (times * wide, times * high))  # does nothing to other formats
        if geometry.exif_rotation and image.getexif().get(EXIF_ORIENTATION, 1) in range(2, 9):
            is_turned = image.getexif()[EXIF_ORIENTATION] >= 5
            own_size = own_size[::-1] if is_turned else own_size
            image = ImageOps.exif_transpose(image)
        return _fit(_rgb(image), geometry, own_size)

    return _opened(data, max_pixels, fit)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in CLIPPED_MODES and _is_bright(image):
        say_once(
            "clipped",
            f"images of 16 bits or floats (mode {image.mode}) are cut at 255, so that brighter pixels are white; convert "
            "them to 8 bits",
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_bright(image: Image.Image) -> bool:
    try:
        return bool(np.max(image.getextrema()) > 255)
    except ValueError:  # a mode that it does not measure
        return True


def _opened(data: bytes, max_pixels: int, use: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ExampleError(
                    "decode",
                    f"image is {width}x{height} ({width * height / 1e6:.0f} megapixels, limit {max_pixels / 1e6:.0f})",
                )
            return use(image)
    except ExampleError:
        raise
    except Image.DecompressionBombError as e:
        raise ExampleError("decode", str(e)) from None
    except UnidentifiedImageError:  # its own message contains a memory address, which changes with every run
        raise ExampleError("decode", f"not a readable image: none of {', '.join(FORMATS)}") from None
    except Exception as e:  # Pillow's plugins raise anything on damaged data: SyntaxError, struct.error, KeyError, ...
        raise ExampleError("decode", f"not a readable image: {type(e).__name__}: {e}"[:300]) from None


def _target(image_size: tuple[int, int], geometry: Geometry) -> tuple[int, int]:
    """(width, height) that an image is resized to, before its centre is cropped."""
    if geometry.mode == "squash":
        return geometry.size, geometry.size
    width, height = image_size
    scaled = int(geometry.size / geometry.crop_pct)
    # The same truncation as torchvision's Resize, so that published weights see the frame that they were trained on.
    other = int(scaled * max(width, height) / min(width, height))
    return (scaled, other) if width <= height else (other, scaled)


def _fit(image: Image.Image, geometry: Geometry, image_size: tuple[int, int]) -> np.ndarray:
    """`image_size` is the stored image's size; `image` may have been decoded at a fraction of it."""
    size = geometry.size
    target = _target(image_size, geometry)
    # An image of 1 x 10,000 pixels would be scaled up to a huge one, of which only the centre is used. Crop that first.
    if max(target) > 64 * min(target):
        width, height = image.size
        middle, half = max(width, height) // 2, 32 * min(width, height)
        box = (0, middle - half, width, middle + half) if width <= height else (middle - half, 0, middle + half, height)
        centre = image.crop(box)
        return _fit(centre, geometry, centre.size)
    pixels = _resize(image, target, geometry)
    if target == (size, size):
        return pixels
    left, top = round((target[0] - size) / 2.0), round((target[1] - size) / 2.0)
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def _resize(image: Image.Image, target: tuple[int, int], geometry: Geometry) -> np.ndarray:
    """Pixels uint8 [H, W, 3] of `target` = (width, height)."""
    if image.size == target:
        return np.asarray(image)
    if geometry.resampling == "pillow" or geometry.interpolation not in ("bilinear", "bicubic"):
        return np.asarray(image.resize(target, INTERPOLATIONS[geometry.interpolation]))
    import torch  # listing and reading shards works without it

    pixels_1CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized_1CHW = torch.nn.functional.interpolate(
        pixels_1CHW, size=(target[1], target[0]), mode=geometry.interpolation, antialias=True
    )
    return resized_1CHW[0].permute(1, 2, 0).numpy()
