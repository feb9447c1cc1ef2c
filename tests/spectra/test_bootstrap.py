"""An update of a given spectrum, stored again."""

import numpy as np
import pytest
import torch

from deltaw.spectra import stored_again
from deltaw.spectra.bootstrap import _shuffled, _with_values
from deltaw.tensors.bits import STORED


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_spectrum_is_exchanged_and_the_vectors_kept():
    x = torch.randn(30, 20, generator=seeded(), dtype=torch.float64)
    wanted = np.linspace(5, 1, 20)
    made = _with_values(x, wanted)
    np.testing.assert_allclose(np.linalg.svd(made, compute_uv=False), wanted, rtol=1e-10)
    u, _, vh = np.linalg.svd(x.numpy(), full_matrices=False)
    np.testing.assert_allclose(np.abs(np.diag(u.T @ made.numpy() @ vh.T)), wanted, rtol=1e-9)


def test_directions_that_are_not_there_stay_away():
    x = torch.outer(torch.arange(1.0, 9), torch.ones(5)).double()
    made = _with_values(x, np.array([2.0, 1, 1, 1, 1]))
    np.testing.assert_allclose(np.linalg.svd(made, compute_uv=False), [2, 0, 0, 0, 0], atol=1e-7)


def test_shuffling_keeps_the_spectrum_and_moves_the_entries():
    x = torch.randn(30, 20, generator=seeded(), dtype=torch.float64)
    moved = _shuffled(x, seeded(1))
    np.testing.assert_allclose(torch.linalg.svdvals(moved), torch.linalg.svdvals(x), rtol=1e-12)
    assert (moved == x).double().mean() < 0.1
    torch.testing.assert_close(moved.abs().sum(1).sort().values, x.abs().sum(1).sort().values)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
@pytest.mark.parametrize("cast", [False, True])
def test_it_is_rounded_where_it_lands(shape, cast):
    base = 0.02 * torch.randn(*shape, generator=seeded())
    base = base if cast else base.bfloat16()
    x = 1e-3 * torch.randn(*shape, generator=seeded(1))
    values = torch.linalg.svdvals(x.double()).numpy()
    again, moved = stored_again(x, base, values, STORED[torch.bfloat16], cast=cast, generator=seeded())
    size = again @ again
    assert [len(v) for v in moved] == list(shape)
    assert [v.sum() for v in moved] == pytest.approx([size, size])
    own = float((base.bfloat16().double() - base.double()).square().sum())  # of a base that is cast first
    step = 2.0 ** (torch.floor(torch.log2(base.double().abs())) - 7)
    assert size == pytest.approx(float(x.double().square().sum()) + float(step.square().sum()) / 12 + own, rel=0.1)
    exact, _ = stored_again(x, base, values, STORED[torch.float64], cast=False, generator=seeded())
    np.testing.assert_allclose(exact, values, rtol=1e-6)
