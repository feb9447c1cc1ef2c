"""The marks of a shrink: c by size, row and column, steps, different values, and what training left alone."""

import numpy as np
import pytest
import torch

from deltaw.delta.shrink import BLOCK, shrink_marks
from deltaw.tensors.numbers import numbers


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def marks(w0, w, rows=None):
    return shrink_marks(w0, w.double() - w0.double(), (numbers(w0), numbers(w)), rows)


def test_of_a_pure_decay():
    w0 = 0.02 * normal(300, 200)
    found = marks(w0, 0.99 * w0)
    assert found.c == pytest.approx(0.01, rel=1e-9)
    assert found.bulk == pytest.approx(0.01, rel=1e-6)
    np.testing.assert_allclose(found.sizes, 0.01, rtol=1e-9)
    assert max(found.between_rows, found.between_cols, found.rest.max()) < 1e-9
    assert found.norms == pytest.approx(1, rel=1e-6)
    assert (found.steps, found.same_precision, found.values) == (0, True, 1)


def test_c_by_size_equals_numpy():
    w0, noise = normal(97, 64), 0.1 * normal(97, 64, seed=1)
    w = torch.sign(w0) * (w0.abs() - 0.05).clamp_min(0) + noise
    found = marks(w0, w)
    a, d = w0.numpy().ravel(), (w - w0).numpy().ravel()
    order = np.argsort(np.abs(a))
    quarters = np.array_split(order, 4)
    expected = [-(d[q] @ a[q]) / (a[q] @ a[q]) for q in quarters]
    np.testing.assert_allclose(found.sizes, expected, rtol=0.02)  # an entry on the border may lie on either side
    r = d + found.c * a
    expected = [np.sqrt(((r[q] * a[q]) ** 2).sum()) / (a[q] @ a[q]) for q in quarters]
    np.testing.assert_allclose(found.sizes_sd, expected, rtol=0.02)
    np.testing.assert_allclose(found.base, [(a[q] @ a[q]) / len(q) for q in quarters], rtol=0.02)


def test_a_spread_between_rows_is_found_beyond_noise():
    w0 = normal(400, 100)
    even = marks(w0, 0.9 * w0 + 0.05 * normal(400, 100, seed=1))
    assert even.between_rows < 0.01
    factor = 0.1 + 0.05 * normal(400, 1, seed=2)
    rows = marks(w0, (1 - factor) * w0 + 0.05 * normal(400, 100, seed=1))
    assert rows.between_rows == pytest.approx(float(factor.std()), rel=0.1)
    assert rows.between_cols < 0.01
    columns = marks(w0.T.contiguous(), ((1 - factor) * w0).T.contiguous())
    assert columns.between_cols == pytest.approx(float(factor.std()), rel=0.1)


def test_rows_of_one_norm():
    w0 = normal(50, 40)
    assert marks(w0, w0 / w0.norm(dim=1, keepdim=True)).norms < 1e-6
    assert marks(w0, w0 / w0.norm(dim=0, keepdim=True)).norms < 1e-6
    assert marks(w0, torch.zeros_like(w0)).norms == 1


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_steps_are_those_of_the_numbers_and_not_of_the_file(stored):
    w0 = normal(200, 100).bfloat16()
    w = (0.995 * w0.double()).bfloat16()
    found = marks(w0.to(stored), w.to(stored))
    assert found.steps == 1
    assert found.same_precision
    assert marks(normal(200, 100).float(), w.to(stored)).same_precision is False


def test_different_values_are_counted_after_rounding_the_base():
    w0 = normal(200, 100)
    assert marks(w0, (0.97 * w0).bfloat16()).values > 0.9  # a cast is no grid
    step = w0.abs().amax() / 7
    assert marks(w0, (w0 / step).round() * step).values < 0.1
    assert np.isnan(shrink_marks(w0, -0.1 * w0).values)


def test_what_a_gradient_gave_back_does_not_hide_the_decay():
    w0 = 0.02 * normal(500, 450)
    u = torch.linalg.qr(normal(500, 20, seed=1))[0]
    signal = 0.6 * u @ normal(20, 450, seed=2) * 0.02
    base = w0 + signal
    found = marks(base, 0.9 * base + 0.1 * signal)  # decay takes a tenth, training gives the signal back
    assert found.c < 0.099
    assert found.bulk == pytest.approx(0.1, rel=0.005)
    assert np.isnan(marks(base, 0.999 * base + 0.01 * 0.02 * normal(500, 450, seed=3)).bulk)  # learning outweighs it
    assert np.isnan(marks(base[:3], 0.9 * base[:3]).bulk)
    assert base.shape[0] > BLOCK


def test_only_the_rows_that_are_asked_for():
    w0 = normal(60, 50)
    w = w0.clone()
    w[::3] *= 0.98
    found = marks(w0, w, np.arange(0, 60, 3))
    assert found.c == pytest.approx(0.02, rel=1e-9)
    assert found.between_rows < 1e-9


def test_zeros_and_single_lines():
    w0 = normal(40, 30)
    w0[:, :15] = 0
    found = marks(w0, 0.9 * w0)
    assert np.isfinite([*found.sizes, *found.sizes_sd, *found.rest]).all()
    for shape in ((1, 30), (30, 1)):
        found = marks(normal(*shape), 0.9 * normal(*shape))
        assert found.c == pytest.approx(0.1)
        assert found.between_rows < 1e-9
