"""A pair becomes a row: read, subtract, take singular values, evaluate the metrics."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from deltaw.alignment import alignment
from deltaw.checkpoints import why_unread
from deltaw.delta.difference import Delta, difference
from deltaw.delta.shrink import shrinks
from deltaw.errors import DeltaWError
from deltaw.measurement.measured import Measured
from deltaw.measurement.on_data import on_data
from deltaw.measurement.options import Options
from deltaw.metrics import REGISTRY, RESIDUAL, evaluate, residual_shrinkage, update_ratio
from deltaw.metrics.deconvolution import ENOUGH, Denoised, Rounded, denoise, interval, without_rounding
from deltaw.metrics.quantities import Quantities
from deltaw.metrics.registry import Value
from deltaw.pairs.views import identity
from deltaw.results.rows import number
from deltaw.spectra import Noise, by_line, seeded, singular_values_batched, spectrum, stored_again
from deltaw.spectra.route import BATCHED_UP_TO
from deltaw.tensors.matrix import matrix
from deltaw.tensors.memory import empty
from deltaw.types import Cell, Factors, Interval, IntruderCount, Pair, Reason, Skipped, Spectrum, Vector, is_update

log = logging.getLogger("deltaw")

# What can be wrong with one tensor, and says nothing about the others.
ONE_TENSOR = (DeltaWError, RuntimeError, MemoryError, OSError, np.linalg.LinAlgError)
DEFECT = "a defect of deltaw; -vv shows where"

# The columns that a spectrum decides, and that fast mode may estimate.
FROM_SPECTRUM = [m.name for m in REGISTRY.values() if {"s", "s_residual", "s_denoised", "rank_90"} & set(m.parameters)]


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
        return [_failed(pairs[0], " ".join(str(e).split()) or type(e).__name__)]
    except Exception as e:  # a defect costs this tensor, never what was measured of the others
        if len(pairs) > 1:
            return _one_by_one(measure, pairs, options, device)
        log.debug("%s", pairs[0].label, exc_info=True)
        return [_failed(pairs[0], f"unexpected {type(e).__name__}: {' '.join(str(e).split())} ({DEFECT})")]
    seconds = (time.perf_counter() - started) / len(pairs)
    return [replace(measured, row={**(measured.row or {}), "seconds": seconds}) for measured in found]


def _failed(pair: Pair, why: str) -> Measured:
    return Measured(None, skipped=Skipped(pair.label, Reason.FAILED, subject=why))


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
        log.warning("%s: does not fit into the memory of %s, measured %s", pairs[0].label, device, instead)
    torch.cuda.empty_cache()  # outside of the handler: the exception holds the tensors of its frames
    if len(pairs) > 1:
        return _one_by_one(_on, pairs, options, device)
    return _measure(pairs, options, torch.device("cpu"))


def _measure(pairs: Sequence[Pair], options: Options, device: torch.device) -> list[Measured]:
    deltas = [difference(pair, device) for pair in pairs]
    dense = [i for i, delta in enumerate(deltas) if delta.route == "dense"]
    found: dict[int, Spectrum] = {}
    # One alone takes the way of a stack, too: what a row says does not depend on its company.
    if dense and min(pairs[dense[0]].shape) <= BATCHED_UP_TO.get(device.type, 0):
        stack = torch.stack([v for i in dense if isinstance(v := deltas[i].value, torch.Tensor)])
        found = dict(zip(dense, singular_values_batched(stack), strict=True))
    return [
        _row(pair, delta, found.get(i), options, device)
        for i, (pair, delta) in enumerate(zip(pairs, deltas, strict=True))
    ]


def _row(pair: Pair, delta: Delta, found: Spectrum | None, options: Options, device: torch.device) -> Measured:
    """The row of one ΔW, with its spectrum if that is known already."""
    row: dict[str, Cell] = {**identity(pair), "route": delta.route, "method": "", **_adapter_columns(pair)}
    row |= {"ft_precision": delta.sums.ft_precision, "base_precision": delta.sums.base_precision}
    if delta.is_vector:
        sizes = evaluate(delta.sums.totals(), ("size", "regularisation"))
        norm = sizes["fro_norm"]  # an n×1 matrix has one σ
        return Measured({**row, **sizes, "spectral_norm": norm, "nuclear_norm": norm})
    found = found or _spectrum(delta, options, device)
    residual, estimates = _residual(delta, found, options, device)
    estimates |= found.estimates
    quantities = delta.sums.quantities() | _factors(pair, delta)
    energy, shrunk = None if found.complete else found.energy, shrinks(delta)
    quantities |= Quantities(
        s=found.values, s_residual=residual, energy=energy, shrink_marks=shrunk.whole, row_marks=shrunk.rows
    )
    still = not delta.sums.delta_row_sq.any()  # ΔW = 0, if only by value (−0.0): nothing for the precision to resolve
    if still:
        quantities = quantities.without_noise()
    if found.complete:
        denoised, bounds = _without_rounding(delta, quantities, device)
        quantities, estimates = replace(quantities, s_denoised=denoised), estimates | bounds
    given: dict[str, Value] = {name: estimate.value for name, estimate in estimates.items()}
    if still:
        given |= {"signal_rank": 0, "effective_rank_denoised": 0.0}
    row |= evaluate(quantities, given=given)
    row |= {f"{name}_low": estimate.low for name, estimate in estimates.items()}
    row |= {f"{name}_high": estimate.high for name, estimate in estimates.items()}
    row["method"] = found.method
    if options.mode == "fast" and found.complete:  # its interval is the number itself: the columns are always there
        known = {name: row[name] for name in FROM_SPECTRUM if name in row}
        exact = {f"{name}{bound}": value for name, value in known.items() for bound in ("_low", "_high")}
        row |= {name: value for name, value in exact.items() if name not in row}
    if options.data:
        row |= on_data(pair, delta, found, options, device)
    intruders = _align(pair, delta, row, quantities, options, device) if options.alignment else ()
    return Measured(row, found, intruders=intruders)


def _spectrum(delta: Delta, options: Options, device: torch.device) -> Spectrum:
    m, n = delta.sums.rows, delta.sums.cols
    if delta.value is None:
        return Spectrum(np.zeros(min(m, n)), m, n, energy=0.0)
    sums = delta.sums
    noise = Noise(float(sums.noise_row.sum()), sums.noise_row, sums.noise_col, sums.noise_steps, sums.noise_counts)
    return spectrum(
        delta.value,
        mode=options.mode,
        energy=float(delta.sums.delta_row_sq.sum()),
        noise=noise,
        tolerance=options.tolerance,
        generator=seeded(device, delta.name),
    )


def _without_rounding(
    delta: Delta, quantities: Quantities, device: torch.device
) -> tuple[Vector | None, dict[str, Interval]]:
    """The spectrum without its rounding, and what taking it out leaves open. None below precision."""
    noise, energy = float(delta.sums.noise_row.sum()), float(delta.sums.delta_row_sq.sum())
    found = without_rounding(quantities | by_line(delta.value, noise, energy))
    if found is None or not found.share:
        return (None if found is None else found.values), {}
    return found.values, interval(found, _again(delta, found, device) if found.share > ENOUGH else None)


def _again(delta: Delta, found: Denoised, device: torch.device) -> Denoised | None:
    """What the same procedure makes of its own answer, stored again; None for grids and sparse updates."""
    sums, x = delta.sums, delta.value
    if not isinstance(x, torch.Tensor) or delta.base is None or sums.now is None or sums.now.grid is not None:
        return None
    rows, cols = (torch.from_numpy(np.flatnonzero(v)) for v in (sums.noise_row, sums.noise_col))
    if sums.noise_counts.sum() < 0.99 * len(rows) * len(cols):
        return None
    if len(rows) < sums.rows or len(cols) < sums.cols:
        x = x[rows.to(x.device)][:, cols.to(x.device)]
    k = min(x.shape)
    base = delta.base[rows][:, cols]
    cast = sums.base_noise > 0
    generator = seeded(x.device, delta.name)
    s, moved = stored_again(x, base, found.values[:k], sums.now.precision, cast=cast, generator=generator)
    size = float(moved.row.sum())
    noise = found.share * size / float(sums.noise_row.sum())
    row, col = sums.noise_row[sums.noise_row > 0] * noise, sums.noise_col[sums.noise_col > 0] * noise
    return denoise(s, Rounded.of(row, col, sums.noise_steps, sums.noise_counts, size, moved), size)


def _residual(
    delta: Delta, found: Spectrum, options: Options, device: torch.device
) -> tuple[Vector | None, dict[str, Interval]]:
    """The spectrum of ΔW + c·W0, what is left when a common decay is taken out; ΔW's own where c is nothing.

    Returns:
        All its singular values, or else the metrics of it that are estimated.
    """
    totals = delta.sums.totals()
    if totals.delta_base is None or totals.delta_sq is None or totals.base_sq is None:
        return None, {}
    c = residual_shrinkage(totals.delta_base, totals.delta_sq, totals.base_sq)
    rest = found
    if c is not None:
        if not isinstance(delta.value, torch.Tensor) or delta.base is None:
            return None, {}  # factored: ΔW + c·W0 would be the m×n matrix that this route never forms
        # ΔW was subtracted in float64 already; what is added to it here is about as large, and float32 holds the sum.
        dtype = torch.float64 if delta.base.dtype == torch.float64 else torch.float32
        left = empty(delta.value.shape, dtype, delta.value.device).copy_(delta.value)
        rest = spectrum(
            left.add_(delta.base.to(left.device, dtype), alpha=c),
            mode=options.mode,
            energy=totals.delta_sq + 2 * c * totals.delta_base + c**2 * totals.base_sq,
            tolerance=options.tolerance,
            generator=seeded(device, delta.name),
        )
    if rest.complete:
        return rest.values, {}
    return None, {column: rest.estimates[plain] for column, plain in RESIDUAL.items() if plain in rest.estimates}


def _align(
    pair: Pair, delta: Delta, row: dict[str, Cell], quantities: Quantities, options: Options, device: torch.device
) -> tuple[IntruderCount, ...]:
    """Fill the alignment columns of a row; returns the intruders by other definitions."""
    if delta.route == "unchanged":
        row |= alignment.UNCHANGED
        return ()
    if delta.value is None or pair.base is None or why_unread(pair.base):
        return ()
    base = delta.base if delta.base is not None else matrix(pair.base, pair.view)
    rank = number(row, "adapter_rank") if delta.route == "factored" else math.nan
    rank = rank if rank > 0 else number(row, "signal_rank")
    found = alignment.align(
        delta.value,
        base,
        key=pair.key,
        rank=0 if math.isnan(rank) else int(rank),
        top_k=options.top_k,
        epsilon=options.epsilon,
        cache=options.vectors,
        device=device,
    )
    row |= evaluate(quantities | found.quantities, ("alignment",), {"spectral_norm": number(row, "spectral_norm")})
    largest = found.quantities.base_s
    row |= {
        f"update_ratio{bound}": update_ratio(number(row, f"spectral_norm{bound}"), largest)
        for bound in ("_low", "_high")
        if f"spectral_norm{bound}" in row and largest is not None
    }
    return found.intruders


def _adapter_columns(pair: Pair) -> dict[str, Cell]:
    if not is_update(pair.ft):
        return {}
    known = {} if pair.ft.scaling is None else {"adapter_scaling": pair.ft.scaling}
    return {"adapter_type": pair.ft.adapter_type, "adapter_rank": pair.ft.rank, **known}


def _factors(pair: Pair, delta: Delta) -> Quantities:
    """How large the adapter's own factors are; the difference to an initial adapter has twice as many columns."""
    if not is_update(pair.ft) or pair.ft.scaling is None:
        return Quantities()
    known = Quantities(adapter_scaling=pair.ft.scaling)
    if not isinstance(delta.value, Factors) or delta.value.B.shape[1] != pair.ft.rank:
        return known
    B, A = delta.value.B.double(), delta.value.A.double()
    return replace(known, factor_a_sq=float(A.square().sum()), factor_b_sq=float(B.square().sum()))
