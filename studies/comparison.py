"""Runs of `curate compare`: every policy at every budget and seed. What is finished is reused, what was cut goes on."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..datasets.spec import Config, find_dataset
from ..errors import RunError, SpecError, StoppedError, WriteError
from ..ledger import BASELINE
from ..scoring.policies import Policy, find_policy
from ..scoring.tasks import find_task
from ..threads import cores
from ..training.options import RunOptions
from ..training.records import read_document, write_json
from ..training.run import train
from ..units import Report, format_flops
from .finished import refuse_mixed
from .options import CompareOptions


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What was run: the names of all points' folders, what 1x stands for, and the learning-rate search as (rate, quality)
    pairs. `quality` names the measure; `settings` are the options that all runs share, as config.json holds them."""

    runs: tuple[str, ...]
    quality: str
    dataset: str
    budget_flops: float
    learning_rate: float
    search: tuple[tuple[float, float], ...]
    settings: dict[str, Any]


def compare_runs(options: CompareOptions, *, config: Config, report: Report = print) -> Compared:
    """Run whatever of the comparison is missing and write `settings.json` of its folder.

    Raises CurateError for the first run that fails, after the others that were going on have ended; the same call
    again goes on. An earlier comparison with other settings in the same folder is refused.
    """
    dataset = find_dataset(options.base.dataset, config)
    if not dataset.test:
        raise SpecError(
            f"data set '{dataset.name}' has no test split; a comparison needs one: set test = in curate.toml"
        )
    quality = find_task(dataset.task).quality
    _refuse_other_settings(options)
    refuse_mixed(list(_finished_runs(options)), options.base, config, report)
    started = time.perf_counter()
    search = _search(options, config, quality, report)
    given = options.base.optimization.lr
    if given is None:
        given = find_task(dataset.task).lr
    best = max(search, key=lambda pair: pair[1])[0] if search else given
    points = planned(options, best)
    todo = [p for p in points if not _finished(p)]
    report(f"{len(points)} runs, {len(points) - len(todo)} of them finished before; learning rate {best:g}")
    run_all(todo, options.jobs, config, quality, report)
    report(f"all {len(points)} runs stand in {options.runs} ({time.perf_counter() - started:,.0f} s)")
    assert options.base.budget.budget_flops is not None
    return Compared(
        runs=tuple(str(p.records.name) for p in points),
        quality=quality,
        dataset=options.base.dataset,
        budget_flops=options.base.budget.budget_flops,
        learning_rate=best,
        search=search,
        settings=options.base.to_dict(),
    )


def planned(options: CompareOptions, learning_rate: float) -> list[RunOptions]:
    """All points, cheap and wide first: every policy and seed at the smallest budget, then the next."""
    points = []
    for multiple in sorted({*options.budgets, *options.ladder}):
        for seed in range(options.seeds):
            for policy in options.policies:
                if multiple in options.budgets or str(policy) == BASELINE:
                    points.append(_point(options, policy, multiple, seed, learning_rate))
    return points


def _point(options: CompareOptions, policy: str | Policy, multiple: float, seed: int, lr: float) -> RunOptions:
    base = options.base
    assert base.budget.budget_flops is not None
    chosen = find_policy(policy)
    return base.but(
        policy=policy,
        online=base.selection.online if chosen.online in ("model", "either") else None,
        reference_scores=base.selection.reference_scores if chosen.reference != "none" else None,
        budget_flops=multiple * base.budget.budget_flops,
        seed=seed,
        lr=lr,
        evaluate=True,
        out=str(options.runs),
        name=f"{chosen.name}-{multiple:g}x-seed{seed}",
    )


def _searching(options: CompareOptions) -> list[RunOptions]:
    return [
        _point(options, BASELINE, 1.0, 0, lr).but(name=f"lr{lr:g}", out=str(Path(options.out, "search")))
        for lr in options.search_lr
    ]


def _search(options: CompareOptions, config: Config, quality: str, report: Report) -> tuple[tuple[float, float], ...]:
    """Uniform at 1x with every learning rate. These runs are no points of the comparison, but for the best one's twin."""
    if not options.search_lr:
        return ()
    tried = _searching(options)
    report(f"searching {BASELINE}'s learning rate: {', '.join(f'{lr:g}' for lr in options.search_lr)}")
    run_all([t for t in tried if not _finished(t)], options.jobs, config, quality, report)
    return tuple((lr, float(_summary(t)["quality"][quality])) for lr, t in zip(options.search_lr, tried, strict=True))


