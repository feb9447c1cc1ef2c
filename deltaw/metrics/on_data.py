"""What an update does to the inputs of a data set: the sizes and ranks of ΔW·C^½, C = E[xxᵀ] of the matrix's inputs x.

‖ΔW·C^½‖F² is the mean of ‖ΔW·x‖² over the data. A direction that no input excites counts for nothing; of an embedding,
whose inputs are one-hot, each row counts as often as its token was met.
"""

from __future__ import annotations

import math

from deltaw.metrics.energy import energy_at
from deltaw.metrics.rank import effective_rank, rank_at
from deltaw.metrics.registry import metric
from deltaw.types import Vector


def _relative(delta_sq: float, base_sq: float) -> float:
    if delta_sq == 0:
        return 0.0
    return math.sqrt(delta_sq / base_sq) if base_sq else math.nan


@metric(section="on data", formula="‖ΔW·C^½‖F / ‖W0·C^½‖F", unit="share")
def relative_change_on_data(delta_on_data_sq: float, base_on_data_sq: float) -> float:
    """Size of what the update adds to the outputs on the first data set, against the outputs of what it updates."""
    return _relative(delta_on_data_sq, base_on_data_sq)


@metric(
    section="on data",
    formula="exp(−Σ p ln p), p = σ/Σσ, σ of ΔW·C^½",
    unit="dimensions",
    source="Roy & Vetterli 2007, on data",
    hidden_by_noise=True,
    of_sigma=True,
)
def effective_rank_on_data(s_on_data: Vector, energy_on_data: float | None = None) -> float:
    """How many directions the update's effect on the first data set spreads over."""
    return effective_rank(s_on_data, energy_on_data)


@metric(
    section="on data",
    formula="min r: Σ_{i≤r} σ² ≥ .90·Σσ², σ of ΔW·C^½",
    unit="count",
    source="Biderman et al. 2024, on data",
    hidden_by_noise=True,
)
def rank_90_on_data(s_on_data: Vector, energy_on_data: float | None = None) -> float:
    """How many directions hold 90 % of what the update does to the inputs of the first data set."""
    return rank_at(s_on_data, 0.9, energy_on_data)


@metric(
    section="on data",
    formula="Σ_{i≤16} σ² / Σσ², σ of ΔW·C^½",
    unit="share",
    source="Eckart & Young 1936, on data",
    hidden_by_noise=True,
)
def energy_at_16_on_data(s_on_data: Vector, energy_on_data: float | None = None) -> float:
    """Share of the update's effect on the first data set that an adapter of rank 16 could keep at best."""
    return energy_at(s_on_data, 16, energy_on_data)


@metric(section="on data", formula="‖ΔW·C^½‖F / ‖W0·C^½‖F, C of the second data set", unit="share")
def relative_change_on_source(delta_on_source_sq: float, base_on_source_sq: float) -> float:
    """Size of what the update adds to the outputs on the second data set, the one that is to be kept."""
    return _relative(delta_on_source_sq, base_on_source_sq)


@metric(
    section="on data",
    formula="exp(−Σ p ln p), p = σ/Σσ, σ of ΔW·C^½, C of the second data set",
    unit="dimensions",
    source="Roy & Vetterli 2007, on data",
    hidden_by_noise=True,
    of_sigma=True,
)
def effective_rank_on_source(s_on_source: Vector, energy_on_source: float | None = None) -> float:
    """How many directions the update's effect on the second data set spreads over."""
    return effective_rank(s_on_source, energy_on_source)


@metric(
    section="on data",
    formula="min r: Σ_{i≤r} σ² ≥ .90·Σσ², σ of ΔW·C^½, C of the second data set",
    unit="count",
    source="Biderman et al. 2024, on data",
    hidden_by_noise=True,
)
def rank_90_on_source(s_on_source: Vector, energy_on_source: float | None = None) -> float:
    """How many directions hold 90 % of what the update does to the inputs of the second data set."""
    return rank_at(s_on_source, 0.9, energy_on_source)


@metric(
    section="on data",
    formula="Σ_{i≤16} σ² / Σσ², σ of ΔW·C^½, C of the second data set",
    unit="share",
    source="Eckart & Young 1936, on data",
    hidden_by_noise=True,
)
def energy_at_16_on_source(s_on_source: Vector, energy_on_source: float | None = None) -> float:
    """Share of the update's effect on the second data set that an adapter of rank 16 could keep at best."""
    return energy_at(s_on_source, 16, energy_on_source)


@metric(section="on data", formula="relative_change_on_data / relative_change_on_source")
def selectivity(relative_change_on_data: float, relative_change_on_source: float) -> float:
    """How much more the update acts on the first data set than on the second: above 1 it is aimed at the first."""
    return relative_change_on_data / relative_change_on_source if relative_change_on_source else math.nan


@metric(section="on data", formula="‖ΔW·C^½‖F")
def fro_norm_on_data(delta_on_data_sq: float) -> float:
    """Size of what the update adds to the outputs on the first data set: the root of the mean of ‖ΔW·x‖²."""
    return math.sqrt(delta_on_data_sq)


@metric(section="on data", formula="‖ΔW·C^½‖F, C of the second data set")
def fro_norm_on_source(delta_on_source_sq: float) -> float:
    """Size of what the update adds to the outputs on the second data set, the one that is to be kept."""
    return math.sqrt(delta_on_source_sq)
