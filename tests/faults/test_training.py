"""Training runs that are killed, stopped, out of disk and under a clock that jumps end with an undisturbed run's weights."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.support import REAL_SECONDS, finish, start, wait_until
from support.runs import left_by

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
HERE = Path(__file__).parent
STOPS, STEPS, SEED = 20, 300, 2312
OPTIONS = dict(
    dataset="digits",
    policy="learnability",
    learner="learner",
    online="scorer",
    batch_size=32,
    precision="fp32",
    log_every=1,
    checkpoint_every=7,
    evaluate_every=50,
    keep_every=60,
)
# A part of the path of each kind of file that a run writes.
KINDS = (
    "config.json",
    "manifest.json",
    "metrics.jsonl",
    "log.txt",
    "/selections/",
    "/.resume-",
    "learner-000000010",
    "learner-best",
    ".learner.safetensors",
    "online.safetensors",
    "summary.json",
)


def command(digits, out, *more, steps=STEPS):
    given = [text for name, value in OPTIONS.items() for text in (f"--{name.replace('_', '-')}", str(value)) if value]
    about = (
        "--config",
        digits.toml,
        "--reference-scores",
        digits.table,
        "--steps",
        steps,
        "--out",
        out,
        "--name",
        "run",
    )
    return ["train", *given, *map(str, about), *map(str, more)]


def built(tmp_path, name):
    """A library of these folders' C, to be loaded before the C library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the library that disturbs the run")
    library = tmp_path / f"{name}.so"
    made = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / f"{name}.c", "-ldl"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    return str(library)


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    finish(command(digits, out), out / "errors")
    return left_by(out / "run")


def last_step(folder):
    try:
        return len((folder / "metrics.jsonl").read_bytes().splitlines())
    except FileNotFoundError:
        return 0


def assert_same(found, expected, told):
    """Part by part, so that a failure says which differs, not a megabyte of weights."""
    for part in ("metrics", "selections", "summary"):
        assert found[part] == expected[part], f"{part}: {told}"
    assert found["weights"].keys() == expected["weights"].keys(), told
    for name, content in expected["weights"].items():
        assert found["weights"][name] == content, f"{name}: {told}"


def test_kill_9_and_sigterm_at_random_steps(digits, tmp_path, undisturbed):
    chance, run, errors, moments = random.Random(SEED), tmp_path / "run", tmp_path / "errors", []
    for stop in range(STOPS):
        resume = ("--resume",) if (run / "config.json").exists() else ()
        process = start(command(digits, tmp_path, *resume), errors)
        number, steps = chance.choice((signal.SIGKILL, signal.SIGTERM)), chance.randint(0, STEPS // STOPS - 4)
        begun = last_step(run)
        wait_until(lambda p=run, n=begun + steps: last_step(p) >= n, process, f"{steps} steps after {begun}")
        time.sleep(chance.uniform(0, 0.05))
        told = f"seed {SEED}, stop {stop}: {number.name} {steps} steps after {begun}"
        assert process.poll() is None, f"{told}: {errors.read_text()}"
        process.send_signal(number)
        code = process.wait(timeout=REAL_SECONDS)
        assert code in ((-9,) if number == signal.SIGKILL else (143, -15)), f"{told}: {errors.read_text()}"
        moments.append(told)
    finish(command(digits, tmp_path, *(("--resume",) if (run / "config.json").exists() else ())), errors)
    assert_same(left_by(run), undisturbed, moments)


def test_a_full_disk_at_each_kind_of_write(digits, tmp_path):
    """The run says in one line which file could not be written, or goes on where that changes nothing; resumed, it ends as
    if the disk had always had room."""
    options = {**OPTIONS, "reference_scores": str(digits.table), "steps": 30, "evaluate_every": 5, "keep_every": 10}
    (tmp_path / "options.json").write_text(json.dumps({**options, "out": str(tmp_path)}))
    done = subprocess.run(
        [sys.executable, HERE / "train_on_full_disks.py", tmp_path / "options.json", digits.toml, "nothing", *KINDS],
        env={**os.environ, "OMP_NUM_THREADS": "1", "LD_PRELOAD": built(tmp_path, "full_disk")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = {line["kind"]: line["told"] for line in map(json.loads, done.stdout.splitlines())}
    assert told.pop("nothing") is None and told.keys() == set(KINDS)
    whole = left_by(tmp_path / "kind-0")
    for i, kind in enumerate(KINDS, 1):
        assert told[kind], f"{kind}: nothing was raised"
        assert "\n" not in told[kind] and "No space left on device" in told[kind], told[kind]
        assert_same(left_by(tmp_path / f"kind-{i}"), whole, kind)


def test_a_clock_that_jumps_by_days_both_ways(digits, tmp_path, undisturbed):
    errors = tmp_path / "errors"
    finish(command(digits, tmp_path), errors, LD_PRELOAD=built(tmp_path, "clock"))
    found = left_by(tmp_path / "run")
    assert_same(found, undisturbed, "clock")
    seconds = json.loads((tmp_path / "run/summary.json").read_text())["seconds"]
    assert all(0 <= value < 86_400 for value in seconds.values()), seconds
