"""The on-data columns of a row: what ΔW does to the inputs that its matrix met on one data set, or on two."""

from __future__ import annotations

import math

import torch

from deltaw.activations.on_data import FROM_SPECTRUM, SETS, Effect, effect, unchanged
from deltaw.checkpoints import why_unread
from deltaw.delta.difference import Delta
from deltaw.measurement.options import Options
from deltaw.metrics import evaluate
from deltaw.metrics.quantities import Quantities
from deltaw.metrics.registry import Value
from deltaw.tensors.matrix import matrix
from deltaw.types import Cell, Pair, Spectrum


def on_data(pair: Pair, delta: Delta, plain: Spectrum, options: Options, device: torch.device) -> dict[str, Cell]:
    """The on-data columns of a matrix; none where no inputs of it are known.

    Args:
        pair: The matrix.
        delta: Its ΔW.
        plain: The spectrum of ΔW.
        options: With the data sets.
        device: Where to compute.

    Raises:
        ActivationsError: Its inputs cannot be read.
    """
    base = delta.base
    effects: dict[str, Effect] = {}
    for which, inputs in zip(SETS, options.data, strict=False):
        moments = inputs.of(pair)
        if moments is None:
            continue
        if base is None and pair.base is not None and not why_unread(pair.base):
            base = matrix(pair.base, pair.view)
        moments = moments.to(device)
        value, W0 = delta.value, base
        if inputs.turned(pair):
            value, W0 = None if value is None else value.mT, None if W0 is None else W0.mT
        effects[which] = (
            unchanged(moments, W0)
            if value is None
            else effect(value, W0, moments, plain, name=pair.key, mode=options.mode, tolerance=options.tolerance)
        )
    quantities, given = Quantities(), dict[str, Value]()
    for which, found in effects.items():
        quantities |= found.quantities(which)
        given |= {f"{name}_on_{which}": estimate.value for name, estimate in found.estimates.items()}
        if found.sketched:
            given[f"effective_rank_on_{which}"] = math.nan  # a sum over small σ, of which a sketch knows nothing
    row: dict[str, Cell] = {**evaluate(quantities, ("on data",), given)}
    for which, found in effects.items():
        row |= _bounds(which, found, row, fast=options.mode == "fast")
    return row | _selectivity(row)


def _bounds(which: str, found: Effect, row: dict[str, Cell], *, fast: bool) -> dict[str, Cell]:
    """The intervals of one data set's columns; in fast mode what is exact has its own value as interval."""
    bounds = {name: (estimate.low, estimate.high) for name, estimate in found.estimates.items()} | dict(found.bounds)
    out: dict[str, Cell] = {}
    for name, (low, high) in bounds.items():
        out |= {f"{name}_on_{which}_low": low, f"{name}_on_{which}_high": high}
    if fast and found.found.complete and not found.sketched:
        for name in FROM_SPECTRUM:
            value = row.get(f"{name}_on_{which}")
            out |= {f"{name}_on_{which}_low": value, f"{name}_on_{which}_high": value}
    return out


def _selectivity(row: dict[str, Cell]) -> dict[str, Cell]:
    """The interval of a selectivity of which a sketch leaves one side or both open."""

    def bound(column: str, side: str) -> float:
        value = row.get(f"{column}_{side}", row.get(column))
        return float(value) if isinstance(value, (int, float)) else math.nan

    target, source = "relative_change_on_data", "relative_change_on_source"
    if f"{target}_low" not in row and f"{source}_low" not in row:
        return {}
    least, most = bound(source, "low"), bound(source, "high")
    if not (least > 0 and most > 0):
        return {}
    return {"selectivity_low": bound(target, "low") / most, "selectivity_high": bound(target, "high") / least}
