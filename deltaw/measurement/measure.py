"""A pair becomes a row: read, subtract, take singular values, evaluate the metrics."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from deltaw.alignment import alignment
from deltaw.alignment.cache import default_cache
from deltaw.delta.difference import Delta, difference
from deltaw.errors import DeltaWError
from deltaw.measurement.journal import Measured
from deltaw.measurement.options import Options
from deltaw.metrics import REGISTRY, evaluate, residual_shrinkage
from deltaw.pairs.views import describe
from deltaw.spectra import Noise, singular_values_batched, spectrum
from deltaw.tensors.matrix import matrix
from deltaw.types import Factors, Pair, Skipped, Spectrum, is_update

log = logging.getLogger("deltaw")

# What can be wrong with one tensor, and says nothing about the others.
ONE_TENSOR = (DeltaWError, RuntimeError, MemoryError, OSError, np.linalg.LinAlgError)

# The columns that a spectrum decides, and that fast mode may estimate.
FROM_SPECTRUM = [m.name for m in REGISTRY.values() if {"s", "s_residual", "rank_90"} & set(m.parameters)]

# The residual's columns and the plain ones that they equal where no decay is seen.
RESIDUAL = {"effective_rank_residual": "effective_rank", "rank_90_residual": "rank_90"}


def measure(pairs: Sequence[Pair], options: Options, device: torch.device) -> list[Measured]:
    """The rows and spectra of a pair, or of several of one small shape, whose singular values are found at once.

    A tensor that cannot be measured becomes `failed` with its reason, and the others are measured.
    """
    started = time.perf_counter()
    try:
        found = _on(pairs, options, device)
    except ONE_TENSOR as e:
        if len(pairs) > 1:  # one by one tells which
            return _one_by_one(measure, pairs, options, device)
        reason = " ".join(str(e).split()) or type(e).__name__
        return [Measured(None, skipped=Skipped(pairs[0].key, f"failed: {reason}"))]
    seconds = (time.perf_counter() - started) / len(pairs)
    return [replace(measured, row={**(measured.row or {}), "seconds": seconds}) for measured in found]


def _one_by_one(
    function: Callable[[Sequence[Pair], Options, torch.device], list[Measured]],
    pairs: Sequence[Pair],
    options: Options,
    device: torch.device,
) -> list[Measured]:
    return [measured for pair in pairs for measured in function([pair], options, device)]


def _on(pairs: Sequence[Pair], options: Options, device: torch.device) -> list[Measured]:
    """Measure on a device; what does not fit into its memory one by one, and then on the CPU."""
    if device.type != "cuda":
        return _measure(pairs, options, device)
    instead = "one by one" if len(pairs) > 1 else "on the CPU"
    try:
        return _measure(pairs, options, device)
    except torch.OutOfMemoryError:
        log.warning("%s: does not fit into the memory of %s, measured %s", pairs[0].key, device, instead)
    torch.cuda.empty_cache()  # outside of the handler: the exception holds the tensors of its frames
    if len(pairs) > 1:
        return _one_by_one(_on, pairs, options, device)
    return _measure(pairs, options, torch.device("cpu"))


def _measure(pairs: Sequence[Pair], options: Options, device: torch.device) -> list[Measured]:
    deltas = [difference(pair, device) for pair in pairs]
    dense = [i for i, delta in enumerate(deltas) if delta.route == "dense"]
    found: dict[int, Spectrum] = {}
    if len(dense) > 1:
        stack = torch.stack([v for i in dense if isinstance(v := deltas[i].value, torch.Tensor)])
        found = dict(zip(dense, singular_values_batched(stack), strict=True))
    return [
        _row(pair, delta, found.get(i), options, device)
        for i, (pair, delta) in enumerate(zip(pairs, deltas, strict=True))
    ]


def _row(pair: Pair, delta: Delta, found: Spectrum | None, options: Options, device: torch.device) -> Measured:
    """The row of one ΔW, with its spectrum if that is known already."""
    row = describe(pair) | {"route": delta.route, "method": ""}
    row |= {"ft_precision": delta.sums.ft_precision, "base_precision": delta.sums.base_precision}
    quantities = _adapter(pair, delta)
    if delta.is_vector:
        row |= _columns(quantities) | evaluate(quantities | delta.sums.totals(), ("size", "regularisation"))
        row |= {"spectral_norm": row["fro_norm"], "nuclear_norm": row["fro_norm"]}  # an n×1 matrix has one σ
        return Measured(row)
    found = found or _spectrum(delta, options, device)
    quantities |= delta.sums.quantities() | _residual(delta, found, options, device)
    if delta.route == "unchanged":  # nothing changed: nothing for the precision to resolve
        quantities = {k: v for k, v in quantities.items() if not k.startswith(("noise_", "base_noise"))}
        quantities |= {"signal_rank": 0, "effective_rank_denoised": 0.0}
    quantities["s"] = found.values
    if not found.complete:
        quantities["energy"] = found.energy
    row |= _estimates(quantities, found.estimates)
    row |= _columns(quantities) | evaluate(quantities) | {"method": found.method}
    if options.mode == "fast" and found.complete:  # its interval is the number itself: the columns are always there
        known = {name: row[name] for name in FROM_SPECTRUM if name in row}
        row |= {f"{name}{bound}": value for name, value in known.items() for bound in ("_low", "_high")}
    sweep = _align(pair, delta, row, quantities, options, device) if options.alignment else []
    return Measured(row, found, extra={"intruder_sweep": sweep} if sweep else None)


def _spectrum(delta: Delta, options: Options, device: torch.device) -> Spectrum:
    m, n = delta.sums.rows, delta.sums.cols
    if delta.value is None:
        return Spectrum(np.zeros(min(m, n)), m, n, energy=0.0)
    noise = Noise(float(delta.sums.noise_row.sum()), delta.sums.noise_row, delta.sums.noise_col)
    return spectrum(
        delta.value,
        mode=options.mode,
        energy=float(delta.sums.delta_row_sq.sum()),
        noise=noise,
        tolerance=options.tolerance,
        generator=_generator(device),
    )


def _generator(device: torch.device) -> torch.Generator:
    # One seed per matrix: a result does not depend on the order in which the threads come by.
    return torch.Generator(device=device).manual_seed(0)


def _residual(delta: Delta, found: Spectrum, options: Options, device: torch.device) -> dict[str, Any]:
    """The spectrum of ΔW + c·W0, what is left when a common decay is taken out; ΔW's own where c is nothing."""
    totals = delta.sums.totals()
    if "base_sq" not in totals:
        return {}
    c = residual_shrinkage(totals["delta_base"], totals["delta_sq"], totals["base_sq"])
    rest = found
    if c is not None:
        if not isinstance(delta.value, torch.Tensor) or delta.base is None:
            return {}  # factored: ΔW + c·W0 would be the m×n matrix that this route never forms
        # ΔW was subtracted in float64 already; what is added to it here is about as large, and float32 holds the sum.
        dtype = torch.float64 if delta.base.dtype == torch.float64 else torch.float32
        rest = spectrum(
            torch.add(delta.value.to(dtype), delta.base.to(delta.value.device, dtype), alpha=c),
            mode=options.mode,
            energy=totals["delta_sq"] + 2 * c * totals["delta_base"] + c**2 * totals["base_sq"],
            tolerance=options.tolerance,
            generator=_generator(device),
        )
    if rest.complete:
        return {"s_residual": rest.values}
    known = {column: rest.estimates[plain] for column, plain in RESIDUAL.items() if plain in rest.estimates}
    return _estimates({}, known) | {column: interval.value for column, interval in known.items()}


