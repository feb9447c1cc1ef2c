"""Carries out a plan: data and base once, then every run in its own process, then the comparison.

Resumable after an interruption at any point, SIGKILL included: each piece is a directory that is renamed into place
when it is finished (`deltaw.study.workspace`), so a second start does only what is missing, and what it does is the
same as before, for every random number follows from the plan.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

import deltaw
from deltaw.errors import OptionError, ResultsError
from deltaw.measurement.engines.sharing import usable_cores
from deltaw.study import arms, moments
from deltaw.study.base import default_cache
from deltaw.study.data import Data, prepare_data
from deltaw.study.extra import require
from deltaw.study.job import Job, work
from deltaw.study.outcome import write_outcome
from deltaw.study.plan import StudyPlan
from deltaw.study.rewriting import RewrittenRun, rewrite, rewritten_runs, write_rewritten
from deltaw.study.workspace import remove_unfinished

if TYPE_CHECKING:
    import pandas as pd

MOST_ON_A_GPU = 8
MEMORY_ON_A_GPU = 8 << 30
PROCESS = 700_000_000  # bytes of a Python process that has imported torch and transformers
TRAINED = 20  # bytes for each parameter: weight, gradient, AdamW's moments, and what passes through
BLAS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Stage(NamedTuple):
    """How far a study is.

    Attributes:
        stage: What is being done.
        done, total: Of that stage.
        left: Seconds that remain of it, if it can be told.
    """

    stage: str
    done: int
    total: int
    left: float | None = None


Report = Callable[[Stage], None]
J = TypeVar("J", Job, RewrittenRun)


@dataclass(frozen=True)
class Study:
    """A finished study.

    Attributes:
        out: Its directory.
        points: One row per saved point of every run, see `deltaw.study.outcome`.
        comparison: What `deltaw.compare` says of the runs.
        left_out: Arms that do not fit the base, and why.
    """

    out: Path
    points: pd.DataFrame
    comparison: deltaw.Comparison
    left_out: Mapping[str, str]


def run(
    plan: StudyPlan,
    out: str | Path,
    *,
    device: str = "auto",
    jobs: int | None = None,
    cache: str | Path | None = None,
    fresh: bool = False,
    progress: Report | None = None,
) -> Study:
    """Train the runs of a plan, score and measure them, and compare them.

    Args:
        plan: See `load_plan`.
        out: The study's directory; what an interrupted study finished there is used.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        jobs: Runs at a time, each in a process of its own (with 1, in this one). By default one per core for each
            of the plan's threads; up to four on a GPU.
        cache: Where bases are kept; by default `~/.cache/deltaw/study`.
        fresh: Discard what is in `out` first.
        progress: Called as the work goes on.

    Raises:
        DeltaWError: The plan, the base or the data cannot be used.
        ResultsError: Another study is running in `out`, or `out` holds the data of another plan.
    """
    require()
    from filelock import FileLock, Timeout

    out = Path(out).absolute()
    say = progress or (lambda _: None)
    device = resolve_device(device)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", blocking=False):  # released by the system if this process is killed
            if fresh:
                _discard(out)
            remove_unfinished(out)
            remove_unfinished(out / "runs")
            remove_unfinished(out / "rewritten")
            data = _data(plan, out, Path(cache) if cache else default_cache(), device, say)
            with arms.quiet():
                parameters = sum(p.numel() for p in arms.open_base(data.base).parameters())
                left_out = arms.misfits(plan.arms, partial(arms.open_base, data.base))
                for domain in (plan.source, *plan.targets):
                    moments.activations(data, domain.name, device)
            todo = [j for j in list_jobs(plan, data, out, device) if j.run is None or j.run.arm.name not in left_out]
            processes = jobs or default_jobs(plan, device, parameters)
            _work(work, todo, processes, ("training", "trained"), say)
            say(Stage("comparing", 0, 1))
            points = write_outcome(plan, todo, out, left_out)
            again = rewritten_runs(todo, plan.rewriting, out)
            _work(rewrite, again, processes, ("writing again", "wrote again"), say)
            write_rewritten(again, out)
            return Study(out, points, compare(out), left_out)
    except Timeout:
        raise ResultsError(f"{out}: another study is running there; wait for it, or choose another --out") from None


def _data(plan: StudyPlan, out: Path, cache: Path, device: str, say: Report) -> Data:
    started: dict[str, float] = {}

    def report(stage: str, done: int, total: int) -> None:
        began = started.setdefault(stage, time.monotonic())
        spent = time.monotonic() - began
        say(Stage(stage, done, total, spent / done * (total - done) if done > 10 else None))

    with arms.quiet():
        return prepare_data(plan, out, cache, device, report)


def compare(out: Path) -> deltaw.Comparison:
    """`deltaw compare` on a study's manifest; writes its tables and report to `comparison/`."""
    comparison = deltaw.compare(out / "runs.toml")
    comparison.save(out / "comparison", force=True)  # ours to overwrite: the plan may have grown
    return comparison


