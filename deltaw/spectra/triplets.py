"""Leading singular triplets of a matrix."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Triplets(NamedTuple):
    """Leading singular triplets, X ≈ U·diag(S)·Vh: U is (m, r), S is (r,) and descending, Vh is (r, n)."""

    U: Tensor
    S: Tensor
    Vh: Tensor


class BoundedTriplets(NamedTuple):
    """`Triplets` of an iteration; each S is within its error (r,) of a singular value."""

    U: Tensor
    S: Tensor
    Vh: Tensor
    errors: Tensor