def _estimates(quantities: dict[str, Any], estimates: Any) -> dict[str, Any]:
    """The bounds of estimated columns; their values are put among the quantities, where they win over a formula."""
    bounds: dict[str, Any] = {}
    for name, interval in estimates.items():
        quantities[name] = interval.value
        bounds |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return bounds


def _align(
    pair: Pair, delta: Delta, row: dict[str, Any], quantities: dict[str, Any], options: Options, device: torch.device
) -> list[dict[str, Any]]:
    """Fill the alignment columns of a row; returns the intruder sweep."""
    if delta.route == "unchanged":
        row |= alignment.UNCHANGED
        return []
    if delta.value is None or pair.base is None:
        return []
    base = delta.base if delta.base is not None else matrix(pair.base, pair.view)
    rank = row["adapter_rank"] if delta.route == "factored" and row.get("adapter_rank") else row["signal_rank"]
    rank = 0 if math.isnan(rank) else int(rank)
    found = alignment.align(
        delta.value,
        base,
        rank=rank,
        top_k=options.top_k,
        epsilon=options.epsilon,
        cache=default_cache() if options.cache else None,
        device=device,
    )
    row |= evaluate(quantities | found.quantities, ("alignment",))
    return [{"key": pair.key, **record} for record in found.sweep]


def _adapter(pair: Pair, delta: Delta) -> dict[str, Any]:
    if not is_update(pair.ft):
        return {}
    update = pair.ft
    out: dict[str, Any] = {"adapter_type": update.adapter_type, "adapter_rank": update.rank}
    if update.scaling is not None:
        out["adapter_scaling"] = update.scaling
        # Only the adapter's own factors balance; the difference to an initial adapter has twice as many columns.
        if isinstance(delta.value, Factors) and delta.value.B.shape[1] == update.rank:
            B, A = delta.value.B.double(), delta.value.A.double()
            out |= {"factor_a_sq": float(A.square().sum()), "factor_b_sq": float(B.square().sum())}
    return out


def _columns(quantities: dict[str, Any]) -> dict[str, Any]:
    """The quantities that are columns themselves."""
    names = {"adapter_type", "adapter_rank", "adapter_scaling", *REGISTRY}
    return {k: v for k, v in quantities.items() if k in names or k.endswith(("_low", "_high"))}