def list_jobs(plan: StudyPlan, data: Data, out: Path, device: str) -> list[Job]:
    """The base's scores on each target, then every run of the plan."""
    shared = (plan.source, plan.training, plan.scores, plan.threads, data, device, out / "runs")
    bases = [Job(None, target, *shared) for target in plan.targets]
    return bases + [Job(r, r.target, *shared) for r in plan.runs()]


def resolve_device(device: str) -> str:
    """`auto` → `cuda` where there is one, else `cpu`.

    Raises:
        OptionError: There is no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not (device.partition(":")[0] == "cuda" and torch.cuda.is_available()):
        raise OptionError(f"device {device!r} cannot be used for training here; expected auto, cpu, cuda or cuda:N")
    return device


def default_jobs(plan: StudyPlan, device: str, parameters: int) -> int:
    """Runs at a time: by cores and free memory, and on a GPU no more than its memory or its patience allow.

    Small models leave most of a GPU idle between kernels, so a few processes share it well; many do not.
    """
    import psutil

    fit = psutil.virtual_memory().available // (PROCESS + TRAINED * parameters)
    most = min(usable_cores() // plan.threads, fit)
    if device != "cpu":
        free, _ = torch.cuda.mem_get_info(torch.device(device))
        most = min(most // 2, MOST_ON_A_GPU, free // MEMORY_ON_A_GPU)
    return max(1, most)


def _discard(out: Path) -> None:
    """Remove what a study wrote, and nothing else."""
    for name in ("data", "runs", "rewritten", "comparison"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("points.csv", "runs.toml", "study.json", "rewritten.csv"):
        (out / name).unlink(missing_ok=True)


def _work(work: Callable[[J], str], jobs: Sequence[J], processes: int, called: tuple[str, str], say: Report) -> None:
    """Carry out what is not finished, and report after each what is `called` so, while it is done and when it is."""
    todo = [job for job in jobs if not job.out.exists()]
    done, started = len(jobs) - len(todo), time.monotonic()
    if jobs:
        say(Stage(called[0], done, len(jobs)))
    for i, name in enumerate(_finished(work, todo, min(processes, len(todo))), 1):
        left = (time.monotonic() - started) / i * (len(todo) - i)
        say(Stage(f"{called[1]} {name}", done + i, len(jobs), left))


def _finished(work: Callable[[J], str], jobs: Sequence[J], processes: int) -> Iterator[str]:
    """The names of jobs as they finish; the first error ends it, and what is finished stays.

    Raises:
        ResultsError: A process was killed, or the GPU's memory is full.
    """
    if processes <= 1:
        try:
            yield from map(work, jobs)
        except torch.OutOfMemoryError as e:
            raise ResultsError("one training does not fit into the GPU's memory: make the plan's batch smaller") from e
        return
    # Spawned, not forked: a forked child of a process that has used torch's threads or CUDA may hang.
    context = multiprocessing.get_context("spawn")
    with one_thread_each(), ProcessPoolExecutor(processes, mp_context=context, initializer=_leash) as pool:
        waiting: set[Future[str]] = {pool.submit(work, job) for job in jobs}
        try:
            while waiting:
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
        except (BrokenProcessPool, torch.OutOfMemoryError) as e:
            _end(pool)
            gpu = isinstance(e, torch.OutOfMemoryError)
            what = "the GPU's memory is full" if gpu else "a training's process was ended from outside (out of memory?)"
            raise ResultsError(
                f"{what}; {processes} ran at a time: run the same command again with fewer --jobs"
            ) from e
        except BaseException:
            _end(pool)
            raise


def _end(pool: ProcessPoolExecutor) -> None:
    """End the trainings that are under way: a run takes minutes, and is done again anyway."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)


def _leash() -> None:
    """End this worker when its parent is gone, even by SIGKILL: an orphan would go on for hours."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """BLAS threads of the processes started inside the block: as many workers as cores must not each take all cores."""
    before = {name: os.environ.get(name) for name in BLAS}
    os.environ.update(dict.fromkeys(BLAS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
