"""The tables of a survey, and what is written beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

CONTRACT = (
    *("name", "rank", "matrices", "fro_norm", "relative_change", "effective_rank", "energy_at_1", "factor_balance"),
    *("cluster", "nearest", "nearest_cosine", "flags"),
)
ADAPTERS = (
    *CONTRACT,
    *("why", "method", "format", "base_name", "parameters", "untrained", "map_1", "map_2", "map_3", "map_4"),
    *("reason", "notes", "source"),
)
NEIGHBOURS = ("name", "neighbour", "cosine", "cosine_low", "cosine_high")
LEADING = 8  # singular values of `spectra`
SPECTRA = (
    "name",
    "layer",
    "kind",
    "matrices",
    "fro_norm",
    "base_fro_norm",
    *(f"sigma_{i + 1}" for i in range(LEADING)),
)
TEXTS = frozenset(
    (
        *("name", "a", "b", "kind", "neighbour", "nearest", "flags", "why", "method", "format", "base_name"),
        *("reason", "notes", "source"),
    )
)
WHOLE = frozenset({"rank", "matrices", "cluster", "parameters", "untrained", "layer"})


@dataclass(frozen=True)
class SurveyRecord:
    """What is written beside the tables.

    Attributes:
        base: Path or id of the base; empty without one.
        command: What repeats the survey; empty where none can.
        date: UTC, ISO 8601.
        seconds: How long it took.
        versions: Of the libraries.
        notes: What a reader should know.
        compared: `exact` where all pairs were compared from their factors, `sketched` where only each one's nearest
            were.
        cut: The cosine at which clusters are cut.
        cut_null: The 99 % quantile of the cosines of independent updates.
        cut_rule: `fixed`, or `null` where that quantile is the larger.
        axes: The share of the squared distances that each axis of the map holds.
        rules: What each flag says.
    """

    base: str = ""
    command: str = ""
    date: str = ""
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    compared: str = "exact"
    cut: float = 0.3
    cut_null: float = 0.0
    cut_rule: str = "fixed"
    axes: tuple[float, ...] = ()
    rules: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tables:
    """The tables of a survey.

    Attributes:
        adapters: One row of each adapter, those that cannot be read included.
        pairs: How alike two are: all pairs, or each one's nearest.
        kinds: The same by kind of module.
        neighbours: The nearest of each, the nearest first.
        spectra: Of each adapter, block and kind of module: ‖ΔW‖F, ‖W0‖F, and the leading σ as root mean squares over
            its matrices.
    """

    adapters: pd.DataFrame
    pairs: pd.DataFrame
    kinds: pd.DataFrame
    neighbours: pd.DataFrame
    spectra: pd.DataFrame


FILES: Mapping[str, str] = {
    "adapters": "adapters",
    "pairs": "pairs",
    "kinds": "pairs_by_kind",
    "neighbours": "neighbours",
    "spectra": "spectra",
}
