"""Decoding in processes: the pixels and the failures of threads, and what becomes of processes that end."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from curate.datasets import Geometry
from curate.datasets.decoders import CAPTIONS, PART, Decoders, default_processes
from curate.datasets.preparers.writer import encode_png
from curate.datasets.readers import Example, Failure
from curate.errors import CurateError, CurateWarning
from support.words import tokens_of_words

VIEWS = [
    Geometry(size=24, resampling="pillow"),
    Geometry(size=16, resampling="pillow"),
]  # without torch, quick to start


def examples(count, bad=()):
    random = np.random.default_rng(0)
    images = [encode_png(random.integers(0, 255, (32, 40, 3), dtype=np.uint8)) for _ in range(count)]
    return [
        Example(shard="s", row=i, key=f"{i:03d}", image=b"no image" if i in bad else image, target=0, target_hash="")
        for i, image in enumerate(images)
    ]


@pytest.fixture(scope="module")
def decoders():
    return Decoders(2, VIEWS)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("count", [1, PART, 10 * PART + 3])
def test_pixels_and_failures_are_those_of_threads(decoders, view, count):
    asked = examples(count, bad={0, 5, PART + 1} if count > 1 else ())
    found, expected = decoders.look(asked, view), Decoders(0, VIEWS).look(asked, view)
    assert len(found) == count
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, Failure) == isinstance(b, Failure)
        assert a == b if isinstance(a, Failure) else np.array_equal(a, b)


def test_what_was_given_stays_when_the_memory_is_used_again(decoders):
    first = decoders.look(examples(8 * PART), VIEWS[0])
    kept = [pixels.copy() for pixels in first]
    decoders.look(examples(16 * PART)[8 * PART :], VIEWS[0], late=True)
    assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))


def test_a_function_is_seen_by_threads(decoders):
    assert decoders.look(examples(3), len) == [len(example.image) for example in examples(3)]
    assert decoders.look([], VIEWS[0]) == []


def test_a_warning_of_a_process_is_said_here(decoders):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.full((20, 20), 4000, np.uint16)).save(file, "PNG")
    with pytest.warns(CurateWarning, match="16 bits"):
        decoders.look([Example(shard="s", row=0, key="0", image=file.getvalue(), target=0, target_hash="")], VIEWS[0])


def test_a_process_that_is_killed_ends_the_stream_with_one_line():
    decoders = Decoders(1, VIEWS)
    decoders.look(examples(1), VIEWS[0])
    for pid in decoders._pool._processes:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(CurateError, match="--decode-processes 0 decodes in threads"):
        decoders.look(examples(64), VIEWS[0])


class Unknown:
    """It is sent, and cannot be made where it arrives."""

    def __reduce__(self):
        return getattr, ("", "nowhere")

    def __call__(self, captions):
        return tokens_of_words(captions)


def test_tokens_are_made_in_processes_where_they_can_be(monkeypatch):
    """A process is sent what it can make; the rest is made here. What a tokenizer raises is raised."""
    captions = [f"image {i} of a dog" for i in range(2 * CAPTIONS + 7)]
    unnamed = lambda texts: tokens_of_words(texts)  # noqa: E731
    unknown = Unknown()
    decoders = Decoders(1, [], [tokens_of_words, unnamed, unknown])
    expected = tokens_of_words(captions).numpy()
    for tokenizer in (tokens_of_words, unnamed, unknown, unknown):
        found = decoders.tokens(captions, tokenizer)
        assert found.dtype == np.int32 and np.array_equal(found, expected)
    with monkeypatch.context() as patch:
        patch.setattr("curate.datasets.decoders._tokens", lambda *_: pytest.fail("here"))
        assert np.array_equal(decoders.tokens(captions, tokens_of_words), expected)
    with pytest.raises(ValueError, match="an unspeakable word"):
        decoders.tokens([*captions, "an unspeakable one"], tokens_of_words)


PARENT = """
import sys
sys.path[:0] = {path!r}
from curate.datasets.decoders import Decoders
from test_decoders import VIEWS, examples
if __name__ == "__main__":
    decoders = Decoders(1, VIEWS)
    decoders.look(examples(1), VIEWS[0])
    print(*decoders._pool._processes, flush=True)
    input()
"""


def test_the_processes_of_a_parent_that_was_killed_end(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(path=[os.path.dirname(__file__), *sys.path]))
    parent = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}")


def test_processes_only_where_they_pay(monkeypatch):
    monkeypatch.setattr("curate.datasets.decoders.cores", lambda: 16)
    assert default_processes([Geometry(size=224)]) == 15
    assert default_processes([Geometry(size=224)], 8) == 7 and default_processes([Geometry(size=224)], 2) == 0
    assert default_processes([Geometry(size=32), len]) == 0
    monkeypatch.setattr("curate.datasets.decoders.cores", lambda: 4)
    assert default_processes([Geometry(size=224)]) == 0
