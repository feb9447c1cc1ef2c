"""How large ΔW is: norms, and how many entries moved at all.

The Frobenius norms come from the entries, in float64, so that they do not depend on how well the SVD did.
"""

from __future__ import annotations

import math

from deltaw.metrics.registry import metric
from deltaw.metrics.spectrum import descending, truncated
from deltaw.types import Vector


@metric(section="size", formula="‖ΔW‖F = √(Σ Δ²)")
def fro_norm(delta_sq: float) -> float:
    """Frobenius norm of the update, summed over its entries in float64."""
    return math.sqrt(delta_sq)


@metric(section="size", formula="‖W0‖F = √(Σ W0²)", fixed=True)
def base_fro_norm(base_sq: float) -> float:
    """Frobenius norm of the base matrix."""
    return math.sqrt(base_sq)


@metric(section="size", formula="‖ΔW‖F / ‖W0‖F", unit="share")
def relative_change(fro_norm: float, base_fro_norm: float) -> float:
    """Size of the update against the size of what it updates. Empty where the base is zero and the update is not."""
    if fro_norm == 0:
        return 0.0
    return fro_norm / base_fro_norm if base_fro_norm else math.nan


@metric(section="size", formula="σ1")
def spectral_norm(s: Vector) -> float:
    """Largest singular value of ΔW: the most that the update can stretch an input."""
    s = descending(s)
    return float(s[0]) if s.size else 0.0


@metric(section="size", formula="Σ σ", hidden_by_noise=True, of_sigma=True)
def nuclear_norm(s: Vector, energy: float | None = None) -> float:
    """Sum of the singular values of ΔW."""
    s = descending(s)
    return math.nan if truncated(s, energy) else float(s.sum())


@metric(section="size", formula="max |Δ|")
def max_abs(max_abs: float) -> float:
    """Largest change of a single entry."""
    return max_abs


@metric(
    section="size",
    formula="#{bits(W) = bits(W0)} / (m·n)",
    source="Mukherjee et al. 2025 take |Δ| ≤ 1e-5 instead, which misses one-ulp moves of small weights",
    unit="share",
)
def unchanged_fraction(equal: float, entries: float) -> float:
    """Share of entries whose stored bits are equal in the base and the fine-tuned matrix, after a common upcast."""
    return equal / entries if entries else math.nan


@metric(section="size", formula="max |Δ| / √(‖ΔW‖F² / (m·n))", source="arXiv 2605.10468", hidden_by_noise=True)
def max_over_rms(max_abs: float, fro_norm: float, entries: float) -> float:
    """Largest change of an entry, in units of their root mean square.

    Steps of Adam are sign-like, so that all entries move alike and it stays small; steps of SGD and Muon are not.
    """
    return max_abs * math.sqrt(entries) / fro_norm if fro_norm else math.nan
