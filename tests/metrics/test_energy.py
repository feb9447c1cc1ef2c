"""Energy that a rank-r adapter keeps: Eckart–Young, and its edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deltaw import metrics
from deltaw.errors import OptionError
from deltaw.metrics.energy import RANKS

spectra = arrays(np.float64, st.integers(1, 300), elements=st.floats(1e-3, 1e3))


def test_best_rank_r_approximation_keeps_it():
    x = np.random.default_rng(0).standard_normal((30, 20))
    u, s, vt = np.linalg.svd(x)
    kept = (u[:, :8] * s[:8]) @ vt[:8]
    assert metrics.energy_at_8(s) == pytest.approx(1 - np.linalg.norm(x - kept) ** 2 / np.linalg.norm(x) ** 2)


def test_all_is_kept_from_the_full_rank_on():
    assert metrics.energy_at_4([3, 2, 1]) == 1.0
    assert metrics.energy_at_4([3, 2, 1, 1]) == 1.0
    assert metrics.energy_at_1([1e-300]) == 1.0


@pytest.mark.parametrize("r", RANKS)
def test_zero_has_no_energy_to_keep(r):
    assert math.isnan(getattr(metrics, f"energy_at_{r}")(np.zeros(5)))


@given(spectra)
def test_it_grows_with_the_rank(s):
    kept = [getattr(metrics, f"energy_at_{r}")(s) for r in RANKS]
    assert kept == sorted(kept)
    assert 0 < kept[0] <= kept[-1] <= 1


@given(spectra, st.floats(0.01, 1))
def test_energy_at_the_rank_reaches_the_share(s, q):
    assert metrics.energy_at(s, int(metrics.rank_at(s, q))) >= q * (1 - 1e-10)


def test_leading_values_with_the_energy():
    s = np.linspace(9, 1, 40)
    energy = float(s @ s)
    assert metrics.energy_at(s[:16], 16, energy) == pytest.approx(metrics.energy_at_16(s))
    assert math.isnan(metrics.energy_at(s[:16], 17, energy))


def test_a_rank_below_one_is_refused():
    with pytest.raises(OptionError, match="rank"):
        metrics.energy_at([1.0], 0)
