"""An update of a given spectrum, stored again: what rounding does to it, measured and not assumed.

The update U·diag(σ)·Vᵀ has the singular vectors of a ΔW, so that its rows and columns are as uneven as those; rows and
columns are permuted and their signs drawn, so that it meets other entries of W0 and is rounded anew.

Source: Efron & Tibshirani 1993, §10 (the bootstrap's estimate of bias).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deltaw.metrics.deconvolution import Moved
from deltaw.metrics.quantities import Quantities
from deltaw.spectra.exact import singular_values
from deltaw.spectra.lapack import gram
from deltaw.tensors.bits import Precision, rounded
from deltaw.types import Factors, Vector

UNEVEN = 0.003  # share of the energy that is rounding, from which the sizes of the lines change what is found
NOTHING = 1e-12  # share of σ1 below which a direction of ΔW has no vectors to speak of


def stored_again(
    x: Tensor, base: Tensor, values: Vector, precision: Precision, *, cast: bool, generator: torch.Generator
) -> tuple[Vector, Moved]:
    """The singular values of an update with the singular vectors of ΔW and other values, after storing W0 + it.

    Args:
        x: ΔW, (m, n).
        base: W0 as stored, (m, n), on any device.
        values: The update's singular values, (k,), k = min(m, n), descending.
        precision: What W is rounded to.
        cast: Whether W0 is rounded to it first.
        generator: The source of permutations and signs, on x's device.

    Returns:
        All singular values of W − W0, (k,), and what of it is in each row and column.
    """
    if x.shape[0] < x.shape[1]:
        again, moved = stored_again(x.mT, base.mT, values, precision, cast=cast, generator=generator)
        return again, Moved(moved.col, moved.row)
    update = _shuffled(_with_values(x.double(), values), generator)
    w0 = base.to(x.device).double()
    start = rounded(w0, precision) if cast else w0
    delta = rounded(update.add_(start), precision).sub_(w0)
    return singular_values(delta).values, moved_by(delta)


def by_line(x: Tensor | Factors | None, noise: float, energy: float) -> Quantities:
    """What of an update is in each row and column, where enough of it is rounding for that to matter.

    Args:
        x: ΔW, (m, n).
        noise: Σ of the variances of its rounding.
        energy: ‖ΔW‖F².
    """
    if not isinstance(x, torch.Tensor) or not noise > UNEVEN * energy:
        return Quantities()
    moved = moved_by(x)
    return Quantities(delta_row_sq=moved.row, delta_col_sq=moved.col)


def moved_by(x: Tensor) -> Moved:
    """The energy of an update in each of its rows and columns, (m, n)."""
    row, col = (torch.linalg.vector_norm(x, dim=dim, dtype=torch.float64).square_().cpu().numpy() for dim in (1, 0))
    return Moved(row, col)


def _with_values(x: Tensor, values: Vector) -> Tensor:
    """U·diag(values)·Vᵀ with the singular vectors of a tall x: x·V·diag(values/σ)·Vᵀ, from its Gram matrix."""
    squares, v = torch.linalg.eigh(gram(x), UPLO="U")
    s, v = squares.clamp_(min=0).sqrt_().flip(0), v.flip(1)
    wanted = torch.from_numpy(np.array(values, dtype=np.float64)).to(x.device)
    factor = torch.where(s > NOTHING * s[0], wanted / s, 0.0)
    out: Tensor = ((x @ v) * factor) @ v.mT
    return out


def _shuffled(x: Tensor, generator: torch.Generator) -> Tensor:
    for dim in (0, 1):
        order = torch.randperm(x.shape[dim], generator=generator, device=x.device)
        sign = torch.randint(0, 2, order.shape, generator=generator, device=x.device).double().mul_(2).sub_(1)
        x = x.index_select(dim, order).mul_(sign[:, None] if dim == 0 else sign)
    return x
