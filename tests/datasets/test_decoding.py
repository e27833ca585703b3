import io
import struct
import subprocess
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import timm.data
import torch
from curate.datasets import notices
from curate.datasets.batches import decode_all
from curate.datasets.decoding import FORMATS, MAX_PIXELS, Geometry, decode, open_image
from curate.datasets.readers import Example, Failure
from curate.errors import CurateWarning, ExampleError
from PIL import Image

SIZES = [(40, 40), (100, 37), (37, 100), (224, 33), (31, 31), (16, 64), (33, 32), (257, 255)]


@pytest.fixture(scope="module")
def photograph():
    """A real picture with detail at every scale: sklearn's flower."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("flower.jpg"))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def to_uint8(tensor_CHW):
    """Back to bytes from a transform that ends in unit mean and deviation; exact, since ToTensor divides by 255."""
    return np.rint(tensor_CHW.double().numpy() * 255).astype(np.uint8).transpose(1, 2, 0)


def assert_pixels(data, geometry, theirs):
    """Pillow's to the bit where it is asked for; torch's within two levels of 255, and apart only where one rounds up and
    the other down (most often at a ratio of 5 to 4, whose weights end in halves)."""
    exact = decode(data, replace(geometry, resampling="pillow"))
    np.testing.assert_array_equal(exact, theirs)
    apart = np.abs(decode(data, geometry).astype(int) - theirs)
    assert apart.max() <= 2
    assert apart.mean() < 0.07


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_equal_open_clips_own_transform(photograph, size, mode, interpolation):
    image = photograph.resize(size)
    transform = open_clip.image_transform(
        32, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, interpolation=interpolation
    )
    geometry = Geometry(size=32, mode=mode, interpolation=interpolation)
    assert_pixels(encoded(image), geometry, to_uint8(transform(image)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("side", "crop_pct", "interpolation"),
    [
        (32, 0.875, "bicubic"),
        (32, 0.95, "bilinear"),
        (28, 0.9, "bicubic"),
        (33, 0.875, "bicubic"),
        (32, 1.0, "bicubic"),
    ],
)
def test_pixels_equal_timms_own_transform(photograph, size, side, crop_pct, interpolation):
    image = photograph.resize(size)
    transform = timm.data.create_transform(
        (3, side, side), interpolation=interpolation, crop_pct=crop_pct, mean=(0, 0, 0), std=(1, 1, 1)
    )
    geometry = Geometry(size=side, crop_pct=crop_pct, interpolation=interpolation)
    assert_pixels(encoded(image), geometry, to_uint8(transform(image)))


@pytest.mark.parametrize("mode", ["P", "L", "LA", "1", "CMYK", "I;16", "RGBA"])
def test_every_colour_mode_becomes_what_pillow_calls_rgb(photograph, mode):
    small = photograph.resize((32, 32))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257)
        assert image.mode == "I;16"
    else:
        image = small.convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    pixels = decode(data, Geometry(size=32))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    # 16 bits clip at 255, as in open_clip's and timm's own convert("RGB"): published weights see what they were shown.
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_cmyk_jpeg_is_read(photograph):
    pixels = decode(encoded(photograph.resize((32, 32)).convert("CMYK"), "JPEG", quality=95), Geometry(size=32))
    reference = np.asarray(photograph.resize((32, 32))).astype(int)
    assert np.abs(pixels.astype(int) - reference).mean() < 12  # neither inverted nor grey


def png_header(width, height):
    """A PNG that promises width x height pixels and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 30_000), (9_460, 9_460), (13_000, 10_000)])
def test_a_bomb_is_refused_from_its_header_alone(size):
    tracemalloc.start()
    try:
        with pytest.raises(ExampleError) as caught:
            decode(png_header(*size), Geometry(size=32))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size[0] * size[1] > MAX_PIXELS
    assert caught.value.stage == "decode"
    assert "pixels" in caught.value.reason
    assert "readable" not in caught.value.reason  # it was never tried
    assert peak < 1_000_000


