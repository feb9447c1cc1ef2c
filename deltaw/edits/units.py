"""A map over the matrices of an edit: threads that share the cores and a memory budget, as in an analysis."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from deltaw.errors import DeltaWError, OptionError
from deltaw.files import parse_size
from deltaw.measurement.cost import bytes_needed, work
from deltaw.measurement.engines.threads import Budget, map_unordered
from deltaw.measurement.loop import FREE_SHARE, MAX_JOBS, Progress
from deltaw.types import Pair

if TYPE_CHECKING:
    import torch

Out = TypeVar("Out")
Show = Callable[[Progress], None]


class Workers:
    """Where the matrices of one edit are worked on.

    Args:
        devices: In turns.
        jobs: Matrices at a time; None to choose.
        memory: Bytes that they may hold together, or a size; None for most of what is free.
        progress: Called after each matrix.

    Raises:
        OptionError: A value cannot be used.
    """

    def __init__(
        self, devices: Sequence[torch.device], jobs: int | None, memory: int | str | None, progress: Show | None
    ) -> None:
        if jobs is not None and jobs < 1:
            raise OptionError(f"jobs is {jobs}; expected at least 1")
        if isinstance(memory, str):
            memory = parse_size(memory)
        if memory is not None and memory < 1:
            raise OptionError(f"memory is {memory}; expected a number of bytes, or a size such as 8GB")
        self.devices, self.jobs, self.memory, self.progress = devices, jobs, memory, progress

    def each(self, pairs: Sequence[Pair], function: Callable[[Pair, torch.device], Out]) -> dict[str, Out | str]:
        """What the function makes of each pair by its key, the costliest first; a text where one cannot be used.

        Raises:
            Exception: Anything but a `DeltaWError` of one matrix.
        """
        import psutil
        import torch
        from threadpoolctl import threadpool_limits

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jobs = self.jobs or (min(cores, MAX_JOBS) if self.devices[0].type != "cuda" else len(self.devices))
        jobs = min(jobs, max(1, len(pairs)))
        budget = Budget(self.memory or int(psutil.virtual_memory().available * FREE_SHARE))
        todo = sorted(pairs, key=lambda p: work([p]), reverse=True)
        total, done = work(pairs), 0.0
        allowed = torch.get_num_threads()
        out: dict[str, Out | str] = {}

        def one(pair: Pair, device: torch.device) -> Out | str:
            # A matrix that is more work than a fair share of everything would be waited for, and gets more threads.
            share = max(1.0, work([pair]) * jobs / max(total, 1.0))
            torch.set_num_threads(max(1, min(allowed, int(share * cores / jobs))))
            try:
                return function(pair, device)
            except DeltaWError as e:
                return " ".join(str(e).split())

        blas = threadpool_limits(1, user_api="blas")
        try:
            for pair, found in map_unordered(
                one,
                todo,
                jobs=jobs,
                budget=budget,
                need=lambda p: bytes_needed([p]),
                prepare=lambda number: self.devices[number % len(self.devices)],
            ):
                out[pair.key] = found
                done += work([pair])
                if self.progress is not None:
                    self.progress(Progress(len(out), len(pairs), done, total, pair.label))
        finally:
            blas.restore_original_limits()
            torch.set_num_threads(allowed)
        return out
