"""The loop: a map over independent matrices, by threads that share the cores and a memory budget.

Each unit reads its own tensors, and only what a row and a spectrum need outlives it, so that peak memory follows the
largest tensors and not the model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from deltaw.measurement.cost import batches, bytes_needed, work
from deltaw.measurement.engines.threads import Budget, map_unordered
from deltaw.measurement.journal import Journal
from deltaw.measurement.measured import Measured
from deltaw.measurement.options import Options
from deltaw.types import Pair

if TYPE_CHECKING:
    import torch

log = logging.getLogger("deltaw")

FREE_SHARE = 0.6  # of the free memory: the rest is for the report, the page cache and whoever else is there
MAX_JOBS = 16  # matrices at a time on a CPU; more mostly cost memory
# Matrices at a time on a GPU. Exactly, one is read while the GPU computes the other, and a second stream gains nothing.
# An estimate is small decompositions on the CPU between products (a 7B pair on an H100: products are a fifth of it).
JOBS_PER_GPU = {"exact": 2, "fast": 6}


class Progress(NamedTuple):
    """How far a run is; work is in expected floating-point operations."""

    done: int
    total: int
    work_done: float
    work_total: float
    name: str


def measure_all(
    pairs: Sequence[Pair],
    options: Options,
    devices: Sequence[torch.device],
    jobs: int | None,
    memory: int | None,
    journal: Journal | None,
    progress: Callable[[Progress], None] | None,
) -> dict[str, Measured]:
    """Measure what the journal does not have yet, the costliest first so that no thread is left with it at the end.

    Args:
        pairs: What is to be measured.
        options: Of the analysis.
        devices: Where, in turns.
        jobs: Matrices at a time; None to choose.
        memory: Bytes that they may hold together; None for most of what is free.
        journal: What is finished is kept there; None to keep nothing.
        progress: Called after each matrix.

    Returns:
        What came of each pair, by its key.
    """
    import psutil
    import torch
    from threadpoolctl import threadpool_limits

    from deltaw.measurement.measure import measure
    from deltaw.spectra.route import BATCHED_UP_TO

    _ = options.vectors  # found before there are threads
    measured = {p.key: journal.done[p.key] for p in pairs if p.key in journal.done} if journal else {}
    together = batches(pairs, BATCHED_UP_TO.get(devices[0].type, 0))
    # A batch is measured whole or not at all: in other company, a matrix would differ in its last digits.
    todo = sorted((b for b in together if not all(p.key in measured for p in b)), key=work, reverse=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = jobs or (min(cores, MAX_JOBS) if devices[0].type != "cuda" else JOBS_PER_GPU[options.mode] * len(devices))
    jobs = min(jobs, max(1, len(together)))  # of all, not of what is left: threads decide the last digits too
    budget = Budget(memory or int(psutil.virtual_memory().available * FREE_SHARE))
    total, work_total = len(pairs), work(pairs)
    work_done = work_total - sum(map(work, todo))
    allowed = torch.get_num_threads()  # the caller's: a training that is measured has set its own
    if measured:
        log.info("%d of %d matrices were finished by an earlier run", len(measured), total)

    if devices[0].type == "cuda":
        for device in devices:
            # torch loads its linear algebra at the first call, and fails where two threads make that call together
            with suppress(torch.OutOfMemoryError):  # what does not fit is measured on the CPU
                torch.linalg.eigvalsh(torch.eye(2, device=device))

    def prepare(number: int) -> torch.device:
        device = devices[number % len(devices)]
        if device.type == "cuda":  # its own stream: copies of one thread overlap the arithmetic of another
            torch.cuda.set_device(device)
            torch.cuda.set_stream(_stream(device, number))
        return device

    def several(batch: Sequence[Pair], device: torch.device) -> list[Measured]:
        # LAPACK gains little from threads on most matrices, so each gets its share of the cores; one that is more
        # work than a fair share of everything would be waited for, and gets more.
        share = max(1.0, work(batch) * jobs / max(work_total, 1.0))
        torch.set_num_threads(max(1, min(allowed, int(share * cores / jobs))))
        results = measure(batch, options, device)
        if journal is not None:
            for pair, result in zip(batch, results, strict=True):
                journal.add(pair.key, result)
        return results

    blas = threadpool_limits(1, user_api="blas")  # NumPy's threads, which torch's number does not reach
    try:
        for batch, results in map_unordered(
            several, todo, jobs=jobs, budget=budget, need=bytes_needed, prepare=prepare
        ):
            for pair, result in zip(batch, results, strict=True):
                measured[pair.key] = result
                work_done += work([pair])
                if result.skipped:
                    log.info("%s: %s", result.skipped.name, result.skipped.reason)
                if progress is not None:
                    progress(Progress(len(measured), total, work_done, work_total, pair.label))
    finally:
        blas.restore_original_limits()
        torch.set_num_threads(allowed)  # MKL's number is the process's, not the thread's
    return measured


@lru_cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """The stream of one thread. The same in the next run, as cuBLAS keeps a workspace for every stream that it saw."""
    import torch

    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
