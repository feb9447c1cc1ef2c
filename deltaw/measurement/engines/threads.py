"""A map over independent units of work: threads that share a memory budget.

Reading and linear algebra release the interpreter's lock, so that while one thread reads, the others compute.
Threads are daemons: an interrupted run ends at once and does not wait for an SVD.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, Queue
from typing import TypeVar

Item = TypeVar("Item")
Out = TypeVar("Out")
Context = TypeVar("Context")


class Budget:
    """Bytes that units of work may hold at the same time; one that needs more than all of it runs alone."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._changed = threading.Condition()

    def acquire(self, need: int) -> int:
        """Wait until `need` bytes (or everything) are free; returns what was taken."""
        take = min(need, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= take)
            self._free -= take
        return take

    def release(self, taken: int) -> None:
        """Give back what `acquire` returned."""
        with self._changed:
            self._free += taken
            self._changed.notify_all()


def map_unordered(
    function: Callable[[Item, Context], Out],
    items: Sequence[Item],
    *,
    jobs: int,
    budget: Budget,
    need: Callable[[Item], int],
    prepare: Callable[[int], Context],
) -> Iterator[tuple[Item, Out]]:
    """Yield (item, function(item, context)) as they finish.

    Args:
        function: Called in one of `jobs` threads, with what `prepare` returned there.
        items: Started in this order.
        jobs: Number of threads.
        budget, need: No item starts before its bytes are free.
        prepare: Called once in each thread, with its number.

    Raises:
        BaseException: The first exception that `function` raised; nothing new is started after it.
    """
    waiting: Queue[Item] = Queue()
    for item in items:
        waiting.put(item)
    done: Queue[tuple[Item, Out | None, BaseException | None]] = Queue()
    stop = threading.Event()

    def work(number: int) -> None:
        item = items[0]
        try:
            context = prepare(number)
            while not stop.is_set():
                try:
                    item = waiting.get_nowait()
                except Empty:
                    return
                taken = budget.acquire(need(item))
                try:
                    if stop.is_set():  # meanwhile
                        return
                    done.put((item, function(item, context), None))
                finally:
                    budget.release(taken)
        except BaseException as e:  # noqa: BLE001  handed to the caller's thread, which raises it
            done.put((item, None, e))

    count = min(jobs, len(items))
    threads = [threading.Thread(target=work, args=(i,), daemon=True, name=f"deltaw {i}") for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            item, out, error = _next(done)
            if error is not None:
                raise error
            yield item, out  # type: ignore[misc]  # no error: there is a result
    except Exception:
        stop.set()
        for thread in threads:  # an interpreter that ends while LAPACK runs in a thread is aborted
            thread.join()
        raise
    finally:
        stop.set()  # Ctrl-C: not waited for, see above


def _next(queue: Queue[Out]) -> Out:
    """`queue.get()` that a Ctrl-C can interrupt on every platform."""
    while True:
        try:
            return queue.get(timeout=0.5)
        except Empty:
            continue
