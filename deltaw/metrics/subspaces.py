"""How directions lie to each other: intruders, overlaps, rotation, amplification.

All functions take small arrays: a few singular vectors as columns, or tables of cosines between them. Where they
come from, and how, is `deltaw.alignment.alignment`.

Sources: Shuttleworth et al. 2024 (intruder dimensions); Hu et al. 2021, §7 (LoRA: φ and the amplification factor);
Björck & Golub 1973 (principal angles); Mirsky 1960 (spectral shift).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from deltaw.errors import OptionError
from deltaw.metrics.registry import metric
from deltaw.types import Matrix, Vector

DRAWN = 200  # dimensions up to here, where taking the cosines as independent would be off by more than .01
DRAWS = 10_000
INTRUDERS = "Shuttleworth et al. 2024"


@metric(section="alignment", formula="#{i ≤ k: max_j |cos(u_i(W), u_j(W0))| < ε}", unit="count", source=INTRUDERS)
def intruders(max_cos_left: Vector, epsilon: float) -> int:
    """How many of the top k left singular vectors of W are unlike every left singular vector of W0."""
    return int(np.count_nonzero(np.asarray(max_cos_left) < epsilon))


@metric(section="alignment", formula="#{i ≤ k: max_j |cos(v_i(W), v_j(W0))| < ε}", unit="count", source=INTRUDERS)
def intruders_right(max_cos_right: Vector, epsilon: float) -> int:
    """How many of the top k right singular vectors of W are unlike every right singular vector of W0."""
    return int(np.count_nonzero(np.asarray(max_cos_right) < epsilon))


@metric(section="alignment", formula="Σ_{intruders} σ(W)² / Σ_{i≤k} σ(W)²", source=INTRUDERS, unit="share")
def intruder_energy(max_cos_left: Vector, ft_top: Vector, epsilon: float) -> float:
    """Share of the energy of W's top k directions that lies in the (left) intruders."""
    energies = np.asarray(ft_top, dtype=np.float64) ** 2
    total = float(energies.sum())
    return float(energies[np.asarray(max_cos_left) < epsilon].sum()) / total if total else math.nan


@metric(
    section="alignment", formula="‖ΔW‖F / ‖UᵀW0V‖F, U, V: top-r singular vectors of ΔW", source="Hu et al. 2021, §7.3"
)
def amplification(delta_sq: float, base_projection: float) -> float:
    """How much more weight the update puts on its own top directions than the base had there."""
    return math.sqrt(delta_sq) / base_projection if base_projection else math.nan


@metric(section="alignment", formula="‖U_ΔᵀU_0‖F² / r", source="Hu et al. 2021, §7.2")
def base_overlap_left(delta_left: Matrix, base_left: Matrix) -> float:
    """Overlap of the top-r left (output) subspaces of the update and of the base: 1 is the same, 0 orthogonal."""
    return phi(delta_left, base_left)


@metric(section="alignment", formula="‖V_ΔᵀV_0‖F² / r", source="Hu et al. 2021, §7.2")
def base_overlap_right(delta_right: Matrix, base_right: Matrix) -> float:
    """Overlap of the top-r right (input) subspaces of the update and of the base: 1 is the same, 0 orthogonal."""
    return phi(delta_right, base_right)


@metric(section="alignment", formula="‖σ(W) − σ(W0)‖ / ‖σ(W0)‖", source="Mirsky 1960: never above relative_change")
def spectral_shift(ft_s: Vector, base_s: Vector) -> float:
    """How far the singular values moved: the part of the relative change that is not rotation."""
    norm = float(np.linalg.norm(base_s))
    return float(np.linalg.norm(np.asarray(ft_s) - np.asarray(base_s))) / norm if norm else math.nan


@metric(
    section="alignment",
    formula="largest principal angle of the top-k left subspaces of W0 and W",
    unit="degrees",
    source="Björck & Golub 1973",
)
def rotation(base_top_left: Matrix, ft_top_left: Matrix) -> float:
    """How far the leading left subspace turned: 0° is the same subspace, 90° means a direction was lost from it."""
    angles = principal_angles(base_top_left, ft_top_left)
    return float(np.degrees(angles[-1])) if angles.size else math.nan


@metric(section="alignment", formula="σ1(ΔW) / σ1(W0)")
def update_ratio(spectral_norm: float, base_s: Vector) -> float:
    """The most that the update stretches an input, against the most that the base does."""
    largest = float(base_s[0]) if len(base_s) else 0.0
    return spectral_norm / largest if largest else math.nan


@metric(section="alignment", formula="#{sign W ≠ sign W0} / #, over entries that are 0 in neither", unit="share")
def sign_flips(flipped: int, signed_entries: int) -> float:
    """Share of the entries, those that are 0 in W0 or in W aside, whose sign changed."""
    return flipped / signed_entries if signed_entries else math.nan


@metric(
    section="alignment",
    formula="k·P(max_j |cos(x, u_j)| < ε), x uniform on the sphere",
    unit="directions",
    source="Beta law of a random unit vector's entries",
    fixed=True,
)
def intruders_null(max_cos_left: Vector, epsilon: float, rows: int, cols: int) -> float:
    """How many of the top k would count as (left) intruders if they pointed anywhere: in large dimensions, all."""
    return len(max_cos_left) * random_intruder(rows, min(rows, cols), epsilon)


