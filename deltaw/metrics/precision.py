"""Which part of ΔW is rounding.

A matrix that is stored with p fraction bits carries in every entry a rounding error of variance ulp²/12. Added to
a low-rank update, it makes ΔW full-rank. These metrics say how large that error is, how large a singular value it
can produce by itself, and what stands above it.
"""

from __future__ import annotations

import math

import numpy as np

from deltaw.errors import OptionError
from deltaw.metrics.energy import energy_at
from deltaw.metrics.rank import effective_rank, rank_at
from deltaw.metrics.registry import metric
from deltaw.metrics.spectrum import descending, is_zero
from deltaw.types import Vector

RESOLVED = 0.01  # share of ‖ΔW‖F² that rounding explains: up to here it does not matter
NOISY = 0.5  # up to here the update is visible above it


@metric(
    section="precision",
    formula="√(Σ v_ij), v = ulp(w)²/12 of the entries that were rounded; at most ‖ΔW‖F",
    source="uniform rounding error of the stored entries",
)
def rounding_noise(noise_row: Vector, delta_sq: float = math.inf) -> float:
    """Frobenius norm of the rounding error that storing the fine-tuned matrix left in it; 0 for a factored update.

    Args:
        noise_row: Σ_j v_ij, (m,).
        delta_sq: ‖ΔW‖F²: an update far below one ulp is mostly lost, and no more than it all can be rounding.
    """
    return math.sqrt(min(float(np.sum(noise_row)), delta_sq))


@metric(
    section="precision",
    formula="√(max_i Σ_j v_ij) + √(max_j Σ_i v_ij), v as in rounding_noise",
    source="Latała 2005; Bandeira & van Handel 2016; s(√m + √n) for equal variances",
)
def noise_edge(noise_row: Vector, noise_col: Vector, noise_inflation: float = 1.0) -> float:
    """The largest singular value that rounding alone would show; what is above it was not made by rounding.

    Args:
        noise_row: Σ_j v_ij, (m,).
        noise_col: Σ_i v_ij, (n,).
        noise_inflation: By how much both sides' rounding exceeds the fine-tuned side's, where no entry moved by more
            than one ulp and all of ΔW may be rounding; else 1.
    """
    largest = math.sqrt(float(np.max(noise_row, initial=0.0))) + math.sqrt(float(np.max(noise_col, initial=0.0)))
    return math.sqrt(noise_inflation) * largest


@metric(
    section="precision", formula="#{σ > noise_edge}", unit="count", source="spiked model: Baik, Ben Arous & Péché 2005"
)
def signal_rank(s: Vector, noise_edge: float, numerical_rank: float) -> int:
    """How many directions of the update stand above its rounding noise: the rank to report for a stored checkpoint."""
    if noise_edge == 0:  # not stored as a sum: only the solver's own error is left
        return int(numerical_rank)
    return int(np.count_nonzero(descending(s) > noise_edge))


@metric(section="precision", formula="Σ_{σ > noise_edge} σ² / Σσ²", unit="share")
def signal_energy(s: Vector, signal_rank: float, energy: float | None = None) -> float:
    """Share of the update's energy in the directions above the rounding noise. Empty for ΔW = 0."""
    s = descending(s)
    if is_zero(s):
        return math.nan
    p = s / s[0]
    total = float(p @ p) if energy is None else float(energy / s[0] / s[0])
    head = p[: int(signal_rank)]
    return min(1.0, float(head @ head) / total)


@metric(
    section="precision",
    formula="exp(−Σ p ln p), p = η(σ)/Ση(σ), η the optimal shrinkage",
    unit="dimensions",
    source="Gavish & Donoho 2017 (Frobenius loss, known noise); Roy & Vetterli 2007",
)
def effective_rank_denoised(
    s: Vector,
    signal_rank: float,
    rounding_noise: float,
    rows: int,
    cols: int,
    noise_row: Vector | None = None,
    noise_col: Vector | None = None,
) -> float:
    """The effective rank of the update with its rounding removed; 0 where nothing stands above the noise."""
    signal = descending(s)[: int(signal_rank)]
    if noise_row is not None and noise_col is not None:  # only what was rounded holds noise
        rows, cols = int(np.count_nonzero(noise_row)) or rows, int(np.count_nonzero(noise_col)) or cols
    # Variances differ by entry; η takes one level. The mean variance keeps the total energy of the noise right,
    # and its edge is never above `noise_edge`, so that nothing that counts as signal is shrunk to zero.
    level = rounding_noise / math.sqrt(rows * cols) if rows and cols else 0.0
    return effective_rank(optimal_shrinkage(signal, rows, cols, level))


@metric(
    section="precision",
    formula="min r: Σ_{i≤r} σ² ≥ .90·Σσ², σ with the rounding taken out",
    unit="count",
    source="Dyson 1962; Bussgang 1952; see deltaw.metrics.deconvolution",
)
def rank_90_denoised(s_denoised: Vector) -> float:
    """rank_90 of the update with its rounding taken out: the rank to quote. Empty where most of it is rounding."""
    return rank_at(s_denoised, 0.9)


@metric(
    section="precision",
    formula="Σ_{i≤16} σ² / Σσ², σ with the rounding taken out",
    unit="share",
    source="Dyson 1962; Bussgang 1952; see deltaw.metrics.deconvolution",
)
def energy_at_16_denoised(s_denoised: Vector) -> float:
    """energy_at_16 of the update with its rounding taken out. Empty where most of it is rounding."""
    return energy_at(s_denoised, 16)


