"""Work shared out over a Ray cluster: tasks of about a second or more, whose results come straight back to the driver.

Tensors never travel: a task gets names, and what comes back is a row and its singular values. What a lost worker or
node was doing is done again elsewhere. The cluster is the user's, or one that is started on this machine for the run.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from deltaw.errors import ClusterError, MissingExtraError
from deltaw.measurement.engines.sharing import usable_cores

Item = TypeVar("Item")
Out = TypeVar("Out")

AHEAD = 2  # tasks for each CPU that are handed over before they can start, so that no worker waits for the driver
ADDRESS = re.compile(r"(?:ray://)?(?P<host>[^:/]+):(?P<port>\d{1,5})")
ANSWER = 10  # seconds
RETRIES = 3  # of a task whose worker or node was lost
OBJECTS = (
    80_000_000  # bytes of the object store where the cluster is ours; Ray wants 75 MB, and nothing large is put there
)
GPU_LIBRARY = "GPU"  # Ray's names of what a node has
CPU = "CPU"


class Need(NamedTuple):
    """What a task takes of a node: threads, a share of a GPU, bytes."""

    cpus: int
    gpus: float
    memory: int


class Cluster:
    """A connection to a cluster. A context manager.

    Args:
        address: Of a running cluster, as `ray.init` takes it; None for that of RAY_ADDRESS, and where that is not set
            for one of this machine's cores, which ends with the connection.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: Nothing answers there.
    """

    def __init__(self, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as e:
            raise MissingExtraError('the executor ray needs Ray: pip install "deltaw[ray]"') from e
        self._ray: Any = ray
        self._own = not ray.is_initialized()
        address = address or os.environ.get("RAY_ADDRESS")
        if self._own:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for it to be sent
            quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
            ours = {"include_dashboard": False, "object_store_memory": OBJECTS, "num_cpus": usable_cores()}
            with _handlers_kept():
                try:
                    _reach(address)
                    ray.init(address or "local", **quiet, **({} if address else ours))
                except (OSError, RuntimeError, ValueError) as e:
                    why = " ".join(str(e).split())
                    raise ClusterError(
                        f"ray: no cluster at {address or 'this machine'} ({why}); start one with `ray start --head`, "
                        "or leave --ray-address out to use this machine alone"
                    ) from e
        # as Ray describes them
        self.nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._own:
            self._ray.shutdown()

    @property
    def cpus(self) -> int:
        """Of all nodes together."""
        return max(1, sum(int(n["Resources"].get("CPU", 0)) for n in self.nodes))

    @property
    def most_cpus(self) -> int:
        """Of the largest node: a task runs on one."""
        return max(1, *(int(n["Resources"].get("CPU", 0)) for n in self.nodes))

    @property
    def has_gpus(self) -> bool:
        """Whether any node has one."""
        return any(n["Resources"].get("GPU", 0) for n in self.nodes)

    def on_every_node(self, function: Callable[[Item], Out], item: Item) -> list[tuple[str, Out]]:
        """What a function returns on each node that is still there, with the node's address."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = self._ray.remote(function)
        asked = []
        for node in self.nodes:
            there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            ref = remote.options(scheduling_strategy=there, num_cpus=0).remote(item)
            asked.append((node["NodeManagerAddress"], ref))
        answers = []
        for address, ref in asked:
            with suppress(ClusterError):  # the node is no more: nothing will be sent there
                answers.append((address, self._result(ref)))
        return answers

    def map_unordered(
        self, function: Callable[[Item], Out], items: Sequence[Item], need: Callable[[Item], Need], jobs: int | None
    ) -> Generator[tuple[Item, Out]]:
        """Yield (item, function(item)) as they finish. To be closed: what is left is then cancelled.

        Args:
            function: Of a module, so that workers find it.
            items: Started in this order; small, as they are sent.
            need: What each takes. More memory than a node has is asked for as all of it.
            jobs: Items at a time, at most; None for as many as the cluster holds.

        Raises:
            ClusterError: The worker of an item was lost again and again, or no node can run it.
            Exception: Whatever the function raises.
        """
        remote = self._ray.remote(function)
        most = max(float(n["Resources"].get("memory", 0)) for n in self.nodes)
        waiting, flying = deque(items), dict[Any, Item]()
        limit = jobs or AHEAD * self.cpus
        try:
            while waiting or flying:
                while waiting and len(flying) < limit:
                    item = waiting.popleft()
                    cpus, gpus, memory = need(item)
                    takes = {"num_cpus": min(cpus, self.most_cpus), "memory": min(memory, 0.9 * most)}
                    ref = remote.options(**takes, num_gpus=gpus, max_retries=RETRIES).remote(item)
                    flying[ref] = item
                done, _ = self._ray.wait(list(flying), num_returns=1, timeout=0.5)
                for ref in done:
                    item = flying.pop(ref)
                    yield item, self._result(ref)
        finally:
            for ref in flying:
                self._ray.cancel(ref, force=True)

    def _result(self, ref: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as e:
            raise e.cause from None
        except errors.RayError as e:
            why = " ".join(str(e).split())[:300]
            raise ClusterError(
                f"ray: a task was lost {RETRIES + 1} times, or no node can run it ({why}); look at the cluster, and "
                "run again to go on"
            ) from e


def _reach(address: str | None) -> None:
    """Ray itself waits for minutes for a host that does not answer.

    Raises:
        OSError: It does not.
    """
    found = ADDRESS.fullmatch(address or "")
    if found:
        socket.create_connection((found["host"], int(found["port"])), timeout=ANSWER).close()


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray sets a handler of SIGTERM of its own: the caller's is put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
