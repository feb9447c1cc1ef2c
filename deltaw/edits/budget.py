"""A budget for a whole adapter, spent where it keeps most energy: a knapsack with one choice per module.

Ranks r_i with Σ c_i·r_i ≤ P and the most Σ_i e_i(r_i), c_i the numbers that one more rank of module i takes and
e_i(r) = Σ_{j≤r} σ_ij². Modules of equal cost whose ranks are free are one: what they keep with t ranks together is the
sum of their t largest σ². So only as many choices are left as there are shapes, and dynamic programming over the
budget in units of the costs' common divisor is exact. Where that table would be too large, the multiplier λ with the
greatest Σ c·r ≤ P gives Lagrange's solution, what is left is filled greedily, and Lagrange's bound says how far from
the optimum that can be.

Source: Kellerer, Pferschy & Pisinger, Knapsack Problems, 2004, §11 (multiple choice), §3.8 (Lagrangian bounds).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltaw.edits.policies import is_concave
from deltaw.types import Vector

Whole = NDArray[np.int64]
LARGEST_TABLE = 2 * 10**9  # additions of the dynamic programme
LARGEST_MEMORY = 2 * 10**8  # choices that it remembers
BISECTIONS = 200


@dataclass(frozen=True)
class Menu:
    """What one module may get.

    Attributes:
        cost: Numbers that one rank takes.
        ranks: The ranks on offer, ascending, without 0.
        energy: What each keeps, ascending.
    """

    cost: int
    ranks: Vector
    energy: Vector


@dataclass(frozen=True)
class Spent:
    """The ranks, what they keep, and what no choice within the budget could exceed."""

    ranks: tuple[int, ...]
    energy: float
    bound: float

    @property
    def gap(self) -> float:
        """How far from the optimum this can be at most, as a share of it; 0 where it is the optimum."""
        return max(0.0, 1 - self.energy / self.bound) if self.bound else 0.0


def spend(offers: Sequence[Menu], budget: int) -> Spent:
    """The ranks that keep most energy within a budget.

    Args:
        offers: One per module.
        budget: In numbers, like the costs.
    """
    joined = _joined(offers)
    if not joined:
        return Spent((0,) * len(offers), 0.0, 0.0)
    divisor = math.gcd(*(int(cost) for costs, _, _ in joined for cost in costs))
    room = min(budget, sum(int(costs[-1]) for costs, _, _ in joined)) // divisor
    entries = sum(len(costs) for costs, _, _ in joined)
    if entries * (room + 1) <= LARGEST_TABLE and len(joined) * (room + 1) <= LARGEST_MEMORY:
        picked = _exact([(costs // divisor, energy) for costs, energy, _ in joined], room)
        bound = math.nan
    else:
        picked, bound = _lagrange([(costs, energy) for costs, energy, _ in joined], budget)
    ranks = np.zeros(len(offers), dtype=np.int64)
    for (_, _, taken), choice in zip(joined, picked, strict=True):
        for module, rank in taken(choice):
            ranks[module] = rank
    kept = sum(_kept(menu, int(rank)) for menu, rank in zip(offers, ranks, strict=True))
    return Spent(tuple(int(r) for r in ranks), kept, kept if math.isnan(bound) else bound)


def _kept(menu: Menu, rank: int) -> float:
    return float(menu.energy[np.searchsorted(menu.ranks, rank)]) if rank else 0.0


def _joined(offers: Sequence[Menu]) -> list[tuple[Whole, Vector, _Taken]]:
    """The menus as costs and energies; those of one cost whose ranks are free as a single one."""
    together: dict[int, list[int]] = {}
    out: list[tuple[Whole, Vector, _Taken]] = []
    for i, menu in enumerate(offers):
        if not len(menu.ranks):
            continue
        if is_concave(menu.ranks, menu.energy):
            together.setdefault(menu.cost, []).append(i)
        else:
            costs = (menu.ranks * menu.cost).astype(np.int64)
            out.append((costs, menu.energy, _Taken((i,), ranks=menu.ranks.astype(np.int64))))
    for cost, modules in together.items():
        steps = [np.diff(np.concatenate([[0.0], offers[i].energy])) for i in modules]
        owner = np.concatenate([np.full(len(s), i) for i, s in zip(modules, steps, strict=True)])
        gains = np.concatenate(steps)
        order = np.argsort(-gains, kind="stable")
        costs = cost * np.arange(1, len(gains) + 1, dtype=np.int64)
        out.append((costs, np.cumsum(gains[order]), _Taken(tuple(modules), owners=owner[order])))
    return out


@dataclass(frozen=True)
class _Taken:
    """Which ranks a choice of a joined menu gives to the modules in it."""

    modules: tuple[int, ...]
    ranks: Whole | None = None
    owners: Whole | None = None

    def __call__(self, choice: int) -> list[tuple[int, int]]:
        """Module and rank; choice 0 is nothing."""
        if not choice:
            return []
        if self.ranks is not None:
            return [(self.modules[0], int(self.ranks[choice - 1]))]
        assert self.owners is not None
        found, counts = np.unique(self.owners[:choice], return_counts=True)
        return list(zip(found.tolist(), counts.tolist(), strict=True))


def _exact(tables: Sequence[tuple[Whole, Vector]], room: int) -> list[int]:
    """The best choice of every table within `room`, by dynamic programming."""
    best = np.zeros(room + 1)
    chosen: list[NDArray[np.int32]] = []
    for costs, energy in tables:
        after, choice = best.copy(), np.zeros(room + 1, dtype=np.int32)
        for i, (cost, gain) in enumerate(zip(costs.tolist(), energy.tolist(), strict=True), start=1):
            if cost > room:
                break
            with_it = best[: room + 1 - cost] + gain
            better = with_it > after[cost:]
            after[cost:][better] = with_it[better]
            choice[cost:][better] = i
        best = after
        chosen.append(choice)
    out: list[int] = []
    for (costs, _), choice in zip(reversed(tables), reversed(chosen), strict=True):
        i = int(choice[room])
        out.append(i)
        room -= int(costs[i - 1]) if i else 0
    return out[::-1]


def _lagrange(tables: Sequence[tuple[Whole, Vector]], budget: int) -> tuple[list[int], float]:
    """Each table's best choice at the price λ per number that meets the budget, then greedy; and the bound."""
    full = [(np.concatenate([[0], c]), np.concatenate([[0.0], e])) for c, e in tables]

    def at(price: float) -> tuple[list[int], int, float]:
        picked = [int(np.argmax(e - price * c)) for c, e in full]
        cost = sum(int(c[i]) for i, (c, _) in zip(picked, full, strict=True))
        value = sum(float(e[i] - price * c[i]) for i, (c, e) in zip(picked, full, strict=True))
        return picked, cost, value + price * budget

    low, high = 0.0, max(float((e[1:] / c[1:]).max()) for c, e in full) * 2
    picked, cost, bound = at(low)
    if cost > budget:
        picked, _, _ = at(high)
        for _ in range(BISECTIONS):
            price = (low + high) / 2
            found, cost, value = at(price)
            bound = min(bound, value)
            if cost > budget:
                low = price
            else:
                high, picked = price, found
    return _filled(full, picked, budget), bound


def _filled(full: Sequence[tuple[Whole, Vector]], picked: list[int], budget: int) -> list[int]:
    """The choices with what is left of the budget given to the best next step that fits, until none does."""
    left = budget - sum(int(c[i]) for i, (c, _) in zip(picked, full, strict=True))
    while True:
        best, where = 0.0, (-1, 0)
        for m, (c, e) in enumerate(full):
            more = (c > c[picked[m]]) & (c - c[picked[m]] <= left)
            if more.any():
                rate = np.where(more, (e - e[picked[m]]) / np.maximum(c - c[picked[m]], 1), 0.0)
                i = int(np.argmax(rate))
                if rate[i] > best:
                    best, where = float(rate[i]), (m, i)
        if where[0] < 0:
            return picked
        m, i = where
        left -= int(full[m][0][i] - full[m][0][picked[m]])
        picked[m] = i
