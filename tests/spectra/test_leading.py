"""Leading triplets are the same by either way, orthonormal, and certified."""

import pytest
import torch

from deltaw.spectra import leading_triplets


@pytest.mark.parametrize(
    ("shape", "rank", "decay"),
    [((40, 30), 5, 0.0), ((30, 40), 30, 0.0), ((700, 600), 8, 2.0), ((600, 700), 8, 0.0), ((1, 9), 1, 0.0)],
    ids=["Gram", "all of a wide one", "Krylov", "flat: Krylov gives way", "one row"],
)
def test_they_are_those_of_the_svd(shape: tuple[int, int], rank: int, decay: float):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=g)
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    s = s * torch.arange(1, len(s) + 1).double() ** -decay
    x = ((u * s) @ vh).float()
    found = leading_triplets(x, rank, generator=g)
    want = torch.linalg.svdvals(x.double())[:rank]
    assert torch.allclose(found.S, want, rtol=1e-9, atol=1e-12 * float(want[0]))
    left = torch.linalg.vector_norm(x.double() @ found.Vh.T - found.U * found.S, dim=0)
    assert float(left.max()) <= 1e-6 * float(want[0])
    for q in (found.U, found.Vh.T):
        assert torch.allclose(q.T @ q, torch.eye(rank, dtype=torch.float64), atol=1e-12)
