"""Runs of `curate compare`: every policy at every budget and seed. Finished runs are reused, interrupted ones resumed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..datasets.notices import in_one_line, shared_by_processes
from ..datasets.spec import Config, find_dataset
from ..errors import RunError, SpecError, StoppedError, WriteError
from ..ledger import BASELINE
from ..progress import Progress
from ..scoring.policies import Policy, find_policy
from ..scoring.tasks import find_task
from ..threads import cores
from ..training.folder import FREE_TO_CHANGE
from ..training.options import RunOptions
from ..training.records import read_document, write_json
from ..training.run import train
from ..training.unused import unused_by_all, unused_line
from ..units import Report, accuracy, counted, format_flops, percent, took
from .finished import refuse_mixed
from .launched import launch
from .options import CompareOptions

# (learning rate, quality) of every rate that was tried.
Tried = tuple[tuple[float, float], ...]
# A bar shows the time that is left, also while no run ends.
LOOK_SECONDS = 1.0
VISIBLE = "CUDA_VISIBLE_DEVICES"
# The share of train that the search is measured on where there is no validation split.
HELD_OUT = 0.1


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What was run: the names of all points' folders, what 1x stands for, and what the headline is read at.

    `quality` names the measure. `learning_rates` are by multiple of 1x; so is the `search`, (rate, quality) pairs that were
    measured on `searched_on`. `settings` are the options that all runs share, as config.json holds them.
    """

    runs: tuple[str, ...]
    quality: str
    dataset: str
    budget_flops: float
    learning_rates: dict[float, float]
    settings: dict[str, Any]
    headline_budget: float = 1.0
    headline_policy: str | None = None
    search: dict[float, Tried] = field(default_factory=dict)
    searched_on: str = ""


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
    headline_policy = _refuse_other_settings(options)
    # Records of selections have another default here.
    idle = [n for n in unused_by_all(options.base.but(policy=p) for p in options.policies) if n != "selections_every"]
    if idle:
        report(unused_line(idle, f"with {' and '.join(str(policy) for policy in options.policies)}"))
    refuse_mixed(list(_finished_points(options)), options.base, config, report)
    if options.search_lr:
        searching, _ = _held_out(options.base.dataset, config)
        refuse_mixed(_finished_of(_searching(options).values()), options.base, searching, report)
    started = time.perf_counter()
    search = _search(options, config, quality, report)
    given = options.base.optimization.lr
    if given is None:
        given = find_task(dataset.task).lr
    best = {multiple: max(tried, key=lambda pair: pair[1])[0] for multiple, tried in search.items()}
    rates = {multiple: best.get(multiple, best.get(1.0, given)) for multiple in options.multiples}
    points = planned(options, rates)
    todo = [p for p in points if not is_finished(p)]
    _refuse_other_rates([p for p in points if is_finished(p)])
    shown = ", ".join(f"{rate:g}" for rate in dict.fromkeys(rates.values()))
    report(f"{counted(len(points), 'run')}, {len(points) - len(todo)} of them finished before; learning rate {shown}")
    run_all(todo, options.jobs, config, quality, report, options.launcher)
    report(f"all {len(points)} runs are in {options.runs}{took(time.perf_counter() - started)}")
    assert options.base.budget.budget_flops is not None
    return Compared(
        runs=tuple(str(p.records.name) for p in points),
        quality=quality,
        dataset=options.base.dataset,
        budget_flops=options.base.budget.budget_flops,
        learning_rates=rates,
        search=search,
        searched_on=_held_out(options.base.dataset, config)[1] if search else "",
        headline_budget=options.headline_budget,
        headline_policy=headline_policy,
        settings=options.base.to_dict(),
    )


def planned(options: CompareOptions, learning_rates: Mapping[float, float]) -> list[RunOptions]:
    """All points, cheap and wide first: every policy and seed at the smallest budget, then the next."""
    points = []
    for multiple in options.multiples:
        for seed in range(options.seeds):
            for policy in options.policies:
                if multiple in options.budgets or str(policy) == BASELINE:
                    points.append(_point(options, policy, multiple, seed, learning_rates[multiple]))
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


def _searching(options: CompareOptions) -> dict[tuple[float, float], RunOptions]:
    """The runs of the search, by multiple of 1x and learning rate."""
    multiples = options.multiples if options.tune_every_rung else [1.0]
    return {
        (multiple, lr): _point(options, BASELINE, multiple, 0, lr).but(
            name=f"{multiple:g}x-lr{lr:g}", out=str(Path(options.out, "search"))
        )
        for multiple in multiples
        for lr in options.search_lr
    }


