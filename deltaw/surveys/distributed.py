"""The adapters of a survey on a cluster: every worker opens the base by itself, and is told which adapters to read.

What comes back of each is its row, its sketches and the signs of sampled entries: less than a tenth of what was read.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deltaw.adapters import open_base
from deltaw.checkpoints import Checkpoint, locate
from deltaw.errors import ClusterError, DeltaWError
from deltaw.files import expanded
from deltaw.measurement.distributed import EACH, content, named, same_everywhere
from deltaw.measurement.engines.cluster import Cluster, Need
from deltaw.measurement.engines.sharing import MAX_JOBS, threads_of
from deltaw.pairs.selection import Selection
from deltaw.results.sources import FileStamp
from deltaw.surveys.look import SeenAdapter, SurveyBase, look
from deltaw.surveys.parts import Looked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deltaw.surveys.inputs import Member

SECOND = 30_000_000  # bytes of adapters that a core reads in about a second
HELD = 512 << 20  # bytes that a task holds, at least: torch, and what an adapter of usual size takes
Files = tuple[tuple[str, int], ...]  # names and sizes


class AdapterTask(NamedTuple):
    """Some adapters to read, by their numbers and paths, with their files as the driver sees them."""

    base: str | None
    selection: Selection
    numbers: tuple[int, ...]
    sources: tuple[str, ...]
    files: tuple[Files, ...]
    threads: int


def look_on(
    cluster: Cluster,
    base: Checkpoint | None,
    selection: Selection,
    members: Sequence[Member],
    todo: Sequence[int],
    jobs: int | None,
) -> Generator[tuple[int, Looked, Mapping[str, NDArray[np.generic]] | None]]:
    """Read adapters on a cluster; yields the number of each with what came of it, see `SeenAdapter`. To be closed.

    Args:
        cluster: The connection.
        base: The base.
        selection: Which of their matrices are looked at.
        members: All adapters of the survey.
        todo: The numbers of those that are to be read.
        jobs: Tasks at a time, at most.

    Raises:
        OptionError: The base is in this process's memory.
        ClusterError: A node does not see the base or an adapter as the driver does, or too many workers were lost.
    """
    where = None if base is None else named(base.as_source())
    if base is not None:
        here = [content(base.as_source())]
        same_everywhere(cluster, base_seen, where, here, f"{where} holds other numbers there")
    cores = cluster.cpus
    at_a_time = min(cores, MAX_JOBS, len(members))
    count = threads_of(1.0, len(members), jobs=at_a_time, cores=cores, allowed=cluster.most_cpus)
    tasks = list(_tasks(where, selection, members, todo, count, cores))
    with closing(cluster.map_unordered(read_adapters, tasks, _need, jobs)) as results:
        for task, found in results:
            for number, one in zip(task.numbers, found, strict=True):
                yield number, *one


def _need(task: AdapterTask) -> Need:
    largest = max(sum(size for _, size in files) for files in task.files)
    return Need(task.threads, 0, HELD + largest)


def _tasks(
    base: str | None, selection: Selection, members: Sequence[Member], todo: Sequence[int], threads: int, cores: int
) -> Iterator[AdapterTask]:
    """The largest first; small ones together until they are worth a task."""
    files = {i: files_of(members[i].source) for i in todo}
    sizes = {i: sum(size for _, size in found) for i, found in files.items()}
    enough = min(SECOND, sum(sizes.values()) / (EACH * cores))
    held: list[int] = []

    def task() -> AdapterTask:
        sources = tuple(_everywhere(members[i].source) for i in held)
        return AdapterTask(base, selection, tuple(held), sources, tuple(files[i] for i in held), threads)

    for i in sorted(todo, key=lambda i: -sizes[i]):
        held.append(i)
        if sum(sizes[j] for j in held) >= enough:
            yield task()
            held = []
    if held:
        yield task()


def files_of(source: str) -> Files:
    """The names and sizes of an adapter's files; empty where they are not there, as whoever opens it says."""
    try:
        path = locate(source)[0]
        return tuple((p.name, FileStamp.of(p).size) for p in files_in(path))
    except (DeltaWError, OSError):
        return ()


def files_in(path: Path) -> list[Path]:
    """The files of an adapter: those of a directory, or the one file.

    Raises:
        OSError: It cannot be looked at.
    """
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]


def _everywhere(source: str) -> str:
    """A path as every process on a machine understands it."""
    path = expanded(source)
    return str(path.absolute()) if path.exists() else source


def read_adapters(task: AdapterTask) -> list[SeenAdapter]:
    """What a worker does.

    Raises:
        ClusterError: This node sees other files of an adapter than the driver does, or none.
    """
    import torch
    from threadpoolctl import threadpool_limits

    base, out = _base(task.base), []
    torch.set_num_threads(task.threads)
    with threadpool_limits(1, user_api="blas"):  # as in a run of threads
        for source, files in zip(task.sources, task.files, strict=True):
            there = files_of(source)
            if there != files:
                import socket

                what = "has other files there" if there else "cannot be found there"
                raise ClusterError(
                    f"ray: node {socket.gethostname()} cannot use the adapters: {source} {what}; put them on a file "
                    "system that every node shares"
                )
            out.append(look(base, source, task.selection))
    return out


@lru_cache(maxsize=1)
def _base(base: str | None) -> SurveyBase:
    return SurveyBase(None if base is None else open_base(base))


def base_seen(base: str | None) -> list[str] | str:
    """What the base holds as this machine sees it, or why it does not."""
    try:
        return [content(open_base(base).as_source())]
    except DeltaWError as e:
        return str(e)
