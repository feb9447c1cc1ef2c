"""A pair becomes its ΔW: dense, or as two thin factors, with the sums over its entries.

The subtraction happens after the upcast (`entries.sweep`): in bfloat16 it would round most of a small update away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from deltaw.checkpoints import why_unread
from deltaw.delta.cells import coded, difference_of_codes, with_cells
from deltaw.delta.entry_sums import EntrySums
from deltaw.delta.sums import sweep, sweep_factors, sweep_update, unchanged_sums
from deltaw.errors import TensorError
from deltaw.tensors.bits import same_bits
from deltaw.tensors.matrix import matrix, outputs
from deltaw.types import Factors, Handle, Pair, Route, Update, View, is_handle, is_update

# The largest |ΔW| that is measured: the squares of what counts beside it are normal numbers, and their sum is finite.
SMALLEST, LARGEST = 1e-140, 1e140


@dataclass(frozen=True)
class Delta:
    """The ΔW of one pair.

    Attributes:
        route: How it was obtained.
        value: ΔW (outputs × inputs) on the device, its factors, or None where no SVD is needed.
        sums: The sums over its entries.
        read_base: Gives W0 whole; None where that is to be avoided.
        name: What its random numbers are seeded by: the key of its pair.
    """

    route: Route
    value: Tensor | Factors | None
    sums: EntrySums
    read_base: Callable[[], Tensor] | None = None
    name: str = ""

    @cached_property
    def base(self) -> Tensor | None:
        """W0 as a matrix on the CPU, as stored; None where it was not read whole. Of codes it is read when asked for.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        return None if self.read_base is None else self.read_base()

    @property
    def is_vector(self) -> bool:
        """Whether it has no spectrum: a 1-D tensor, changed or not."""
        return self.route == "vector" or (self.route == "unchanged" and self.base is not None and self.base.ndim < 2)


def difference(pair: Pair, device: torch.device) -> Delta:
    """Read a pair and subtract.

    Raises:
        CheckpointError: The bytes cannot be read.
        TensorError: An entry is not finite, or ΔW is beyond what sums of squares in float64 can hold.
    """
    delta = _difference(pair, device)
    size = delta.sums.max_abs
    if size and not SMALLEST <= size <= LARGEST:
        raise TensorError(
            f"its largest change is {size:.3g}; expected {SMALLEST:.0e} to {LARGEST:.0e}, whose squares float64 holds"
        )
    return replace(delta, name=pair.key)


def _difference(pair: Pair, device: torch.device) -> Delta:
    if is_update(pair.ft):
        return _updated(pair, pair.ft, device)
    assert pair.base is not None
    assert is_handle(pair.ft)
    read = partial(matrix, pair.base, pair.view)
    if device.type == "cpu" and (found := difference_of_codes(pair)) is not None:
        return Delta("dense", *found, read)
    w0, w = read(), matrix(pair.ft, pair.view)
    if same_bits(w0, w):
        return Delta("unchanged", None, unchanged_sums(w0, device=device), lambda: w0)
    if w.ndim < 2:
        return Delta("vector", None, sweep(w0, w, device=device, keep=False)[1])
    value, sums = sweep(w0, w, device=device, known=(coded(pair.base), coded(pair.ft)))
    assert value is not None
    return Delta("dense", value, with_cells(sums, value, pair.base, pair.ft, pair.view), lambda: w0)


def _updated(pair: Pair, update: Update, device: torch.device) -> Delta:
    w0 = None
    base = None if pair.base is None or why_unread(pair.base) else pair.base
    if base is not None and (update.needs_base or not update.factored):
        w0 = matrix(base, replace(pair.view, rows=None))  # a part is cut from ΔW: rows may depend on each other
    value = update.delta(w0)
    if isinstance(value, Factors):
        value = Factors(outputs(value.B, pair.view), value.A)
        value = Factors(value.B.to(device), value.A.to(device))
        read = None if base is None else _reader(base, pair.view)
        transposed = pair.view.transposed and base is not None and _plain(base, pair.view)
        return Delta("factored", value, sweep_factors(value, read, transposed=transposed))
    value, old = outputs(value, pair.view), None if w0 is None else outputs(w0, pair.view)
    sums = sweep_update(old, value.to(device))
    if value.ndim < 2:
        return Delta("vector", None, sums)
    return Delta("dense", value.to(device), sums, None if old is None else lambda: old)


def _plain(handle: Handle, view: View) -> bool:
    """Whether rows of the matrix (or of its transpose) are rows of the stored tensor."""
    return view.expert is None and view.rows is None and len(handle.shape) >= 2


def _reader(handle: Handle, view: View) -> Callable[[slice], Tensor]:
    """Reads blocks of rows of W0, so that the factored route never holds a whole matrix where it can be avoided."""
    if _plain(handle, view):
        return lambda rows: handle.read(rows).flatten(1)
    whole = matrix(handle, view)
    return lambda rows: whole[rows]