def run_all(todo: Sequence[RunOptions], jobs: int, config: Config, quality: str, report: Report) -> None:
    """`train` every run in a process of a pool, `jobs` at a time; a dead process or a failed run ends it with the reason."""
    if not todo:
        return
    started, done_flops = time.perf_counter(), 0.0
    all_flops = sum(t.budget.budget_flops or 0.0 for t in todo)
    with _pool(min(jobs, len(todo))) as pool:
        waiting = list(todo)
        running: dict[Future[dict[str, Any]], RunOptions] = {}
        done = 0
        while waiting or running:
            while waiting and len(running) < jobs:
                one = waiting.pop(0)
                running[pool.submit(_train_quietly, one, config)] = one
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                one = running.pop(future)
                try:
                    summary = future.result()
                except BrokenProcessPool:
                    raise RunError(
                        f"{_folder(one)}: its process died (out of memory?); the same command again goes on"
                    ) from None
                done, done_flops = done + 1, done_flops + (one.budget.budget_flops or 0.0)
                left = (time.perf_counter() - started) * (all_flops / done_flops - 1)
                report(
                    f"{done}/{len(todo)} {one.records.name}: {quality} {summary['quality'][quality]:.1%}, "
                    f"{summary['steps']:,} updates, {format_flops(one.budget.budget_flops or 0.0)}, "
                    f"{summary['seconds']['total']:,.0f} s; about {left / 60:,.0f} min left"
                )


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that live for many runs, so that torch is imported once; each keeps to its share of the cores."""
    context = multiprocessing.get_context("spawn")
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    shares = context.Queue()
    for i in range(jobs):
        shares.put(own[i::jobs] or own)
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_keep_to, initargs=(shares, max(1, cores() // jobs))
    )
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"  # a random.py in the working folder must not replace the library's in these
    try:
        yield pool
    except (KeyboardInterrupt, StoppedError) as e:
        # Every run has its checkpoints; waiting for those that go on could take hours. A signal gives them a step's time.
        for process in list((pool._processes or {}).values()):
            if isinstance(e, StoppedError):
                process.terminate()
            else:
                process.kill()
        raise
    finally:
        os.environ.pop("PYTHONSAFEPATH")
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before
        pool.shutdown(cancel_futures=True)


def _keep_to(shares: Any, threads: int) -> None:
    """OpenMP threads of several processes on the same cores wait for one another, tenfold and worse."""
    import torch

    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    share = shares.get()
    with suppress(AttributeError, OSError):
        os.sched_setaffinity(0, share)
    torch.set_num_threads(min(len(share), threads))


def _end_with_parent(parent: int) -> None:
    """A comparison that was killed must not leave runs behind that hold its folders; they go on from their checkpoints."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _train_quietly(options: RunOptions, config: Config) -> dict[str, Any]:
    return train(options, config=config, resume=True, report=lambda line: None)


def _refuse_other_settings(options: CompareOptions) -> None:
    """A folder holds one comparison: more policies, budgets or seeds extend it, anything else is another one."""
    path = Path(options.out, "settings.json")
    free = {"out", "name", "lr", "policy", "seed", "log_every", "checkpoint_every"}
    rates: list[float | None] = list(options.search_lr) or [options.base.optimization.lr]
    if path.exists():
        before = read_document(path)
        changed = options.base.changed_since(before, free)
        if before.get("learning_rates") != rates:
            changed.append(f"learning_rates = {before.get('learning_rates')}, now {rates}")
        if changed:
            raise RunError(f"{options.out}: was made with {changed[0]}; use another --out")
    now = {k: v for k, v in options.base.to_dict().items() if k not in free} | {"learning_rates": rates}
    try:
        write_json(path, now)
    except WriteError as e:
        raise RunError(f"{e}, or choose another --out") from e


def _folder(options: RunOptions) -> Path:
    assert options.records.name
    return Path(options.records.out, options.records.name)


def _finished(options: RunOptions) -> bool:
    """Whether a run is trained and evaluated."""
    return (_folder(options) / "summary.json").exists() and "not_evaluated" not in _summary(options)


def _finished_runs(options: CompareOptions) -> Iterator[tuple[Path, RunOptions]]:
    """Folder and options of every run that stands already, each point's with the learning rate that the run itself names."""
    points = [*planned(options, options.base.optimization.lr or 0.0), *_searching(options)]
    for point in points:
        folder = _folder(point)
        if (folder / "summary.json").exists():
            found = read_document(folder / "config.json").get("lr")
            searched = Path(point.records.out) != options.runs
            yield folder, point if searched else point.but(lr=found)


def _summary(options: RunOptions) -> dict[str, Any]:
    return read_document(_folder(options) / "summary.json")
