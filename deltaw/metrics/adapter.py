"""What an adapter's own factors show: measured on B and A, before they are multiplied."""

from __future__ import annotations

import math

from deltaw.metrics.registry import metric


@metric(
    section="adapter",
    formula="(‖A‖F² + ‖B‖F²) / (2‖BA‖*)",
    source="Srebro, Rennie & Jaakkola 2004: ‖X‖* = min (‖A‖F² + ‖B‖F²)/2 over X = BA",
)
def factor_balance(factor_a_sq: float, factor_b_sq: float, adapter_scaling: float, nuclear_norm: float) -> float:
    """How far the factors are from the cheapest pair with the same product: 1 is balanced, as weight decay leaves them.

    Args:
        factor_a_sq: ‖A‖F² of the stored A.
        factor_b_sq: ‖sB‖F², with the scaling s folded in as in `Factors`.
        adapter_scaling: s.
        nuclear_norm: ‖sBA‖*.
    """
    scale = abs(adapter_scaling)
    if not (nuclear_norm and scale):
        return math.nan
    return scale * (factor_a_sq + factor_b_sq / scale**2) / (2 * nuclear_norm)
