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


@pytest.mark.parametrize("shape", [(900, 600), (600, 900), (700, 700)])
@pytest.mark.parametrize("exponent", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
def test_the_most_energy_in_single_precision(shape, exponent, size):
    """Of flat and of steep spectra, at any size: as much energy as the best, orthonormal, and σ as they are."""
    g = torch.Generator().manual_seed(0)
    k = min(shape)
    u, v = (torch.linalg.qr(torch.randn(d, k, generator=g, dtype=torch.float64)).Q for d in shape)
    x = (size * (u * torch.arange(1.0, k + 1, dtype=torch.float64) ** -exponent) @ v.T).float()
    found = leading_triplets(x, 12, energy_only=True)
    exact = torch.linalg.svdvals(x.double())
    torch.testing.assert_close(found.S, exact[:12], rtol=2e-6, atol=0)
    for basis in (found.U, found.Vh.mT):
        torch.testing.assert_close(basis.mT @ basis, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-12)
    rest = torch.linalg.vector_norm(x.double() - (found.U * found.S) @ found.Vh)
    best = torch.linalg.vector_norm(exact[12:])
    assert float(rest) <= float(best) * (1 + 1e-6) + 1e-6 * float(exact[0])
