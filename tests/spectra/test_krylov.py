from __future__ import annotations

import numpy as np
import pytest
import torch

from deltaw.spectra import Operator, top_triplets
from deltaw.spectra.krylov import BlockKrylov, operator, refine


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def space_of(x, block, steps, dtype=torch.float64):
    space = BlockKrylov(operator(x, dtype), block, steps * block, seeded())
    space.extend(steps)
    return space


def assert_triplets(found, x, sigma, k, tolerance):
    x = x.double()
    U, S, Vh = found.U.double(), found.S.double(), found.Vh.double()
    assert U.shape == (x.shape[0], k)
    assert Vh.shape == (k, x.shape[1])
    np.testing.assert_allclose(S.numpy(), sigma[:k], atol=tolerance * sigma[0])
    np.testing.assert_allclose((U.T @ U).numpy(), np.eye(k), atol=1e-5)
    np.testing.assert_allclose((Vh @ Vh.T).numpy(), np.eye(k), atol=1e-5)
    np.testing.assert_allclose((x @ Vh.T).numpy(), (U * S).numpy(), atol=1e-4 * sigma[0])
    np.testing.assert_allclose((x.T @ U).numpy(), (Vh.T * S).numpy(), atol=1e-4 * sigma[0])
    assert (found.errors.numpy() >= 0).all()
    assert (np.abs(S.numpy() - sigma[:k]) <= found.errors.numpy() + 1e-6 * sigma[0]).all()


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (700, 90)])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_top_triplets_of_a_decaying_spectrum(prescribed, shape, k):
    sigma = 0.9 ** np.arange(min(shape))
    x = prescribed(sigma, *shape).float()
    assert_triplets(top_triplets(x, k, generator=seeded()), x, sigma, k, 1e-5)


def test_a_flat_spectrum_falls_back_to_the_gram_matrix():
    x = torch.randn(260, 240, generator=seeded())
    sigma = np.linalg.svd(x.double().numpy(), compute_uv=False)
    found = top_triplets(x, 12, generator=seeded(), capacity=32)
    assert_triplets(found, x, sigma, 12, 1e-6)


@pytest.mark.parametrize("k", [3, 30, 40, 100])
def test_all_triplets_of_a_small_matrix(prescribed, k):
    sigma = np.linspace(2, 1, 40)
    x = prescribed(sigma, 40, 55)
    assert_triplets(top_triplets(x, k, generator=seeded()), x, sigma, min(k, 40), 1e-6)


def test_repeated_and_zero_singular_values(prescribed):
    sigma = np.array([3.0, 3.0, 3.0, 1.0] + [0.0] * 96)
    x = prescribed(sigma, 150, 100)
    assert_triplets(top_triplets(x, 6, generator=seeded()), x, sigma, 6, 1e-6)


@pytest.mark.parametrize("shape", [(400, 300), (300, 400), (30, 20)])
def test_an_operator_that_is_no_matrix(shape):
    m, n = shape
    B, A = torch.randn(m, 6, generator=seeded(1)), torch.randn(6, n, generator=seeded(2))
    op = Operator(shape, lambda V: B @ (A @ V), lambda U: A.T @ (B.T @ U), torch.float32, torch.device("cpu"))
    sigma = np.linalg.svd((B @ A).double().numpy(), compute_uv=False)
    assert_triplets(top_triplets(op, 6, generator=seeded()), B @ A, sigma, 6, 1e-5)


def test_the_same_seed_gives_the_same_numbers():
    x = torch.randn(120, 90, generator=seeded())
    a, b = (top_triplets(x, 4, generator=seeded(7)) for _ in range(2))
    assert torch.equal(a.U, b.U)
    assert torch.equal(a.S, b.S)


