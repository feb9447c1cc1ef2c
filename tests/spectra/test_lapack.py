"""The two libraries that find a Gram matrix and its eigenvalues give the same, whichever is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltaw.spectra import lapack, singular_values


def oracle(x):
    return np.linalg.svd(x.double().numpy(), compute_uv=False)


def random(m, n, seed=0, dtype=torch.float32):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("rows", "columns"), [(lapack.ROW_BLOCK + 5, 3), (7, lapack.COLUMN_BLOCK + 9)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("one_thread")
def test_gram_across_its_blocks(rows, columns, threads, monkeypatch):
    """By NumPy with one thread, by torch with several."""
    torch.set_num_threads(threads)
    monkeypatch.setattr(lapack, "_product" if threads == 1 else "_product_numpy", diverges)
    for x in (random(rows, columns, dtype=torch.float64), random(columns, rows, dtype=torch.float64).T):
        got = torch.triu(lapack.gram(x, 2.0))
        np.testing.assert_allclose(got.numpy(), torch.triu(x.T @ x / 4).numpy(), atol=1e-10)


def diverges(*_args, **_kwargs):
    raise torch.linalg.LinAlgError("the algorithm failed to converge")


def diverges_in_numpy(*_args, **_kwargs):
    raise np.linalg.LinAlgError("Eigenvalues did not converge")


def test_both_eigensolvers_give_the_same(monkeypatch):
    x = random(70, 50)
    monkeypatch.setattr(lapack, "_mkl_at_home", lambda: False)
    with monkeypatch.context() as without_torch:
        without_torch.setattr(torch.linalg, "eigvalsh", diverges)
        by_numpy = singular_values(x)
    monkeypatch.setattr(np.linalg, "eigvalsh", diverges_in_numpy)  # not asked from here on
    monkeypatch.setattr(lapack, "NUMPY_UP_TO", 49)
    larger = singular_values(x)
    monkeypatch.setattr(lapack, "NUMPY_UP_TO", 50)
    monkeypatch.setattr(lapack, "_mkl_at_home", lambda: True)
    on_intel = singular_values(x)
    assert by_numpy.note == larger.note == on_intel.note == ""
    for s in (larger, on_intel):
        np.testing.assert_allclose(s.values, by_numpy.values, rtol=1e-12)


@pytest.mark.parametrize(
    ("about", "intel"),
    [("vendor_id\t: GenuineIntel\nflags : fpu", True), ("vendor_id : AuthenticAMD", False), (None, False)],
)
def test_where_mkl_is_at_home(monkeypatch, about, intel):
    def read_text(*_args, **_kwargs):
        if about is None:
            raise PermissionError
        return about

    monkeypatch.setattr(lapack.Path, "read_text", read_text)
    monkeypatch.setattr(lapack.platform, "processor", lambda: "arm")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert lapack._mkl_at_home.__wrapped__() is intel
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert lapack._mkl_at_home.__wrapped__() is False


@pytest.mark.parametrize("intel", [False, True])
def test_only_the_upper_triangle_is_read(monkeypatch, intel):
    """What is below it was never computed."""
    monkeypatch.setattr(lapack, "_mkl_at_home", lambda: intel)
    monkeypatch.setattr(lapack, "PADDED_FROM", 25)
    x = random(40, 30, dtype=torch.float64)
    square = torch.triu(lapack.gram(x)) + torch.tril(torch.full((30, 30), torch.nan, dtype=torch.float64), -1)
    expected = oracle(x)[::-1] ** 2
    np.testing.assert_allclose(lapack.eigenvalues(square), expected, atol=1e-12 * expected[-1])


@pytest.mark.usefixtures("one_thread")
def test_padding_leaves_the_values_as_they_are(monkeypatch):
    monkeypatch.setattr(lapack, "_mkl_at_home", lambda: True)
    monkeypatch.setattr(lapack, "PADDED_FROM", 40)
    monkeypatch.setattr(lapack, "TWO_STAGE_FROM", 64)
    sizes = []
    eigvalsh = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda g, **how: sizes.append(len(g)) or eigvalsh(g, **how))
    for n in (39, 40, 63, 64):
        x = random(80, n)
        np.testing.assert_allclose(singular_values(x).values, oracle(x), atol=1e-12 * oracle(x)[0])
    assert sizes == [39, 64, 64, 64]
    singular = torch.cat([random(80, 30), torch.zeros(80, 20)], dim=1)  # its zeros among those of the padding
    np.testing.assert_allclose(singular_values(singular).values, oracle(singular), atol=1e-6)
