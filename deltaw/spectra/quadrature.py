"""From a Krylov space to a whole spectrum, its metrics, and the interval that each of them comes with.

Stochastic Lanczos quadrature with exact deflation: the mean over Gaussian probes z of zᵀf(√(XᵀX))z is Σf(σ), and
the Gauss rule of the Krylov space gives it as Σ w·f(θ). Three things sharpen it:

* a Ritz value that has converged is a singular value: its weight, which varies as χ² from probe to probe, is replaced
  by its true count 1 (the deflated part of Hutch++, without a second run);
* the other weights are calibrated to what is known exactly: how many singular values are left, and their energy
  (regression on control variates);
* the weights become a spectrum of k values, read off the distribution function between the nodes, so that every
  metric is the same pure function that a complete spectrum gets.

An estimate is the mean of the Gauss rule and the Gauss–Radau rule with a node at 0, between which the truth lies for
one probe; its interval adds half their distance to what the probes disagree on (grouped jackknife).

Sources: Golub & Meurant 2010, §6; Ubaru, Chen & Saad 2017; Chen & Hallman 2023 (Krylov-aware trace estimation);
Meyer et al. 2021 (Hutch++); Deville & Särndal 1992 (calibration); Efron 1982 (jackknife).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltaw.metrics import rank_90_null  # and registers the metrics
from deltaw.metrics.deconvolution import ENERGY, RANK, interval, without_rounding
from deltaw.metrics.quantities import Quantities
from deltaw.metrics.registry import REGISTRY, evaluate
from deltaw.spectra.krylov import BlockKrylov, Quadrature, Ritz
from deltaw.types import Interval, Vector

CONVERGED = 1e-3  # a Ritz value whose residual is within this share of it is a singular value
CLUSTER = 1e-4  # b Ritz values this close may stand for more than b equal singular values
GROUPS = 8  # of probes, for the jackknife
T_QUANTILE = 2.365  # of Student's t with GROUPS − 1 degrees of freedom, 97.5 %
INFLATION = 1.3  # of the jackknife's standard error, which takes the nodes as fixed (measured: 1.1 to 1.4)
FLOAT_FLOOR = 1e-5  # relative: what float32 products can be wrong by
UNSEEN = 1e-6  # a node's share of one singular value below which its weight is rounding
SECTIONS = ("size", "rank", "energy", "precision")
SHARES = {"rank_50": 0.50, "rank_90": 0.90, "rank_95": 0.95, "rank_99": 0.99}


class Estimator:
    """The metrics of a matrix of which a Krylov space is known, with their intervals.

    Args:
        rows, cols: Its shape.
        energy: ‖X‖F², exactly.
        quantities: What the metrics need beside the spectrum (`noise_row`, `noise_col`).
        gap_share: How much of half the distance between the two rules an interval takes in. The truth can be
            anywhere between them where singular values spread over decades; for a bulk it is near the middle.
    """

    def __init__(self, rows: int, cols: int, energy: float, quantities: Quantities, gap_share: float = 1.0) -> None:
        self.gap_share = gap_share
        self.k = min(rows, cols)
        self.energy = energy
        self.quantities = replace(quantities, rows=rows, cols=cols)
        self.null = rank_90_null(rows, cols)

    def intervals(self, space: BlockKrylov, ritz: Ritz, leading: Vector) -> dict[str, Interval]:
        """Every metric of the spectrum, by column name.

        Args:
            space: At least three steps.
            ritz: Its `ritz()`.
            leading: Refined values that take the place of the first Ritz values; may be empty.
        """
        gauss = self._spectrum(ritz.gauss, leading)
        radau = self._spectrum(space.radau(), leading)
        groups = np.array_split(np.arange(space.block), GROUPS)
        replicates = [self._spectrum(ritz.gauss, leading, leave_out=group) for group in groups]
        above, below = self._metrics(gauss), self._metrics(radau)
        varied = [self._metrics(s) for s in replicates]
        low, high = (self._metrics(s) for s in _band(gauss, radau, replicates))
        out = {}
        for name, value in above.items():
            value, half = (value + below[name]) / 2, abs(value - below[name]) / 2 * self.gap_share
            half += float(_spread(np.array([v[name] for v in varied]))) + FLOAT_FLOOR * abs(value)
            if name in SHARES:  # between two nodes nothing tells where the energy crosses its threshold
                half += _values_per_node(ritz.gauss, len(leading), value) / 3
            out[name] = self._interval(name, value, value - half, value + half)
            if _counts(name) and name not in SHARES:  # above a threshold
                out[name] = Interval(round(value), min(round(value), low[name]), max(round(value), high[name]))
        self._largest(out, float(ritz.values[0]), float(ritz.residuals[0]))
        self._without_rounding(out, gauss)
        out["rank_90_ratio"] = Interval(*(r / self.null for r in out["rank_90"]))
        return out

    def _largest(self, out: dict[str, Interval], theta: float, residual: float) -> None:
        """σ1 lies between its Ritz value and a residual above it: in a cluster no probe meets the largest alone."""
        least, most = theta * (1 - FLOAT_FLOOR), theta + residual
        for name, low, high in (
            ("spectral_norm", least, most),
            ("stable_rank", self.energy / most**2, self.energy / least**2),
            ("energy_at_1", least**2 / self.energy, min(1.0, most**2 / self.energy)),
        ):
            value, before, after = out[name]
            out[name] = Interval(value, min(before, low), max(after, high))

    def _without_rounding(self, out: dict[str, Interval], s: Vector) -> None:
        """Add what is left when the rounding is taken out; its interval holds what the probes leave open, too."""
        found = without_rounding(replace(self.quantities, s=s))
        if found is None:
            return
        for (name, sure), seen in zip(interval(found).items(), (out["rank_90"], out["energy_at_16"]), strict=True):
            low, high = sure.low * seen.low / seen.value, sure.high * seen.high / seen.value
            if name == RANK:
                low, high = float(math.floor(low)), min(float(self.k), math.ceil(high))
            out[name] = Interval(sure.value, low, min(high, max(1.0, sure.value)) if name == ENERGY else high)

    def _interval(self, name: str, value: float, low: float, high: float) -> Interval:
        if math.isnan(value):
            return Interval(value, value, value)
        if _counts(name):  # the energy crosses its threshold in (r − 1, r]
            return Interval(*(min(self.k, max(0, math.ceil(x))) for x in (value, low, high)))
        top = math.inf
        if REGISTRY[name].unit == "dimensions":
            top = self.k * (1 + FLOAT_FLOOR)
        elif REGISTRY[name].unit == "share":
            top = 1.0
        return Interval(value, max(0.0, low), min(top, high))

    def _spectrum(self, rule: Quadrature, leading: Vector, leave_out: Any = ()) -> Vector:
        weights = np.delete(rule.weights, leave_out, axis=1).mean(axis=1)
        return estimated_values(rule.nodes, weights, leading, self.k, self.energy)

    def _metrics(self, s: Vector) -> dict[str, float]:
        known = replace(self.quantities, s=s, energy=float(s @ s))
        found = evaluate(known, SECTIONS, {name: crossing(s, q) for name, q in SHARES.items()})
        return {name: float(value) for name, value in found.items() if name in _dependents()}


def estimated_values(nodes: Vector, weights: Vector, leading: Vector, k: int, energy: float) -> Vector:
    """All k singular values from the nodes and weights of a quadrature.

    Args:
        nodes: (d,), descending.
        weights: Estimated number of singular values near each, (d,).
        leading: The first singular values, which take the place of the first nodes.
        k: How many singular values there are.
        energy: Σσ².
    """
    head = len(leading)
    rest = max(0.0, energy - float(leading @ leading))
    s = np.empty(k)
    s[:head] = leading
    if len(nodes) <= head < k:  # every node is a singular value: of the others only the energy is known
        s[head:] = math.sqrt(rest / (k - head))
    elif head < k:
        tail = _calibrated(nodes[head:], weights[head:], k - head, rest)
        middle = np.cumsum(tail) - tail / 2
        seen = tail > UNSEEN  # a node that stands for no value must not pull its neighbours towards it
        s[head:] = np.interp(np.arange(k - head) + 0.5, middle[seen], nodes[head:][seen])
        known = min(len(nodes), k)
        s[head:known] = np.maximum(s[head:known], nodes[head:known])  # Ritz values are lower bounds (interlacing)
        # What interpolation has shifted of the energy is put right where a node stands for several values.
        firm = head + (int(np.argmax(tail >= 2.0)) if (tail >= 2.0).any() else 0)
        total, wanted = float(s[firm:] @ s[firm:]), rest - float(s[head:firm] @ s[head:firm])
        s[firm:] *= math.sqrt(max(wanted, 0.0) / total) if total else 0.0
    return np.sort(s)[::-1]


def crossing(s: Vector, q: float) -> float:
    """Where the energy reaches the share q, between the counts: rank_q before it is rounded up."""
    kept = np.concatenate([[0.0], np.cumsum((s / s[0]) ** 2)])
    return float(np.interp(q * kept[-1], kept, np.arange(len(kept))))


def _calibrated(nodes: Vector, weights: Vector, count: int, energy: float) -> Vector:
    """The weights, shifted along a line in σ² so that they add up to the count and to the energy."""
    v = weights * (count / max(float(weights.sum()), 1e-300))
    if energy <= 0:
        return v
    x = nodes**2 * (count / energy)  # so that its weighted mean should be 1
    mean = float(v @ x) / count
    x = x - mean
    slope = (1 - mean) * count / max(float(v @ x**2), 1e-300)
    # The probes are off by per cents. A steep slope means equal nodes, between which nothing can be shifted.
    steepest = 0.5 / max(float(np.abs(x).max(initial=0.0)), 1e-300)
    return v * (1 + min(max(slope, -steepest), steepest) * x)


def leading_count(ritz: Ritz) -> int:
    """How many of the largest Ritz values have converged, and so are the leading singular values one for one."""
    theta = ritz.values.numpy()
    close = np.searchsorted(-theta, -theta * (1 - CLUSTER)) - np.searchsorted(-theta, -theta * (1 + CLUSTER))
    converged = (ritz.residuals.numpy() <= CONVERGED * theta) & (close < ritz.gauss.weights.shape[1])
    return len(converged) if converged.all() else int(np.argmin(converged))


def excess(intervals: Mapping[str, Interval], tolerance: float) -> float:
    """The width of the widest interval, relative to its value and in units of the tolerance.

    One more or less is as sharp as a count can be estimated; counts above a threshold in the tail (`numerical_rank`)
    hang on single values, and no number of probes makes them sharp. Nor does it what the rounding hides (`RANK`,
    `ENERGY`).
    """
    widest = 0.0
    for name, (value, low, high) in intervals.items():
        if name in {"rank_90_ratio", RANK, ENERGY} or not value > 0:
            continue
        if _counts(name) and (name not in SHARES or high - low <= 2):
            continue
        widest = max(widest, (high - low) / (tolerance * value))
    return widest


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half the width of a 95 % interval, from a statistic's values without each group of probes (first axis)."""
    g = len(values)
    variance = (g - 1) / g * ((values - values.mean(axis=0)) ** 2).sum(axis=0)
    out: NDArray[np.float64] = T_QUANTILE * INFLATION * np.sqrt(variance)
    return out


def _values_per_node(rule: Quadrature, head: int, index: float) -> float:
    """How many singular values one node stands for, where the `index`-th is; 0 among the leading ones."""
    if index < head:
        return 0.0
    weights = rule.weights[head:].mean(axis=1)
    node = min(int(np.searchsorted(head + np.cumsum(weights), index)), len(weights) - 1)
    return float(weights[max(0, node - 1) : node + 2].mean())


def _band(gauss: Vector, radau: Vector, replicates: list[Vector]) -> tuple[Vector, Vector]:
    """The spectrum's own interval, value by value: for what counts σ above a threshold."""
    half = _spread(np.array(replicates)) + FLOAT_FLOOR * gauss
    return np.maximum(np.minimum(gauss, radau) - half, 0.0), np.maximum(gauss, radau) + half


def _counts(name: str) -> bool:
    return REGISTRY[name].unit == "count"


@lru_cache(maxsize=1)
def _dependents() -> frozenset[str]:
    """The metrics that are functions of the spectrum, directly or through another metric."""
    found: set[str] = set()
    for m in REGISTRY.values():
        if "s" in m.parameters or found & set(m.parameters):
            found.add(m.name)
    return frozenset(found)
