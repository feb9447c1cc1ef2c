"""Matrices with prescribed singular values, and the oracle: LAPACK in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Prescribed = Callable[..., torch.Tensor]


@pytest.fixture
def prescribed() -> Prescribed:
    """matrix(sigma, m, n, seed): a random matrix with these singular values."""

    def matrix(sigma: NDArray[np.float64], m: int, n: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        k = len(sigma)
        U, _ = torch.linalg.qr(torch.randn(m, k, generator=generator, dtype=torch.float64))
        V, _ = torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))
        return U * torch.from_numpy(np.asarray(sigma, dtype=np.float64)) @ V.T

    return matrix
