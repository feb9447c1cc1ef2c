"""Work shared out over devices and cores: a thread has a device, a stream of its own, and its part of the cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from deltaw.errors import OptionError
from deltaw.files import parse_size
from deltaw.measurement.engines.threads import Budget, map_unordered

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Out = TypeVar("Out")

FREE_SHARE = 0.6  # of the free memory: the rest is for the report, the page cache and whoever else is there
MAX_JOBS = 16  # units at a time on a CPU; more mostly cost memory


class Workers:
    """Where independent units of work are done, and how many at a time.

    Args:
        devices: In turns.
        jobs: Units at a time; None to choose.
        memory: Bytes that they may hold together, or a size such as `8GB`; None for most of what is free.

    Raises:
        OptionError: A value cannot be used.
    """

    def __init__(self, devices: Sequence[torch.device], jobs: int | None, memory: int | str | None) -> None:
        if jobs is not None and jobs < 1:
            raise OptionError(f"jobs is {jobs}; expected at least 1")
        if isinstance(memory, str):
            memory = parse_size(memory)
        if memory is not None and memory < 1:
            raise OptionError(f"memory is {memory}; expected a number of bytes, or a size such as 8GB")
        self.devices, self.jobs, self.memory = devices, jobs, memory

    def __str__(self) -> str:
        return ", ".join(map(str, self.devices))

    @property
    def device_type(self) -> str:
        """`cpu`, `cuda` or `mps`: all devices are of one type."""
        return self.devices[0].type

    def share_out(
        self,
        function: Callable[[Item, torch.device], Out],
        items: Sequence[Item],
        done: Callable[[Item, Out], None],
        *,
        work: Callable[[Item], float],
        need: Callable[[Item], int],
        total: float,
        most: int,
        per_gpu: int = 1,
        ahead: int = 0,
    ) -> None:
        """Do every unit, the costliest first so that no thread is left with it at the end.

        Args:
            function: Does a unit on a device, in one of several threads.
            items: The units.
            done: Called in the caller's thread as units finish, with the unit and what came of it.
            work: What a unit costs, in operations.
            need: The bytes that it holds.
            total: What all units cost, those included that an earlier run finished.
            most: Units at a time, at most: of all, not of what is left, as threads decide the last digits too.
            per_gpu: Units at a time on each GPU, where their number is not given.
            ahead: On a CPU, units in work beyond those, within the memory of all: where reading is waiting, they wait
                while the others compute.

        Raises:
            Exception: Whatever a unit or `done` raises.
        """
        import torch
        from threadpoolctl import threadpool_limits

        devices = self.devices
        cores = usable_cores()
        jobs = self.jobs or (cores_at_a_time() if devices[0].type != "cuda" else per_gpu * len(devices))
        jobs = min(jobs, max(1, most))
        budget = Budget(self.memory or free_memory())
        allowed = torch.get_num_threads()  # the caller's: a training that is measured has set its own
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

        def one(item: Item, device: torch.device) -> Out:
            torch.set_num_threads(threads_of(work(item), total, jobs=jobs, cores=cores, allowed=allowed))
            return function(item, device)

        todo = sorted(items, key=work, reverse=True)
        in_work = jobs if devices[0].type == "cuda" else jobs + ahead  # a GPU's number has one that reads in it
        blas = threadpool_limits(1, user_api="blas")  # NumPy's threads, which torch's number does not reach
        try:
            for item, found in map_unordered(one, todo, jobs=in_work, budget=budget, need=need, prepare=prepare):
                done(item, found)
        finally:
            blas.restore_original_limits()
            torch.set_num_threads(allowed)  # MKL's number is the process's, not the thread's


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_at_a_time() -> int:
    """Units at a time on a CPU, where their number is not given."""
    return min(usable_cores(), MAX_JOBS)


def free_memory() -> int:
    """Bytes that units may hold together, where their number is not given."""
    import psutil

    return int(psutil.virtual_memory().available * FREE_SHARE)


def threads_of(work: float, total: float, *, jobs: int, cores: int, allowed: int) -> int:
    """How many threads a unit gets.

    LAPACK gains little from threads on most matrices, so each gets its share of the cores; one that is more work than a
    fair share of everything would be waited for, and gets more.

    Args:
        work, total: Of the unit, and of all units.
        jobs: Units at a time.
        cores: That all units share.
        allowed: At most.
    """
    share = max(1.0, work * jobs / max(total, 1.0))
    return max(1, min(allowed, int(share * cores / jobs)))


@lru_cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """The stream of one thread. The same in the next run, as cuBLAS keeps a workspace for every stream that it saw."""
    import torch

    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
