"""Which units of an analysis belong to which share: equal work, decided by the plan alone.

Every machine makes the same plan from the same headers and divides it in the same way, so that shares need not talk to
each other. Whole batches are given out: in other company, a small matrix would differ in its last digits.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from deltaw.measurement.cost import work
from deltaw.results.shares import Share
from deltaw.types import Pair


def units_of(share: Share, units: Sequence[Sequence[Pair]]) -> list[Sequence[Pair]]:
    """The units of one share: each in turn, the largest first, goes to the share that has least work (Graham 1969).

    Args:
        share: Which one.
        units: Of the whole analysis, the same list for every share.
    """
    costs = [work(unit) for unit in units]
    loads = [(0.0, index) for index in range(1, share.of + 1)]
    mine = set()
    for at in sorted(range(len(units)), key=lambda i: (-costs[i], i)):
        load, index = heapq.heappop(loads)
        if index == share.index:
            mine.add(at)
        heapq.heappush(loads, (load + costs[at], index))
    return [unit for at, unit in enumerate(units) if at in mine]
