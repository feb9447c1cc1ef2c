"""Sketches: small random images of an update whose inner products are those of the updates, in the mean.

X = S_l ΔW S_r with independent Gaussian S_l (p×m) and S_r (n×p) of variance 1/p has E⟨X, X'⟩ = ⟨ΔW, ΔW'⟩. Of each
matrix 16 independent ones of 16×16 are kept: as many numbers as one of 64×64, an error that is no larger, and 16
estimates of one law, whose spread is the interval. Updates are the same under (B·M, M⁻¹·A), and so are their sketches.

Source: Johnson & Lindenstrauss 1984; Woodruff 2014, Sketching as a Tool for Numerical Linear Algebra, §2.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from deltaw.types import Factors, Vector

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

GROUPS = 16  # independent sketches of a matrix
SIDE = 16  # rows and columns of each
NUMBERS = GROUPS * SIDE * SIDE
STUDENT = 2.131449545559323  # the 97.5 % quantile of Student's t with GROUPS − 1 degrees of freedom


def sketch(value: Tensor | Factors, norm: float, key: str) -> Tensor:
    """The sketches of one update over its norm.

    Args:
        value: ΔW (m, n), or its factors; float64.
        norm: ‖ΔW‖F, above 0.
        key: The matrix: those of two matrices share no random number's sign.

    Returns:
        (GROUPS, SIDE·SIDE), float32.
    """
    import torch

    m, n = (value.B.shape[0], value.A.shape[1]) if isinstance(value, Factors) else value.shape
    left, right = signs(key, "left", m), signs(key, "right", n)
    if isinstance(value, Factors):
        peak = math.sqrt(norm)
        B, A = ((left[:, None] * value.B) / peak).float(), ((value.A * right) / peak).float()
        P, Q = gaussian("left", m) @ B, A @ gaussian("right", n).T  # (256, r) and (r, 256)
        X = P.view(GROUPS, SIDE, -1) @ Q.view(-1, GROUPS, SIDE).permute(1, 0, 2)
    else:
        rows = (gaussian("left", m) * left) @ (value / norm).float()
        cols = (gaussian("right", n) * right).view(GROUPS, SIDE, n)
        X = rows.view(GROUPS, SIDE, n) @ cols.mT
    return torch.as_tensor(X).reshape(GROUPS, SIDE * SIDE)


@lru_cache(maxsize=16)
def gaussian(side: str, size: int) -> Tensor:
    """The sides of all sketches on top of each other, (GROUPS·SIDE, size), variance 1/SIDE; the same in every run."""
    import torch

    generator = torch.Generator().manual_seed(_seed(f"{side} {size}"))
    return torch.randn(GROUPS * SIDE, size, generator=generator) / math.sqrt(SIDE)


@lru_cache(maxsize=1024)
def signs(key: str, side: str, size: int) -> Tensor:
    """±1 for each row (or column) of a matrix: what makes one Gaussian of a size serve all matrices of it.

    Directions that several layers have in common would else be seen through the same random numbers.
    """
    import torch

    generator = torch.Generator().manual_seed(_seed(f"{side} {key}"))
    return torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8).float() * 2 - 1


@lru_cache(maxsize=512)
def entries(key: str, shape: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of `count` entries of a matrix, drawn uniformly; the same for every adapter."""
    import torch

    generator = torch.Generator().manual_seed(_seed(f"entries {key}"))
    rows, cols = (torch.randint(0, size, (count,), generator=generator) for size in shape)
    return rows, cols


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")


def inner(
    products: NDArray[np.float64], own_a: NDArray[np.float64], own_b: NDArray[np.float64], a_sq: Vector, b_sq: Vector
) -> tuple[Vector, Vector]:
    """Inner products of updates from their sketches, with the half-widths of their 95 % intervals.

    ⟨a, b⟩ is estimated as ‖a‖·‖b‖·x / √(y·z), x, y and z the means over the sketches of ⟨X_a, X_b⟩, ‖X_a‖² and ‖X_b‖²:
    the norms are known, so that the errors of the sketched ones are taken out, and a copy has cosine 1 exactly. The
    interval is Student's, of the linearised estimates of single sketches.

    Args:
        products: ⟨X_a, X_b⟩ by sketch, (GROUPS, pairs).
        own_a, own_b: ‖X_a‖² and ‖X_b‖² of the same matrices, (GROUPS, pairs).
        a_sq, b_sq: ‖a‖² and ‖b‖² of them, (pairs,).
    """
    x, y, z = products.mean(axis=0), own_a.mean(axis=0), own_b.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(a_sq * b_sq) / np.sqrt(y * z)
        errors = products - x / 2 * (own_a / y + own_b / z)  # of mean 0
        half = STUDENT * scale * errors.std(axis=0, ddof=1) / math.sqrt(GROUPS)
        value = scale * x
    nothing = ~((a_sq > 0) & (b_sq > 0))
    value[nothing], half[nothing] = 0.0, 0.0
    return value, half