def _search(options: CompareOptions, config: Config, quality: str, report: Report) -> dict[float, Tried]:
    """Uniform with every learning rate, measured on examples that are neither trained on nor in the test split.

    These runs are no points of the comparison: theirs train on all of train.
    """
    if not options.search_lr:
        return {}
    runs = _searching(options)
    multiples = list(dict.fromkeys(multiple for multiple, _ in runs))
    searching, searched_on = _held_out(options.base.dataset, config)
    rates, budgets = ", ".join(f"{lr:g}" for lr in options.search_lr), ", ".join(f"{x:g}x" for x in multiples)
    report(f"searching {BASELINE}'s learning rate at {budgets}: {rates}; measured on {searched_on}")
    todo = [run for run in runs.values() if not is_finished(run)]
    run_all(todo, options.jobs, searching, quality, report, options.launcher)
    return {
        multiple: tuple((lr, float(_summary(runs[multiple, lr])["quality"][quality])) for lr in options.search_lr)
        for multiple in multiples
    }


def _held_out(name: str, config: Config) -> tuple[Config, str]:
    """The configuration in which a data set's test split is its validation split, or a part of train; and which it is."""
    entry = config.datasets[name]
    if entry.get("validation"):
        changed = {**entry, "test": entry["validation"]}
        return replace(config, datasets={**config.datasets, name: changed}), "the validation split"
    what = f"{percent(HELD_OUT)} of train, held out by a hash of the key"
    return replace(config, hold_out={**config.hold_out, name: HELD_OUT}), what


def run_all(
    todo: Sequence[RunOptions], jobs: int, config: Config, quality: str, report: Report, launcher: str | None = None
) -> None:
    """`train` every run in a process of a pool, or in those that the launcher starts, `jobs` at a time; a dead process or a
    failed run ends it with the reason."""
    if not todo:
        return
    flops = {id(run): run.budget.budget_flops or 0.0 for run in todo}
    waiting, done, done_flops = list(todo), 0, 0.0
    running: dict[Future[dict[str, Any]], RunOptions] = {}
    with (
        _pool(min(jobs, len(todo)), launcher is not None) as pool,
        Progress(report, "runs", sum(flops.values())) as progress,
    ):

        def said() -> str:
            return f"{done} of {len(todo)} done; now {', '.join(str(run.records.name) for run in running.values())}"

        while waiting or running:
            while waiting and len(running) < jobs:
                one = waiting.pop(0)
                running[pool.submit(_train_quietly, one, config, launcher)] = one
            for future in wait(running, LOOK_SECONDS, return_when=FIRST_COMPLETED).done:
                one = running.pop(future)
                try:
                    summary = future.result()
                except BrokenProcessPool:
                    raise RunError(
                        f"{_folder(one)}: its process {_death(pool)}; the same command again resumes it"
                    ) from None
                done, done_flops = done + 1, done_flops + flops[id(one)]
                report(
                    f"{done}/{len(todo)} {one.records.name}: {quality} {accuracy(summary['quality'][quality])}, "
                    f"{counted(summary['steps'], 'update')}, {format_flops(flops[id(one)])}{took(summary['seconds']['total'])}"
                )
            progress.update(done_flops, said)


