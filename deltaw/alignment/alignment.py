"""How ΔW lies to the singular vectors of W0: intruders, amplification, overlaps, rotation.

What is needed of a matrix is its full basis on the smaller side and all its singular values, which the eigenvectors
of its Gram matrix give in float64 at a quarter of the cost of an SVD. Vectors of the larger side are never
stored: V0ᵀv = Σ0⁻¹·U0ᵀ(W0·v). W0's part is kept by content in `deltaw.alignment.cache`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaw.alignment.cache import BaseCache, content_key
from deltaw.metrics.quantities import Quantities
from deltaw.metrics.registry import Value
from deltaw.metrics.subspaces import random_intruder
from deltaw.spectra.factored import factored_svd
from deltaw.spectra.krylov import top_triplets
from deltaw.spectra.lapack import gram
from deltaw.spectra.start import seeded
from deltaw.types import Factors, IntruderCount

RANK_CAP = 64  # of the subspaces of ΔW, as Hu et al. 2021 looked at
RESOLVED = 1e-6  # of σ1: below it a Gram matrix does not tell the singular vectors of the larger side
TABLE_TOP_K = (1, 5, 10, 20, 50)
TABLE_EPSILON = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

# What is known of a matrix that did not change.
UNCHANGED: Mapping[str, Value] = {
    "intruders": 0,
    "intruders_right": 0,
    "intruder_energy": 0.0,
    "spectral_shift": 0.0,
    "rotation": 0.0,
    "update_ratio": 0.0,
    "sign_flips": 0.0,
}


class Basis(NamedTuple):
    """The singular values of a matrix, descending, and its singular vectors on the smaller side.

    Attributes:
        x: The matrix, (m, n).
        s: Singular values, (k,), float64.
        q: Singular vectors as columns, (k, k): left ones if m ≤ n, right ones otherwise.
    """

    x: Tensor
    s: Tensor
    q: Tensor

    @property
    def wide(self) -> bool:
        """Whether `q` holds the left vectors."""
        return self.x.shape[0] <= self.x.shape[1]

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The leading k left (m, k) and right (n, k) singular vectors."""
        near = self.q[:, :k]
        far = (self.x.T if self.wide else self.x) @ near
        far, triangle = torch.linalg.qr(far)  # orthonormal also where σ is 0
        far = far * torch.where(torch.diagonal(triangle) < 0, -1.0, 1.0)
        return (near, far) if self.wide else (far, near)

    def cosines(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """U0ᵀ·left (k, p) and V0ᵀ·right (k, p), with all k singular vectors.

        On the larger side the vectors of σ ≈ 0 are arbitrary: nothing is like them, and their cosine is 0.
        """
        near, far = (left, self.x @ right) if self.wide else (right, self.x.T @ left)
        seen = self.s > RESOLVED * self.s[:1]
        scaled = (self.q.T @ far) / torch.where(seen, self.s, torch.inf)[:, None]
        table = self.q.T @ near
        return (table, scaled) if self.wide else (scaled, table)


class Alignment(NamedTuple):
    """The quantities of the alignment metrics, and how many intruders there are by other definitions of them."""

    quantities: Quantities
    intruders: tuple[IntruderCount, ...]


def align(
    delta: Tensor | Factors,
    base: Tensor,
    *,
    key: str = "",
    rank: int,
    top_k: int = 10,
    epsilon: float = 0.5,
    cache: BaseCache | None = None,
    device: torch.device | str = "cpu",
) -> Alignment:
    """Measure a ΔW against the singular vectors of its base.

    Args:
        delta: ΔW, (m, n), outputs × inputs, or its factors.
        base: W0 as stored, (m, n), outputs × inputs.
        key: What the matrix is called in the table of intruders; its random numbers are seeded by it.
        rank: Dimension of ΔW's subspaces: its signal rank, or the adapter's rank; capped at 64.
        top_k: How many leading singular vectors of W may be intruders.
        epsilon: The largest cosine of an intruder.
        cache: Where singular vectors of bases are kept; None to compute them each time.
        device: Where to compute (not MPS, which has no float64).

    Returns:
        Quantities for `deltaw.metrics.evaluate`, and one number of intruders per (k, ε).
    """
    device = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
    old = base_basis(base, cache, device)
    dense = (delta.B.double() @ delta.A.double()) if isinstance(delta, Factors) else delta
    new = basis(old.x + dense.to(device, torch.float64))
    k = min(top_k, len(new.s))
    left, right = new.top(min(max(top_k, *TABLE_TOP_K), len(new.s)))
    max_left, max_right = (_array(t.abs().max(dim=0).values) for t in old.cosines(left, right))
    quantities = Quantities(
        epsilon=epsilon,
        max_cos_left=max_left[:k],
        max_cos_right=max_right[:k],
        ft_top=_array(new.s[:k]),
        ft_s=_array(new.s),
        base_s=_array(old.s),
        ft_top_left=_array(left[:, :k]),
        base_top_left=_array(old.top(k)[0]),
        signed_entries=int(torch.count_nonzero(sides := old.x * new.x)),
        flipped=int(torch.count_nonzero(sides < 0)),
    )
    quantities |= _subspaces(key, delta, old, min(rank, RANK_CAP, len(old.s)))
    return Alignment(quantities, _counts(key, max_left, max_right, (base.shape[0], base.shape[1])))


def basis(x: Tensor) -> Basis:
    """The singular values and smaller-side vectors of a matrix, from its Gram matrix in float64."""
    x = x.double()
    tall = x.T if x.shape[0] <= x.shape[1] else x
    squares, vectors = torch.linalg.eigh(gram(tall), UPLO="U")
    return Basis(x, squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1))