def test_the_limit_is_the_users_and_names_both_sizes(photograph):
    data = encoded(photograph.resize((20, 10)))
    assert decode(data, Geometry(size=8), max_pixels=200).shape == (8, 8, 3)
    with pytest.raises(ExampleError, match=r"image is 20x10"):
        decode(data, Geometry(size=8), max_pixels=199)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_picture_cut_anywhere_is_refused(photograph, kind):
    data = encoded(photograph.resize((64, 48)), kind)
    for cut in range(0, len(data) // 10 * 9, max(1, len(data) // 23)):
        with pytest.raises(ExampleError) as caught:
            decode(data[:cut], Geometry(size=32))
        assert caught.value.stage == "decode"
        assert caught.value.reason.startswith("not a readable image: ")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(50), b"<svg></svg>", b"\xff\xd8\xff"])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ExampleError, match="not a readable image"):
        decode(data, Geometry(size=32))


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (3, 1_000), (1, 1)])
def test_a_sliver_is_no_bomb(size):
    column = np.arange(size[0] * size[1]).reshape(size[1], size[0]) % 251
    image = Image.fromarray(column.astype(np.uint8)).convert("RGB")
    tracemalloc.start()
    try:
        pixels = decode(encoded(image), Geometry(size=32, interpolation="nearest"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pixels.shape == (32, 32, 3)
    assert peak < 5_000_000
    # What is seen is the middle of the long side.
    short, middle = min(size), max(size) // 2
    flat = column.T if size[0] > size[1] else column
    seen = set(flat[max(0, middle - short - 1) : middle + short + 1].ravel().tolist())
    assert set(pixels[:, :, 0].ravel().tolist()) <= seen


def test_bad_pictures_become_failures_in_their_own_places(photograph):
    good = encoded(photograph.resize((32, 32)))
    examples = [Example("s", i, f"k{i}", b"bad" if i % 40 == 3 else good, 0, 0) for i in range(100)]
    with ThreadPoolExecutor(4) as pool:
        results = decode_all(examples, Geometry(size=32), pool)
    failures = {i: r for i, r in enumerate(results) if isinstance(r, Failure)}
    assert {i: (f.row, f.key, f.stage) for i, f in failures.items()} == {i: (i, f"k{i}", "decode") for i in (3, 43, 83)}
    for i, pixels in enumerate(results):
        if i not in failures:
            np.testing.assert_array_equal(pixels, np.asarray(photograph.resize((32, 32))))


def test_normalisation_on_the_device_equals_timms_on_the_host(photograph):
    from curate.scoring.loading import load_model
    from curate.scoring.models import ModelSpec

    model = load_model(ModelSpec(name="m", task="classification", architecture="resnet10t", num_classes=3))
    config = timm.data.resolve_model_data_config(model.module)
    transform = timm.data.create_transform(**config, is_training=False)
    image = photograph.resize((300, 211))
    exact = replace(model.geometry, resampling="pillow")
    ours = model.normalize(torch.from_numpy(decode(encoded(image), exact).copy())[None])[0]
    torch.testing.assert_close(ours, transform(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "mode"), [(64, "shortest"), (64, "squash"), (96, "shortest"), (224, "shortest")])
@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_jpegs_decoded_at_a_fraction_of_their_size_differ_as_little_as_stated(name, size, mode):
    from sklearn.datasets import load_sample_image

    file = io.BytesIO()
    Image.fromarray(load_sample_image(name)).save(file, "JPEG", quality=92)  # 640 x 427
    whole = Geometry(size=size, mode=mode)
    full = decode(file.getvalue(), whole).astype(int)
    reduced = decode(file.getvalue(), replace(whole, reduced_jpeg=True)).astype(int)
    assert reduced.shape == (size, size, 3)
    difference = np.abs(full - reduced)
    if 2 * size > 427 / 2:
        assert not difference.any(), "nothing to gain: decoded whole"
    else:
        assert difference.any()
        assert difference.mean() < 3
        assert np.quantile(difference, 0.99) <= 16


def test_close_reduces_jpegs_of_twice_the_size_never_below_it():
    from sklearn.datasets import load_sample_image

    file = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).resize((330, 260)).save(file, "JPEG", quality=90)
    for size, reduces in ((112, True), (130, True), (131, False)):
        whole = Geometry(size=size)
        images = [
            decode(file.getvalue(), replace(whole, reduced_jpeg=how)).astype(int) for how in (False, True, "close")
        ]
        assert np.array_equal(images[0], images[1]), "not four times as large"
        difference = np.abs(images[0] - images[2])
        assert difference.any() == reduces
        assert difference.mean() < 6
    assert Geometry(size=32, reduced_jpeg="close").to_dict()["reduced_jpeg"] == "close"


def test_the_reduced_decoding_is_part_of_a_fingerprint_only_where_it_is_on():
    assert "reduced_jpeg" not in Geometry(size=32).to_dict()
    assert Geometry(size=32, reduced_jpeg=True).to_dict()["reduced_jpeg"] is True


def test_only_jpegs_are_decoded_at_a_fraction(photograph):
    geometry = Geometry(size=32)
    for kind in ("PNG", "WEBP"):
        file = io.BytesIO()
        photograph.resize((320, 240)).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
        pixels = [decode(file.getvalue(), replace(geometry, reduced_jpeg=on)) for on in (False, True)]
        assert np.array_equal(*pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_the_formats_that_data_sets_are_made_of_are_read(photograph, kind):
    assert kind in FORMATS
    data = encoded(photograph.resize((48, 32)), kind)
    assert decode(data, Geometry(size=16)).shape == (16, 16, 3)
    assert open_image(data).size == (48, 32)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "TGA", "PDF", "SGI"])