@contextmanager
def _pool(jobs: int, several: bool) -> Iterator[ProcessPoolExecutor]:
    """Processes that live for many runs, so that torch is imported once; each keeps to its share of the cores and one GPU, or
    `several`."""
    import torch

    context = multiprocessing.get_context("spawn")
    gpus = visible_gpus(os.environ.get(VISIBLE), torch.cuda.device_count() if torch.cuda.is_available() else 0)
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    shares = context.Queue()
    for share in shares_of(jobs, own, gpus, several):
        shares.put(share)
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_keep_to, initargs=(shares, max(1, cores() // jobs))
    )
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"  # a random.py in the working folder must not replace the library's in these
    try:
        with shared_by_processes():
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


def _death(pool: ProcessPoolExecutor) -> str:
    """How a process of a broken pool ended, which has ended the others since."""
    codes = [process.exitcode for process in (pool._processes or {}).values()]
    code = next((code for code in codes if code not in (None, 0, -signal.SIGTERM)), None) or next(
        filter(None, codes), 0
    )
    if code == -signal.SIGKILL:
        return "was killed (out of memory?)"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def shares_of(
    jobs: int, cores: Sequence[int], gpus: Sequence[str], several: bool = False
) -> list[tuple[Sequence[int], str | None]]:
    """The cores and the GPU of each process: cores apart where there are enough, GPUs in turn; `several` GPUs of one process are
    next to one another."""

    def gpu(i: int) -> str | None:
        if several and len(gpus) >= jobs:
            return ",".join(gpus[len(gpus) * i // jobs : len(gpus) * (i + 1) // jobs])
        return gpus[i % len(gpus)] if gpus else None

    return [(cores[i::jobs] or cores, gpu(i)) for i in range(jobs)]


def visible_gpus(visible: str | None, count: int) -> list[str]:
    """How CUDA names each of the GPUs that this process may use. `visible` is what the user set, None where nothing."""
    if visible is None:
        return [str(i) for i in range(count)]
    return [name.strip() for name in visible.split(",")][:count]


def _keep_to(shares: Any, threads: int) -> None:
    """OpenMP threads of several processes on the same cores wait for one another, tenfold and worse."""
    import torch

    in_one_line()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    share, gpu = shares.get()
    if gpu is not None:
        os.environ[VISIBLE] = gpu  # this process has not used CUDA yet, which reads it then
    with suppress(AttributeError, OSError):
        os.sched_setaffinity(0, share)
    torch.set_num_threads(min(len(share), threads))


def _end_with_parent(parent: int) -> None:
    """A comparison that was killed must not leave runs behind that hold its folders; they go on from their checkpoints."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _train_quietly(options: RunOptions, config: Config, launcher: str | None) -> dict[str, Any]:
    if launcher is not None:
        return launch(options, config, launcher)
    return train(options, config=config, resume=True, report=lambda line: None)


def _refuse_other_settings(options: CompareOptions) -> str | None:
    """A folder holds one comparison: more policies, budgets or seeds extend it, anything else is another one.

    Returns the policy of the headline: once one is named, it stays.
    """
    path = Path(options.out, "settings.json")
    # What the runs were made in is compared with the runs themselves.
    free = FREE_TO_CHANGE | {"lr", "policy", "seed", "precision"}
    rates: list[float | None] = list(options.search_lr) or [options.base.optimization.lr]
    own = {
        "learning_rates": rates,
        "tune_every_rung": options.tune_every_rung,
        "headline_budget": options.headline_budget,
    }
    older = {"tune_every_rung": False, "headline_budget": 1.0}  # what a comparison of 0.1 stood for
    names = {str(policy): find_policy(policy).name for policy in options.policies}
    others = [name for name in names.values() if name != BASELINE]
    headline = names[options.headline_policy] if options.headline_policy else None
    if path.exists():
        before = {**older, **read_document(path)}
        changed = options.base.changed_since(before, free)
        changed += [f"{k} = {before.get(k)}, now {now}" for k, now in own.items() if before.get(k) != now]
        named = before.get("headline_policy")
        if named is not None and (headline or named) != named:
            changed.append(f"headline_policy = {named}, now {headline}")
        elif named is not None and named not in others:
            changed.append(f"headline_policy = {named}, which --policies does not name now")
        headline = headline or named
        if changed:
            raise RunError(f"{options.out}: was made with {changed[0]}; use another --out")
    headline = headline or next(iter(others), None)
    now = {k: v for k, v in options.base.to_dict().items() if k not in free} | own | {"headline_policy": headline}
    try:
        write_json(path, now)
    except WriteError as e:
        raise RunError(f"{e}, or choose another --out") from e
    return headline


def _refuse_other_rates(finished: Sequence[RunOptions]) -> None:
    """Runs with two learning rates are no comparison: an earlier search may have found another one."""
    for run in finished:
        before, now = read_document(_folder(run) / "config.json").get("lr"), run.optimization.lr
        if before != now:
            raise RunError(f"{_folder(run)}: was run with lr = {before}, and the best is {now} now; use another --out")


def _folder(options: RunOptions) -> Path:
    assert options.records.name
    return Path(options.records.out, options.records.name)


def is_finished(options: RunOptions) -> bool:
    """Whether a run is trained and evaluated."""
    return (_folder(options) / "summary.json").exists() and "not_evaluated" not in _summary(options)


def _finished_points(options: CompareOptions) -> Iterator[tuple[Path, RunOptions]]:
    """Folder and options of every point that is there already, with the learning rate that the run itself names."""
    for folder, point in _finished_of(planned(options, dict.fromkeys(options.multiples, 0.0))):
        yield folder, point.but(lr=read_document(folder / "config.json").get("lr"))


def _finished_of(runs: Iterable[RunOptions]) -> list[tuple[Path, RunOptions]]:
    return [(_folder(run), run) for run in runs if (_folder(run) / "summary.json").exists()]


def _summary(options: RunOptions) -> dict[str, Any]:
    return read_document(_folder(options) / "summary.json")