@metric(
    section="precision",
    formula="resolved: rounding_noise² ≤ .01·‖ΔW‖F²; noisy: ≤ .5; else below_precision",
    unit="word",
)
def resolution(rounding_noise: float, fro_norm: float) -> str:
    """Whether the stored precision lets the update be seen; its plain ranks may be read only where it is `resolved`."""
    if rounding_noise <= math.sqrt(RESOLVED) * fro_norm:
        return "resolved"
    return "noisy" if rounding_noise <= math.sqrt(NOISY) * fro_norm else "below_precision"


@metric(section="precision", formula="#{w clipped} / mn", unit="share", source="the outermost codes of W's format")
def clipped_fraction(clipped: int, entries: int) -> float:
    """Share of entries that quantising clipped: their code is the outermost, and W0 lies further out than its cell.

    Empty where W is not quantised. What they miss counts as rounding, for nothing tells an update from it.

    Args:
        clipped: How many there are.
        entries: m·n.
    """
    return clipped / entries


@metric(section="precision", formula="√(Σ (cast(W0) − W0)²) where ΔW holds it, else 0", unit="weight")
def base_rounding(base_noise: float) -> float:
    """The part of rounding_noise that is the base's: training started from W0 cast to the fine-tuned precision."""
    return math.sqrt(base_noise)


@metric(
    section="precision",
    formula="share of entries with |x| < ulp(w)/2, x Gaussian of the size of the update, and of those it never touched",
    unit="share",
    source="Widrow & Kollár 2008, chapter 11",
)
def unchanged_fraction_null(equal_null: float, entries: float) -> float:
    """The unchanged_fraction that storing such an update once would leave. Far more: it was rounded at every step."""
    return equal_null / entries if entries else math.nan


def optimal_shrinkage(s: Vector, rows: int, cols: int, noise: float) -> Vector:
    """Singular values of the best estimate, in Frobenius loss, of a low-rank matrix seen in white noise.

    η(y) = √((y² − β − 1)² − 4β) / y for y ≥ 1 + √β and 0 below, in units of noise·√max(m, n).

    Args:
        s: Singular values of the noisy matrix, (k,).
        rows: Its number of rows.
        cols: Its number of columns.
        noise: Standard deviation of the noise in one entry; 0 leaves `s` as it is.

    Returns:
        The shrunk values, (k,), descending.

    Raises:
        OptionError: noise is negative or not finite, or `s` is no spectrum.

    Source: Gavish & Donoho 2017, equation 7.
    """
    s = descending(s)
    if not (noise >= 0 and math.isfinite(noise)):
        raise OptionError(f"the noise level is {noise}; expected a finite standard deviation, 0 or more")
    unit = noise * math.sqrt(max(rows, cols))
    if unit == 0:
        return s
    beta = min(rows, cols) / max(rows, cols)
    y = np.maximum(s / unit, 1 + math.sqrt(beta))  # below the edge the radicand is negative; at the edge it is 0
    # (y² − β − 1)² − 4β, in the factors that do not cancel near the edge
    radicand = (y**2 - (1 + math.sqrt(beta)) ** 2) * (y**2 - (1 - math.sqrt(beta)) ** 2)
    shrunk: Vector = unit * np.sqrt(radicand) / y
    return shrunk


def gavish_donoho_lambda(beta: float) -> float:
    """λ*(β) = √(2(β+1) + 8β/((β+1) + √(β²+14β+1))): the optimal hard threshold for white noise; 4/√3 for a square.

    Args:
        beta: Shape ratio min(m, n)/max(m, n), in (0, 1].

    Raises:
        OptionError: beta is not in (0, 1].

    Source: Gavish & Donoho 2014, equation 11.
    """
    if not 0 < beta <= 1:
        raise OptionError(f"the shape ratio is {beta}; expected min(m, n)/max(m, n), in (0, 1]")
    return math.sqrt(2 * (beta + 1) + 8 * beta / ((beta + 1) + math.sqrt(beta**2 + 14 * beta + 1)))


def gavish_donoho_threshold(rows: int, cols: int, noise: float | None = None, s: Vector | None = None) -> float:
    """The optimal hard threshold τ for singular values seen in white noise.

    Known noise: τ = λ*(β)·√max(m, n)·noise. Unknown: τ = λ*/√μ_β · median(σ), which means nothing for a ΔW of
    low rank, whose median is 0.

    Args:
        rows: Number of rows.
        cols: Number of columns.
        noise: Standard deviation of the noise in one entry; None to estimate it from `s`.
        s: All k singular values; needed only where `noise` is None.

    Raises:
        OptionError: Neither or both of `noise` and `s` are given, or the spectrum is not complete.

    Source: Gavish & Donoho 2014.
    """
    from deltaw.metrics.null import marchenko_pastur_median

    beta = min(rows, cols) / max(rows, cols)
    if (noise is None) == (s is None):
        raise OptionError("the threshold takes either the noise level or the spectrum; give exactly one")
    if noise is not None:
        return gavish_donoho_lambda(beta) * math.sqrt(max(rows, cols)) * noise
    assert s is not None
    if len(s) != min(rows, cols):
        raise OptionError(f"{len(s)} singular values of a {rows}×{cols} matrix; its median needs all {min(rows, cols)}")
    return gavish_donoho_lambda(beta) / math.sqrt(marchenko_pastur_median(beta)) * float(np.median(s))