def test_bidiagonalisation_is_what_it_says():
    x = torch.randn(90, 70, generator=seeded(), dtype=torch.float64)
    space = space_of(x, 4, 6)
    d = space.dimension
    U, V = space._U[:, :d], space._V[:, : d + 4]
    assert torch.allclose(U.T @ U, torch.eye(d, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(V.T @ V, torch.eye(d + 4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(x.T @ U, V @ space._bidiagonal().T, atol=1e-12)
    assert torch.allclose(x @ V[:, :d], U @ space._bidiagonal()[:, :d], atol=1e-12)


def test_ritz_values_are_lower_bounds_and_residuals_are_true():
    x = torch.randn(300, 200, generator=seeded(), dtype=torch.float64)
    sigma = torch.linalg.svdvals(x)
    space = space_of(x, 8, 6)
    ritz = space.ritz()
    assert (ritz.values <= sigma[: len(ritz.values)] + 1e-10).all()
    top = space.triplets(ritz, 10)
    residual = torch.linalg.vector_norm(x.T @ top.U - top.Vh.T * top.S, dim=0)
    assert torch.allclose(residual, ritz.residuals[:10], atol=1e-10)
    nearest = (ritz.values[:, None] - sigma).abs().min(dim=1).values
    assert (nearest <= ritz.residuals + 1e-10).all()


def test_both_rules_integrate_polynomials_exactly():
    """Σ w·θ^2j = zᵀ(XᵀX)^j z, up to degree 2s − 1 for Gauss and 2s for Gauss–Radau with s steps."""
    x = torch.randn(80, 60, generator=seeded(), dtype=torch.float64) / 8
    space = space_of(x, 3, 4)
    Z = space._V[:, :3] @ space._R0
    moment = Z.clone()
    for j in range(9):
        exact = (Z * moment).sum(0).numpy()
        gauss, radau = space.ritz().gauss, space.radau()
        if j <= 7:
            np.testing.assert_allclose((gauss.weights * gauss.nodes[:, None] ** (2 * j)).sum(0), exact, rtol=1e-10)
        np.testing.assert_allclose((radau.weights * radau.nodes[:, None] ** (2 * j)).sum(0), exact, rtol=1e-10)
        moment = x.T @ (x @ moment)


def test_the_rules_bracket_the_nuclear_norm_of_each_probe():
    x = torch.randn(120, 100, generator=seeded(), dtype=torch.float64)
    space = space_of(x, 4, 5)
    Z = space._V[:, :4] @ space._R0
    _, s, vh = torch.linalg.svd(x, full_matrices=False)
    exact = ((vh @ Z).square() * s[:, None]).sum(0).numpy()
    gauss, radau = space.ritz().gauss, space.radau()
    assert ((gauss.weights * gauss.nodes[:, None]).sum(0) >= exact).all()
    assert ((radau.weights * radau.nodes[:, None]).sum(0) <= exact).all()


@pytest.mark.parametrize("rank", [0, 2, 7])
def test_an_exhausted_space_stays_orthonormal(prescribed, rank):
    """X·V lies within the basis up to rounding; what QR makes of the rounding must not lean on the basis."""
    x = prescribed(np.ones(max(rank, 1)), 200, 150) * (rank > 0)
    for matrix in (x, torch.eye(150)):
        space = space_of(matrix, 8, 8, torch.float32)
        V = space._V[:, : space.dimension + 8]
        assert torch.allclose(V.T @ V, torch.eye(V.shape[1]), atol=1e-5)
        assert float(space.ritz().values.max()) <= 1 + 1e-5


def test_refine_is_quadratic_in_the_angle(prescribed):
    sigma = np.array([1.0, 0.5, 0.25] + [1e-3] * 57)
    x = prescribed(sigma, 80, 60)
    U = torch.linalg.svd(x)[0][:, :3]
    tilted = torch.linalg.qr(U + 1e-4 * torch.randn(80, 3, generator=seeded(), dtype=torch.float64))[0]
    found = refine(x, tilted)
    np.testing.assert_allclose(found.S.numpy(), sigma[:3], rtol=1e-5)
    assert np.abs(found.S.numpy() - sigma[:3]).max() > 0
    assert float(torch.linalg.matrix_norm(found.U * found.S @ found.Vh - x, 2)) < 2e-3


def test_products_are_in_float64_where_float32_ones_may_be_rounded_further():
    x = torch.randn(30, 20, generator=seeded())
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert operator(x).dtype == torch.float64
    finally:
        torch.set_float32_matmul_precision(before)
    assert operator(x).dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 9), (2, 16), (7, 40), (9, 7), (3, 1), (20, 15), (5000, 3)])
@pytest.mark.parametrize("k", [1, 2, 16])
def test_matrices_with_few_columns(prescribed, shape, k):
    """Token types, small heads and first convolutions: the Krylov space would have no room for a step."""
    sigma = np.linspace(2, 1, min(shape))
    x = prescribed(sigma, *shape)
    assert_triplets(top_triplets(x, k, generator=seeded()), x, sigma, min(k, *shape), 1e-12)
