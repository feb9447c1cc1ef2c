"""The Gram matrix of a matrix and its eigenvalues, in float64, by the library that was the quicker one where measured.

Torch and NumPy may bring different ones (MKL and OpenBLAS), and which is quicker depends on the processor, the size and
the number of threads; the timings stand beside the constants.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deltaw.tensors.memory import empty
from deltaw.types import Vector

# The eigenvalues alone, by torch's LAPACK (MKL) and by NumPy's (OpenBLAS), with one thread and with two:
#
#               AMD EPYC                        Intel Xeon (Sapphire Rapids)
#               128   384  1024  2048  4096     128   384  1024  1100  1152  2048  4096
#   torch, 1     .4   5.5    76   408  2736      .5   5.3    84    75    83   346  2203
#   NumPy, 1     .4   4.3    56   359  4177      .6   5.6    94   112   131   687  5291
#   torch, 2     .4   4.5    48   310  1752      .5   8.0    53    76    71   316  1637
#   NumPy, 2     .4   3.7    39   236  1960      .6   6.1    63    68    79   416  2949
#
# MKL 2024.2 takes another way from 1100 on (in two steps, by a band, it seems), which is the faster one with one
# thread: with zeros around it up to that size, a matrix of 1024 takes 75.
NUMPY_UP_TO = 2048  # where MKL is not at home
TWO_STAGE_FROM, PADDED_FROM = 1100, 1000

# The Gram matrix by NumPy, which sees that it is symmetric, and by torch, milliseconds on the Xeon with one thread: 20
# and 24 for 1024², 47 and 62 for 2816×1024, 1005 and 2088 for 4096². `analyze` leaves NumPy one thread; where torch has
# more, the matrix has the machine to itself.
ROW_BLOCK = 4096  # rows that are converted to float64 at a time: bounds the memory of a tall matrix
GPU_ROW_BLOCK = 1024
COLUMN_BLOCK = 128  # columns of a block of torch's Gram matrix: what lies below the blocks is never computed


def gram(x: Tensor, scale: float = 1.0) -> Tensor:
    """The upper triangle of (x/scale)ᵀ(x/scale) in float64; what is below it is not to be read.

    Args:
        x: (m, n).
        scale: A power of two near max|x|, so that squares neither overflow nor underflow.

    Returns:
        (n, n) float64 on x's device.
    """
    if x.is_cuda:
        return _gram_on_gpu(x, scale)
    product = _product if torch.get_num_threads() > 1 else _product_numpy
    parts = (product(block) for block in _doubled(x, scale))
    out = next(parts)
    for part in parts:
        out += part
    return out


def add_gram(out: Tensor, x: Tensor) -> None:
    """Add xᵀx to the upper triangle of a sum, in place; what is below it is not to be read.

    Args:
        out: (n, n) float64, on x's device.
        x: (m, n) float64.
    """
    if x.is_cuda:  # in full, as half of it takes no less time there
        out.addmm_(x.mT, x)
        return
    for j in range(0, x.shape[1], COLUMN_BLOCK):
        out[j : j + COLUMN_BLOCK, j:].addmm_(x[:, j : j + COLUMN_BLOCK].T, x[:, j:])


def mirror(square: Tensor) -> None:
    """Write the upper triangle of a square matrix below its diagonal, in place."""
    for j in range(0, len(square), COLUMN_BLOCK):
        rows = slice(j, j + COLUMN_BLOCK)
        diagonal = square[rows, rows].triu()
        square[rows, rows] = diagonal + diagonal.triu(1).T
        square[j + COLUMN_BLOCK :, rows] = square[rows, j + COLUMN_BLOCK :].T


def _doubled(x: Tensor, scale: float) -> Iterator[Tensor]:
    """Blocks of rows of x/scale in float64, one after the other in the same memory."""
    kept = None
    for i in range(0, max(1, len(x)), ROW_BLOCK):
        block = x[i : i + ROW_BLOCK]
        if block.dtype != torch.float64 or scale != 1.0:
            kept = empty(block.shape, torch.float64) if kept is None else kept
            block = kept[: len(block)].copy_(block)
            block = block if scale == 1.0 else block.div_(scale)
        yield block


def _gram_on_gpu(x: Tensor, scale: float) -> Tensor:
    # Summed in place, as it is memory that is scarce.
    out = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for i in range(0, len(x), GPU_ROW_BLOCK):
        block = x[i : i + GPU_ROW_BLOCK].double()
        if scale != 1.0:
            block /= scale
        add_gram(out, block)
    return out


def _product(a: Tensor) -> Tensor:
    n = a.shape[1]
    out = torch.empty(n, n, dtype=a.dtype, device=a.device)
    for j in range(0, n, COLUMN_BLOCK):
        torch.mm(a[:, j : j + COLUMN_BLOCK].T, a[:, j:], out=out[j : j + COLUMN_BLOCK, j:])
    return out


def _product_numpy(a: Tensor) -> Tensor:
    b = a.numpy()
    return torch.from_numpy(b.T @ b)


@lru_cache
def solver(device: torch.device) -> AbstractContextManager[object]:
    """To be held while a Gram matrix is made and solved: on a GPU by one thread at a time.

    Two streams gain 1 % there (an H100), and each takes six times the matrix as workspace.
    """
    return threading.Lock() if device.type == "cuda" else nullcontext()


def eigenvalues(square: Tensor) -> Vector:
    """The eigenvalues of a symmetric matrix, ascending, by the LAPACK that was the faster one where it was measured.

    Args:
        square: (n, n) float64, of which only the upper triangle is read.
    """
    n = len(square)
    if not square.is_cuda:
        if n <= NUMPY_UP_TO and not _mkl_at_home():
            return np.linalg.eigvalsh(square.numpy(), UPLO="U")
        if PADDED_FROM <= n < TWO_STAGE_FROM and torch.get_num_threads() == 1:
            rest = TWO_STAGE_FROM - n
            square = torch.nn.functional.pad(square, (rest, 0, rest, 0))
    values: Vector = torch.linalg.eigvalsh(square, UPLO="U").cpu().numpy()
    return values[len(values) - n :]  # none is below the zeros of the padding, but for rounding


@lru_cache(maxsize=1)
def _mkl_at_home() -> bool:
    """Whether torch's LAPACK is MKL and the processor Intel's, for which it is made."""
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        about = platform.processor()
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return has_mkl and ("GenuineIntel" in about or about.startswith("Intel"))
