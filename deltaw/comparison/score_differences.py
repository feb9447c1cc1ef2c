"""Differences of scores between groups at their endpoints, with the errors of seeds and of the test items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deltaw.comparison.endpoints import Endpoints, endpoints, has_score
from deltaw.comparison.runs import Run, Runs
from deltaw.comparison.welch import NAN, Estimate, GroupShare, combination


class Weighted(NamedTuple):
    """A group's replicates and the coefficient of their mean score."""

    coefficient: float
    runs: Sequence[Run]


class ScoreDifference(NamedTuple):
    """A difference (or other combination) of mean scores.

    Attributes:
        estimate: With its error over seeds.
        items: The standard error by the test items alone, which says nothing about seeds; NaN if not known.
        paired: Whether `items` is of the differences item by item: all runs were asked the same.
    """

    estimate: Estimate
    items: float
    paired: bool = False


def score_combination(parts: Sequence[Weighted], axis: str, trials: int = 1) -> ScoreDifference:
    """Σ coefficient · mean score; a group that enters twice counts once, with the sum of its coefficients.

    Args:
        parts: One for each group.
        axis: The score.
        trials: See `Estimate`.
    """
    groups: dict[tuple[str, ...], Weighted] = {}
    for p in parts:
        key = tuple(r.spec.name for r in p.runs)
        known = groups[key].coefficient if key in groups else 0.0
        groups[key] = Weighted(p.coefficient + known, p.runs)
    merged = list(groups.values())
    estimate = combination([GroupShare(p.coefficient, [r.score(axis) for r in p.runs]) for p in merged], trials=trials)
    paired = _paired_error(merged, axis)
    if paired is not None:
        return ScoreDifference(estimate, paired, paired=True)
    errors = [(p.coefficient / len(p.runs), _errors(p.runs, axis)) for p in merged]
    return ScoreDifference(estimate, math.sqrt(sum((c * e) ** 2 for c, e in errors)))


def _paired_error(parts: Sequence[Weighted], axis: str) -> float | None:
    """The standard error of the combination over test items that all runs share; None unless they share all of them.

    What makes an item hard makes it hard for every run: it cancels in the differences of the items, and stays in the
    errors of the means.
    """
    runs = [r for p in parts for r in p.runs]
    known = [r.spec.scores[axis].items for r in runs if axis in r.spec.scores]
    if len(known) < len(runs) or not known or not known[0]:
        return None
    asked = [[(i.metric, i.digest) for i in items] for items in known]
    if any(a != asked[0] for a in asked):
        return None
    weights = np.concatenate([np.full(len(p.runs), p.coefficient / len(p.runs)) for p in parts])
    variances = []
    for of_metric in zip(*known, strict=True):
        differences = weights @ np.array([i.values for i in of_metric])
        variances.append(np.var(differences, ddof=1) / len(differences))
    return math.sqrt(sum(variances)) / len(variances)


def _errors(runs: Sequence[Run], axis: str) -> float:
    """The root of the sum of the squared standard errors; NaN if a run has none."""
    return math.sqrt(sum(r.spec.scores[axis].error ** 2 if axis in r.spec.scores else NAN for r in runs))


def at_endpoints(ends: Endpoints, axis: str) -> ScoreDifference:
    """The mean score of a − that of b."""
    return score_combination([Weighted(1.0, ends.a), Weighted(-1.0, ends.b)], axis, ends.trials)


def score_endpoints(runs: Runs, a: str, b: str, axis: str) -> Endpoints | None:
    """Where two groups' scores are compared; None where they cannot be."""
    return endpoints(runs, a, b, has_score(axis))
