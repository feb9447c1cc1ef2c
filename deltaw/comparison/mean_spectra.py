"""Mean spectra of a run: one curve per kind of module, so that sixty runs can be drawn without keeping all σ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltaw.types import Spectrum

if TYPE_CHECKING:
    import pandas as pd

POINTS = 48


class MeanSpectrum(NamedTuple):
    """σ_i / ‖ΔW‖F against i, geometric mean over the matrices of one kind.

    Attributes:
        indices: i = 1 …, ascending, log-spaced.
        sigma: (points,); NaN from where most matrices have no energy left.
        energy: (points,) mean share of Σσ² in the first i.
        matrices: How many matrices were averaged.
    """

    indices: NDArray[np.int64]
    sigma: NDArray[np.float64]
    energy: NDArray[np.float64]
    matrices: int


def mean_spectra(layers: pd.DataFrame, spectra: Mapping[str, Spectrum]) -> dict[str, MeanSpectrum]:
    """One curve per kind.

    Args:
        layers: Indexed by key, with `kind`.
        spectra: Singular values by key.
    """
    by_kind: dict[str, list[Spectrum]] = {}
    for key, kind in zip(layers.index, layers["kind"], strict=True):
        s = spectra.get(str(key))
        if s is not None and len(s.values) and s.values[0] > 0:
            by_kind.setdefault(str(kind), []).append(s)
    return {kind: _mean(found) for kind, found in by_kind.items()}


def _mean(spectra: list[Spectrum]) -> MeanSpectrum:
    longest = max(len(s.values) for s in spectra)
    index = np.unique(np.round(np.geomspace(1, longest, POINTS)).astype(np.int64))
    sigma = np.full((len(spectra), len(index)), math.nan)
    energy = np.full((len(spectra), len(index)), math.nan)
    for row, s in enumerate(spectra):
        scale = s.values[0]
        squares = (s.values / scale) ** 2  # scaled first: tiny σ would underflow
        total = max(float(squares.sum()), s.energy / scale**2 if s.energy else 0.0)
        known = index[index <= len(s.values)]
        sigma[row, : len(known)] = np.sqrt(squares[known - 1] / total)
        energy[row, : len(known)] = np.cumsum(squares)[known - 1] / total
        if s.complete:
            energy[row, len(known) :] = 1.0
    # Below the resolution of float32 a σ is a zero that was rounded: it must not enter a geometric mean.
    sigma[sigma < 1e-8] = math.nan
    enough = np.isfinite(sigma).sum(0) * 2 >= len(spectra)
    logs = np.where(np.isfinite(sigma), np.log(np.where(np.isfinite(sigma), sigma, 1.0)), 0.0)
    count = np.maximum(np.isfinite(sigma).sum(0), 1)
    mean = np.where(enough, np.exp(logs.sum(0) / count), math.nan)
    shares = np.where(np.isfinite(energy), energy, 0.0).sum(0) / np.maximum(np.isfinite(energy).sum(0), 1)
    return MeanSpectrum(index, mean, shares, len(spectra))