@metric(section="alignment", formula="r / m", source="E ‖U_ΔᵀU_0‖F²/r of random subspaces", fixed=True)
def base_overlap_left_null(delta_left: Matrix) -> float:
    """The left overlap to expect of two random subspaces of the same dimension."""
    return phi_null(delta_left.shape[1], delta_left.shape[1], delta_left.shape[0])


@metric(section="alignment", formula="r / n", source="E ‖V_ΔᵀV_0‖F²/r of random subspaces", fixed=True)
def base_overlap_right_null(delta_right: Matrix) -> float:
    """The right overlap to expect of two random subspaces of the same dimension."""
    return phi_null(delta_right.shape[1], delta_right.shape[1], delta_right.shape[0])


def phi(u: Matrix, v: Matrix) -> float:
    """Overlap φ(i, j) = ‖UᵀV‖F² / min(i, j) of two subspaces; 1 if one contains the other, 0 if they are orthogonal.

    Args:
        u: Orthonormal basis, (d, i).
        v: Orthonormal basis, (d, j).

    Returns:
        φ in [0, 1]; NaN where a subspace is empty. The random baseline is `phi_null`.

    Raises:
        OptionError: The bases are not matrices with rows of one space.

    Source: Hu et al. 2021, §7.2.
    """
    u, v = _bases(u, v)
    k = min(u.shape[1], v.shape[1])
    return min(1.0, float(np.sum((u.T @ v) ** 2)) / k) if k else math.nan


def phi_null(i: int, j: int, d: int) -> float:
    """φ(i, j) to expect of random subspaces of a d-dimensional space: max(i, j)/d."""
    return max(i, j) / d if min(i, j) else math.nan


def phi_table(u: Matrix, v: Matrix) -> Matrix:
    """φ(i, j) for every i and j: how the leading subspaces of two updates overlap (Hu et al. 2021, figure 3).

    Args:
        u: Orthonormal columns in descending order of importance, (d, p).
        v: The same of the other update, (d, q).

    Returns:
        A (p, q) array; entry [i − 1, j − 1] is φ(i, j).

    Raises:
        OptionError: The bases are not matrices with rows of one space.
    """
    u, v = _bases(u, v)
    table = np.cumsum(np.cumsum((u.T @ v) ** 2, axis=0), axis=1)
    smaller = np.minimum(np.arange(1, u.shape[1] + 1)[:, None], np.arange(1, v.shape[1] + 1))
    out: Matrix = np.minimum(1.0, table / smaller)
    return out


def principal_angles(u: Matrix, v: Matrix) -> Vector:
    """Principal angles of two subspaces, ascending, in radians.

    Args:
        u: Orthonormal basis, (d, i).
        v: Orthonormal basis, (d, j).

    Returns:
        min(i, j) angles.

    Raises:
        OptionError: The bases are not matrices with rows of one space.

    Source: Knyazev & Argentati 2002: small angles by their sine, since arccos near 1 keeps half the digits.
    """
    u, v = _bases(u, v)
    if u.shape[1] < v.shape[1]:
        u, v = v, u
    table = u.T @ v
    cos = np.clip(np.linalg.svd(table, compute_uv=False), 0.0, 1.0)
    sin = np.clip(np.linalg.svd(v - u @ table, compute_uv=False)[::-1][: cos.size], 0.0, 1.0)
    angles: Vector = np.where(cos**2 > 0.5, np.arcsin(sin), np.arccos(cos))
    return angles


def random_intruder(dimension: int, vectors: int, epsilon: float) -> float:
    """Probability that a random direction has |cos| < ε with each of some orthonormal vectors.

    The squared cosines follow Beta(½, (d − 1)/2) and sum to at most 1. In large dimensions they are as good as
    independent; in small ones, where two cannot both be large, the law is drawn.

    Args:
        dimension: d, of the space.
        vectors: How many orthonormal vectors, at most d.
        epsilon: The threshold, in [0, 1].
    """
    if dimension <= DRAWN:
        return float(np.searchsorted(_drawn_max_cos(dimension, vectors), epsilon) / DRAWS)
    from scipy.special import betainc

    one: float = float(betainc(0.5, (dimension - 1) / 2, min(1.0, max(0.0, epsilon)) ** 2))
    return one**vectors


@lru_cache(maxsize=64)
def _drawn_max_cos(dimension: int, vectors: int) -> Vector:
    """Sorted max |cos| of random directions with the first axes; the same draws in every process."""
    x = np.random.default_rng(0).standard_normal((DRAWS, dimension))
    norms = np.linalg.norm(x, axis=1)
    return np.sort(np.abs(x[:, :vectors]).max(axis=1, initial=0.0) / norms)


def _bases(u: Any, v: Any) -> tuple[Matrix, Matrix]:
    u, v = np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64)
    if u.ndim != 2 or v.ndim != 2 or u.shape[0] != v.shape[0]:
        raise OptionError(f"bases have shapes {u.shape} and {v.shape}; expected (d, i) and (d, j) of one d")
    return u, v