def base_basis(base: Tensor, cache: BaseCache | None, device: torch.device) -> Basis:
    """W0's basis, from the cache where it is there.

    Vectors are kept in float32: a cosine needs no more. They are rounded to it where they are computed as well, so that
    a run gives the same numbers whether it found them or not.
    """
    key = content_key(base) if cache else ""
    found = cache.get(key) if cache else None
    x = base.to(device, torch.float64)
    k = min(x.shape)
    if found is not None and {n: a.shape for n, a in found.items()} == {"s": (k,), "q": (k, k)}:
        s, q = (torch.from_numpy(found[name]).to(device, torch.float64) for name in ("s", "q"))
        return Basis(x, s, q)
    s, q = basis(x)[1:]
    kept = q.float().contiguous()  # the order in memory decides the last bits of products
    if cache:
        cache.put(key, {"s": _array(s), "q": kept.cpu().numpy()})
    return Basis(x, s, kept.double())


def _subspaces(key: str, delta: Tensor | Factors, old: Basis, rank: int) -> Quantities:
    """The top-r vectors of ΔW and of W0, and ‖UᵀW0V‖F; nothing for r = 0."""
    if rank == 0:
        return Quantities()
    if isinstance(delta, Factors):
        found = factored_svd(delta)
        u, v = found.U[:, :rank], found.Vh[:rank].T
    else:
        u, v = _top(key, delta, rank)
    u, v = u.to(old.x), v.to(old.x)
    base_left, base_right = old.top(rank)
    return Quantities(
        delta_left=_array(u),
        delta_right=_array(v),
        base_left=_array(base_left),
        base_right=_array(base_right),
        base_projection=float(torch.linalg.matrix_norm(u.T @ old.x @ v)),
    )


def _top(key: str, delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The top-r left and right singular vectors of a dense ΔW.

    A Krylov space finds a few of many in no time, unless the spectrum is too flat for it; so it is kept small, and
    gives way to the Gram matrix at once.
    """
    if 16 * rank > min(delta.shape):
        return _leading_basis(delta, rank).top(rank)
    found = top_triplets(delta, rank, generator=seeded(delta.device, key), capacity=max(64, 3 * rank))
    return found.U, found.Vh.T


def _leading_basis(x: Tensor, rank: int) -> Basis:
    """The leading part of `basis`: on the CPU, computing `rank` vectors takes half the time of computing all."""
    if x.device.type != "cpu":
        return basis(x)
    from scipy.linalg import eigh

    x = x.double()
    squares = gram(x.T if x.shape[0] <= x.shape[1] else x).numpy()
    k = len(squares)
    found, vectors = eigh(squares, lower=False, subset_by_index=(k - rank, k - 1), driver="evr", check_finite=False)
    s, q = (torch.from_numpy(a).flip(-1) for a in (found, vectors))
    return Basis(x, s.clamp(min=0).sqrt(), q)


def _counts(
    key: str, left: NDArray[np.float64], right: NDArray[np.float64], shape: tuple[int, int]
) -> tuple[IntruderCount, ...]:
    """How many intruders there are for every (k, ε), with their null."""
    small = min(shape)
    return tuple(
        IntruderCount(
            key=key,
            k=k,
            epsilon=epsilon,
            intruders=int(np.count_nonzero(left[:k] < epsilon)),
            intruders_right=int(np.count_nonzero(right[:k] < epsilon)),
            intruders_null=k * random_intruder(shape[0], small, epsilon),
        )
        for k in TABLE_TOP_K
        if k <= len(left)
        for epsilon in TABLE_EPSILON
    )


def _array(x: Tensor) -> NDArray[np.float64]:
    out: NDArray[np.float64] = x.detach().to("cpu", torch.float64).numpy()
    return out
