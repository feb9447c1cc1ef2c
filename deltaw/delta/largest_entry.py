"""The largest entry of a product B·A that is never multiplied out: exact, by branch and bound.

|b_i·a_j| ≤ ‖b_i‖‖a_j‖ (Cauchy–Schwarz). With the rows of B and the columns of A sorted by norm, only a staircase of
pairs can beat the best entry found so far, and a good first entry leaves little of it. The norms say most when both
factors are in balanced coordinates, B·A = (U√Σ)(√ΣVᵀ).
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS, COLUMNS = 256, 8192  # of one block of products: 16 MiB of float64
STARTS = 8  # of the local search for a good first entry


def largest_product(B: Tensor, A: Tensor) -> float:
    """max_ij |(B·A)_ij|, in memory that does not depend on m·n.

    Args:
        B: (m, r), float64.
        A: (r, n), float64.

    Returns:
        The largest absolute entry; 0 for an empty product.
    """
    if not (B.numel() and A.numel()):
        return 0.0
    b, a = _balanced(B, A)
    b_norm, order = torch.linalg.vector_norm(b, dim=1).sort(descending=True)
    b = b[order]
    a_norm, order = torch.linalg.vector_norm(a, dim=1).sort(descending=True)
    a = a[order]
    best = _climb(b, a)
    slack = 1 + 1e-12  # the bound must not lose a pair to rounding
    for i in range(0, len(b), ROWS):
        reach = float(b_norm[i]) * slack
        promising = int(torch.count_nonzero(a_norm * reach > best))
        if not promising:
            break
        for j in range(0, promising, COLUMNS):
            if reach * float(a_norm[j]) <= best:
                break
            product = b[i : i + ROWS] @ a[j : min(promising, j + COLUMNS)].T
            low, high = torch.aminmax(product)
            best = max(best, -float(low), float(high))
    return best


def _balanced(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with factors (m, r') and (n, r') whose rows' norms are as equal as they can be."""
    if B.shape[1] > min(B.shape[0], A.shape[1]):
        return B, A.T.contiguous()
    q_b, r_b = torch.linalg.qr(B)
    q_a, r_a = torch.linalg.qr(A.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    root = s.sqrt()
    b = q_b @ (u * root)
    del q_b  # as large as the factor itself
    return b, q_a @ (vh.T * root)


def _climb(b: Tensor, a: Tensor) -> float:
    """A large entry to start from: from the longest rows to the best column of each, to the best row of that."""
    rows = b[:STARTS]
    best = 0.0
    while True:
        values, columns = (rows @ a.T).abs().max(dim=1)
        found, back = (a[columns] @ b.T).abs().max(dim=1)
        top = max(float(values.max()), float(found.max()))
        if not top > best:  # also where a sum was not finite
            return best
        best, rows = top, b[back]