def test_no_other_format_is_opened(photograph, kind, monkeypatch):
    """For EPS, Pillow would start Ghostscript."""
    data = encoded(photograph.resize((32, 32)), kind)
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: pytest.fail("a program was started"))
    for read in (lambda: decode(data, Geometry(size=16)), lambda: open_image(data)):
        with pytest.raises(ExampleError, match="not a readable image: none of JPEG, PNG, WEBP"):
            read()


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_data_says_where_that_is_asked_for(photograph, orientation, reduced):
    upright = photograph.resize((96, 64))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Transpose that undoes each
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "PNG", exif=exif)
    geometry = Geometry(size=16, resampling="pillow", reduced_jpeg=reduced)
    plain = decode(encoded(upright), geometry)
    np.testing.assert_array_equal(decode(data, replace(geometry, exif_rotation=True)), plain)
    if orientation > 1:
        assert (decode(data, geometry) != plain).any()


def test_turning_is_part_of_a_fingerprint_only_where_it_is_on():
    assert "exif_rotation" not in Geometry(size=16).to_dict()
    assert Geometry(size=16, exif_rotation=True).to_dict()["exif_rotation"] is True


def test_a_turned_jpeg_decoded_at_a_fraction_keeps_its_frame(photograph):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photograph.resize((512, 256)), "JPEG", exif=exif, quality=95)
    whole = decode(data, Geometry(size=32, exif_rotation=True))
    reduced = decode(data, Geometry(size=32, exif_rotation=True, reduced_jpeg=True))
    assert np.abs(whole.astype(int) - reduced).mean() < 3


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", np.uint16), ("I", np.int32), ("F", np.float32)])
def test_values_that_are_cut_at_255_are_said_once(mode, dtype, monkeypatch):
    monkeypatch.setattr(notices, "_said", set())
    kind = "TIFF"
    dark = encoded(Image.fromarray(np.full((16, 16), 200, dtype)), kind)
    bright = encoded(Image.fromarray(np.full((16, 16), 300, dtype)), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CurateWarning)
        assert (decode(dark, Geometry(size=16)) == 200).all()
    with pytest.warns(CurateWarning, match=rf"mode {mode}\) are cut at 255"):
        assert (decode(bright, Geometry(size=16)) == 255).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CurateWarning)
        open_image(bright)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_an_opened_image_is_decoded_whole(photograph, mode):
    """A view uses it when its file is closed; a cut one is a bad example before that."""
    data = encoded(photograph.convert(mode))
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(photograph.convert(mode).convert("RGB")))
    with pytest.raises(ExampleError) as caught:
        open_image(data[: len(data) // 2])
    assert caught.value.stage == "decode"
