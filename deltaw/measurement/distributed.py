"""The loop on a cluster: every worker opens both sides by itself, and is told which pairs of the plan to measure.

The plan follows from the headers alone, so that all of them make the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from deltaw.errors import ClusterError, DeltaWError, OptionError
from deltaw.files import expanded
from deltaw.measurement.cost import work
from deltaw.measurement.engines.cluster import Cluster, Need
from deltaw.measurement.engines.sharing import MAX_JOBS, threads_of
from deltaw.measurement.measured import Measured
from deltaw.measurement.options import Options
from deltaw.measurement.sides import Sides, open_sides
from deltaw.results.sources import Source
from deltaw.types import Pair

Item = TypeVar("Item")

SECOND = 2e10  # operations that a core does in about a second
EACH = 4  # tasks for each core, at least, so that none is left with much at the end


@dataclass(frozen=True)
class Inputs:
    """What a worker opens.

    Attributes:
        base, ft: As a command line names them, paths absolute.
        options: Of the analysis.
        device: The type of device to measure on.
    """

    base: str | None
    ft: str
    options: Options
    device: str

    @classmethod
    def of(cls, sides: Sides, options: Options, device: str) -> Inputs:
        """The inputs of an analysis whose sides are open.

        Raises:
            OptionError: A side is in this process's memory.
        """
        base, ft = (None if source is None else named(source) for source in sides.sources)
        assert ft is not None
        return cls(base, ft, replace(options, data=tuple(inputs.located() for inputs in options.data)), device)


class Task(NamedTuple):
    """Some units of the plan, by the positions of their pairs, each with its number of threads."""

    inputs: Inputs
    units: tuple[tuple[int, ...], ...]
    threads: tuple[int, ...]


@dataclass(frozen=True)
class OnCluster:
    """Where a loop runs that has a cluster.

    Attributes:
        cluster: The connection.
        inputs: What its workers open.
        here: What the sides hold as the driver sees them, see `contents`.
        jobs: Tasks at a time, at most; None for as many as the cluster holds.
    """

    cluster: Cluster
    inputs: Inputs
    here: list[str]
    jobs: int | None

    def __str__(self) -> str:
        return self.device_type

    @property
    def device_type(self) -> str:
        """`cpu` or `cuda`."""
        return self.inputs.device

    def measure(
        self,
        pairs: Sequence[Pair],
        units: Sequence[Sequence[Pair]],
        need: Callable[[Sequence[Pair]], int],
        *,
        total: float,
        most: int,
        per_gpu: int,
    ) -> Generator[tuple[Sequence[Pair], Sequence[Measured]]]:
        """Measure units of a plan; yields each with what came of it. To be closed: what is left is then cancelled.

        Args:
            pairs: The whole plan.
            units: What is to be measured of it.
            need: The bytes that a unit holds.
            total: The work of all units, those included that an earlier run finished.
            most: The number of all units: threads decide the last digits.
            per_gpu: Units at a time on each GPU.

        Raises:
            ClusterError: A node cannot open the inputs, or has others of that name; or too many workers were lost.
        """
        cores = self.cluster.cpus
        at_a_time = min(cores, MAX_JOBS, max(1, most))

        def threads(unit: Sequence[Pair]) -> int:
            allowed = 1 if self.device_type == "cuda" else self.cluster.most_cpus
            return threads_of(work(unit), total, jobs=at_a_time, cores=cores, allowed=allowed)

        def need_of(task: Task) -> Need:
            largest = max(need([pairs[i] for i in unit]) for unit in task.units)
            return Need(max(task.threads), 1 / per_gpu if self.device_type == "cuda" else 0, largest)

        position = {pair.key: i for i, pair in enumerate(pairs)}
        known = {tuple(position[pair.key] for pair in unit): unit for unit in units}
        if not known:
            return
        differs = f"{self.inputs.base} and {self.inputs.ft} hold other numbers there"
        same_everywhere(self.cluster, seen, self.inputs, self.here, differs)
        tasks = list(_tasks(self.inputs, known, threads, cores))
        with closing(self.cluster.map_unordered(measure_units, tasks, need_of, self.jobs)) as results:
            for task, found in results:
                for unit, measured in zip(task.units, found, strict=True):
                    yield known[unit], measured


def same_everywhere(
    cluster: Cluster, look: Callable[[Item], list[str] | str], item: Item, here: list[str], differs: str
) -> None:
    """One clear line where a node does not see what the driver sees.

    Args:
        cluster: The connection.
        look: What a node sees of it, or why it does not.
        item: What it is told to look at.
        here: What the driver sees.
        differs: What is said where that is not the same.

    Raises:
        ClusterError: A node sees nothing, or something else.
    """
    for node, there in cluster.on_every_node(look, item):
        if there != here:
            what = there if isinstance(there, str) else differs
            raise ClusterError(
                f"ray: node {node} cannot use the inputs: {what}; put them on a file system that every node shares"
            )


@contextmanager
def on_cluster(sides: Sides, options: Options, jobs: int | None, address: str | None) -> Iterator[OnCluster]:
    """A cluster to measure an analysis on, connected while the block runs.

    Args:
        sides: What is compared.
        options: Of the analysis; its device `auto` is CUDA where a node has a GPU.
        jobs: Tasks at a time, at most.
        address: See `Cluster`.

    Raises:
        OptionError: A side is in this process's memory, or the device is none of a cluster.
        MissingExtraError: Ray is not installed.
        ClusterError: Nothing answers at the address, or no node has a GPU that was asked for.
    """
    if options.device not in {"auto", "cpu", "cuda"}:
        raise OptionError(f"device {options.device!r} with the executor ray; expected auto, cpu or cuda")
    inputs = Inputs.of(sides, options, "cpu")
    with Cluster(address) as cluster:
        device = ("cuda" if cluster.has_gpus else "cpu") if options.device == "auto" else options.device
        if device == "cuda" and not cluster.has_gpus:
            raise ClusterError("device 'cuda': no node of the cluster has a GPU; use --device cpu")
        yield OnCluster(cluster, replace(inputs, device=device), contents(sides), jobs)


def _tasks(
    inputs: Inputs,
    units: dict[tuple[int, ...], Sequence[Pair]],
    threads: Callable[[Sequence[Pair]], int],
    cores: int,
) -> Iterator[Task]:
    """The costliest first; small ones together until they are worth a task."""
    enough = min(SECOND, sum(map(work, units.values())) / (EACH * cores))
    held: list[tuple[int, ...]] = []
    held_work = 0.0
    for at, unit in sorted(units.items(), key=lambda item: work(item[1]), reverse=True):
        count = threads(unit)
        if count > 1:
            yield Task(inputs, (at,), (count,))
            continue
        held.append(at)
        held_work += work(unit)
        if held_work >= enough:
            yield Task(inputs, tuple(held), (1,) * len(held))
            held, held_work = [], 0.0
    if held:
        yield Task(inputs, tuple(held), (1,) * len(held))


def measure_units(task: Task) -> list[list[Measured]]:
    """What a worker does."""
    import torch
    from threadpoolctl import threadpool_limits

    from deltaw.measurement.measure import measure

    inputs, device = task.inputs, torch.device(task.inputs.device)
    pairs = _pairs(inputs)
    found = []
    with threadpool_limits(1, user_api="blas"):  # as in a run of threads
        for unit, count in zip(task.units, task.threads, strict=True):
            torch.set_num_threads(count)
            found.append(measure([pairs[i] for i in unit], inputs.options, device))
    return found


@lru_cache(maxsize=1)
def _pairs(inputs: Inputs) -> tuple[Pair, ...]:
    _ = inputs.options.vectors
    return open_sides(inputs.base, inputs.ft).plan(inputs.options.selection).pairs


def seen(inputs: Inputs) -> list[str] | str:
    """What both sides hold as this machine sees them, or why it does not."""
    try:
        return contents(open_sides(inputs.base, inputs.ft))
    except DeltaWError as e:
        return str(e)


def contents(sides: Sides) -> list[str]:
    """What tells the content of each side from another's; the same on every machine."""
    return ["" if s is None else content(s) for s in sides.sources]


def content(source: Source) -> str:
    """What tells the content of what was opened from another's, whatever machine it lies on."""
    # Files that lie elsewhere have no hash, but an address of a commit, or an ETag.
    return source.hashed().hash or str(source.files)


def named(source: Source) -> str:
    """What was opened as a command line names it, its path absolute.

    Raises:
        OptionError: It is in this process's memory.
    """
    if not source.path or (not source.files and not source.revision):
        raise OptionError(
            "the executor ray measures what lies in files: its workers read them by themselves; save the model first, "
            "or use the executor threads"
        )
    path = expanded(source.path)
    return str(Path(path).absolute()) if path.exists() else source.argument
