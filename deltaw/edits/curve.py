"""What numbers in pairs can keep of an update: the best that any choice of ranks keeps, and one rank everywhere.

A direction of a matrix costs rows + cols numbers and keeps σ². Taken by what each keeps for a number, the leading
directions of all matrices together keep the most energy that so many numbers can keep, at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deltaw.edits.parts import FinishedMatrix
from deltaw.edits.placement import Placement
from deltaw.types import Vector

POINTS = 400  # of the curve that are kept
RANKS = tuple(2**i for i in range(11))  # one rank for all matrices, as other tools choose it


@dataclass(frozen=True)
class EqualRank:
    """One rank for all matrices: the numbers in its pairs, and the share of the energy that they keep."""

    rank: int
    parameters: int
    energy_kept: float


@dataclass(frozen=True)
class EnergyCurve:
    """The share of ‖ΔW‖F² over all compared matrices that pairs keep, against the numbers in them.

    Attributes:
        parameters: Numbers in the pairs, (p,), ascending.
        energy_kept: The most that so many can keep, (p,).
        equal: One rank for all matrices.
        whole: Whether every direction of every matrix is in it; otherwise it ends with the last that was looked for.
    """

    parameters: Vector
    energy_kept: Vector
    equal: tuple[EqualRank, ...]
    whole: bool


def energy_curve(placed: Placement, found: Mapping[str, FinishedMatrix]) -> EnergyCurve | None:
    """The curve of the matrices that could get a pair; None where nothing of them changed.

    Args:
        placed: Where the pairs go.
        found: What is known of each matrix, by its key.
    """
    mine = [(p.shape, found[p.key].spread) for p in placed.pairs if p.key in found]
    energy = sum(spread.energy for _, spread in mine)
    if not energy:
        return None
    costs = np.concatenate([np.full(len(s.values), float(sum(shape))) for shape, s in mine])
    kept = np.concatenate([np.asarray(s.values, dtype=np.float64) ** 2 for _, s in mine])
    order = np.argsort(-kept / costs, kind="stable")
    parameters, shares = np.cumsum(costs[order]), np.minimum(1.0, np.cumsum(kept[order]) / energy)
    at = np.unique(np.geomspace(1, len(order), POINTS).round().astype(np.intp)) - 1
    shortest = min(len(s.values) if len(s.values) < min(shape) else max(RANKS) for shape, s in mine)
    equal = []
    for rank in [r for r in RANKS if r <= shortest]:
        numbers = sum(min(rank, *shape) * sum(shape) for shape, _ in mine)
        held = sum(float((np.asarray(s.values[:rank], dtype=np.float64) ** 2).sum()) for _, s in mine)
        equal.append(EqualRank(rank, numbers, min(1.0, held / energy)))
        if rank >= max(min(shape) for shape, _ in mine):
            break
    whole = all(len(s.values) == min(shape) for shape, s in mine)
    return EnergyCurve(parameters[at], shares[at], tuple(equal), whole)
