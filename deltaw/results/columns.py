"""The columns of `layers`: what identifies a tensor, then every registered metric; and which are shown where."""

from __future__ import annotations

from deltaw.metrics import REGISTRY
from deltaw.metrics.registry import Column

IDENTITY = (
    Column("name", "word", "identity"),
    Column("stack", "word", "identity"),
    Column("layer", "count", "identity"),
    Column("module", "word", "identity"),
    Column("kind", "word", "identity"),
    Column("part", "word", "identity"),
    Column("rows", "count", "identity", always=True),
    Column("cols", "count", "identity", always=True),
    Column("ndim", "count", "identity", always=True),
    Column("base_dtype", "word", "identity"),
    Column("ft_dtype", "word", "identity"),
    Column("ft_precision", "word", "identity"),
    Column("base_precision", "word", "identity"),
    Column("route", "word", "identity"),
    Column("method", "word", "identity"),
    Column("seconds", "seconds", "identity"),
)
ADAPTER = (
    Column("adapter_type", "word", "adapter"),
    Column("adapter_rank", "count", "adapter"),
    Column("adapter_scaling", "1", "adapter"),
)

STORED = {column.name: column for column in (*IDENTITY, *ADAPTER)}  # not computed by a metric

# What is shown where one column stands for a whole model.
BY_KIND = (
    *("relative_change", "unchanged_fraction", "rank_90", "rank_90_null", "rank_90_ratio", "effective_rank"),
    *("signal_rank", "energy_at_16"),
)
ON_DATA = (  # with --activations: each beside the plain one
    *("relative_change", "relative_change_on_data", "relative_change_on_source", "selectivity"),
    *("rank_90", "rank_90_on_data", "rank_90_on_source"),
)
ON_PAPER = ("relative_change", "rank_90", "rank_90_null", "signal_rank", "energy_at_16", "resolution")
OF_A_RUN = ("relative_change", "rank_90", "rank_90_ratio", "effective_rank", "signal_rank", "energy_at_16", "shrinkage")
OF_TWO_GROUPS = ("relative_change", "rank_90", "rank_90_ratio", "signal_rank", "shrinkage", "direction_change")
OVER_TOKENS = (
    *("relative_change", "rank_90", "rank_90_ratio", "effective_rank", "stable_rank", "signal_rank", "energy_at_16"),
)
FINGERPRINT = {  # what each tells of a group of runs
    "relative_change": "distance from the base",
    "rank_90": "rank",
    "rank_90_ratio": "rank against pure noise",
    "signal_rank": "directions above rounding",
    "energy_at_16": "what rank 16 keeps",
    "energy_at_64": "what rank 64 keeps",
    "energy_at_256": "what rank 256 keeps",
    "shrinkage": "pull towards zero",
    "effective_rank_residual": "rank without the shrinkage",
    "rank_90_residual": "rank_90 without the shrinkage",
    "magnitude_change": "change of row norms",
    "direction_change": "change of row directions",
    "factor_balance": "balance of the factors",
    "intruders": "new leading directions",
}
OF_FORGETTING = {  # what may tell it: whether the sizes of matrices are added up, or a median is taken
    "fro_norm": True,
    "relative_change": False,
    "fro_norm_on_source": True,
    "relative_change_on_source": False,
    "fro_norm_on_data": True,
    "relative_change_on_data": False,
    "selectivity": False,
    "rank_90": False,
    "effective_rank": False,
    "intruders": False,
}
IN_PANELS = {  # of the figure of a comparison's fingerprints: label, and whether the axis is logarithmic
    "relative_change": ("relative change", True),
    "rank_90": ("rank_90", True),
    "rank_90_ratio": ("rank_90 / noise", False),
    "energy_at_16": ("energy at rank 16", False),
    "shrinkage": ("shrinkage c", False),
    "direction_change": ("direction change", True),
    "learning": ("learning", False),
    "retention": ("retention", False),
}
AS_CURVES = {  # over tokens: label
    "learning": "learning",
    "retention": "retention",
    "relative_change": "relative change",
    "rank_90": "rank_90 (median)",
}
AS_HEATMAPS = (  # layer by layer, in an analysis's report: identifier, column, of vectors
    ("hero", "relative_change", False),
    ("vectors", "relative_change", True),
    ("ratio", "rank_90_ratio", False),
    ("effective", "effective_rank", False),
    ("intruders", "intruders", False),
    ("on_data", "relative_change_on_data", False),
    ("selectivity", "selectivity", False),
)


def columns() -> dict[str, Column]:
    """Every column of the contract by its name, in the order of the table."""
    found = {column.name: column for column in IDENTITY}
    for m in REGISTRY.values():
        if m.section == "adapter":
            found |= {column.name: column for column in ADAPTER if column.name not in found}
        found[m.name] = m
    return found


def known(name: str) -> Column | None:
    """What is known of a column; None of a foreign one."""
    return REGISTRY.get(name) or STORED.get(name)


def column(name: str) -> Column | None:
    """What is known of a column, or of the one that it bounds (`x_low`, `x_high`); None of a foreign one."""
    return known(name) or known(name.removesuffix("_low").removesuffix("_high"))


def is_text(name: str) -> bool:
    """Whether the values of a column are words."""
    found = known(name)
    return found is not None and found.unit == "word"


def is_whole(name: str) -> bool:
    """Whether the values of a column are whole numbers, so that text shows 16 and not 16.0."""
    found = known(name)
    return found is not None and found.unit == "count"


def is_share(name: str) -> bool:
    """Whether the values of a column are shares, which read best in per cent."""
    found = column(name)
    return found is not None and found.unit == "share"


def is_signed(name: str) -> bool:
    """Whether two values of a column are compared by their difference and not by their ratio."""
    found = known(name)
    return found is not None and found.signed


def is_hidden_by_noise(name: str) -> bool:
    """Whether the rounding of the storage is in a column, so that it may be quoted of clear rows only."""
    found = known(name)
    return found is not None and found.hidden_by_noise


def with_bounds(names: list[str], others: list[str]) -> list[str]:
    """`names` with each `x_low`, `x_high` of `others` behind its `x`, and what is left of them at the end."""
    out = []
    for name in names:
        out.append(name)
        out.extend(bound for suffix in ("_low", "_high") if (bound := name + suffix) in others)
    return out + [name for name in others if name not in out]


def with_nulls(section: str) -> tuple[str, ...]:
    """The metrics of a section, each followed by what it would be by chance, where that is known."""
    names = [m.name for m in REGISTRY.values() if m.section == section]
    nulls = {name for name in names if name.endswith("_null")}
    pairs = [(name, f"{name}_null") for name in names if name not in nulls]
    return tuple(name for pair in pairs for name in pair if name == pair[0] or name in nulls)
