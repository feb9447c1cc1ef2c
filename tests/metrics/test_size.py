import math

import numpy as np
import pytest

from deltaw import metrics


def test_norms_of_a_diagonal():
    s = [1.0, 4.0, 2.0]
    assert metrics.spectral_norm(s) == 4
    assert metrics.nuclear_norm(s) == 7
    assert metrics.fro_norm(21.0) == pytest.approx(math.sqrt(21))


def test_relative_change_at_its_edges():
    assert metrics.relative_change(1.0, 4.0) == 0.25
    assert metrics.relative_change(0.0, 0.0) == 0.0
    assert math.isnan(metrics.relative_change(1.0, 0.0))


def test_empty_spectrum():
    assert metrics.spectral_norm([]) == metrics.nuclear_norm([]) == 0


def test_leading_values_have_no_nuclear_norm():
    assert math.isnan(metrics.nuclear_norm(np.array([2.0, 1.0]), 6.0))
    assert metrics.nuclear_norm(np.array([2.0, 1.0]), 5.0) == 3


def test_max_over_rms():
    assert metrics.max_over_rms(3.0, 5.0, 25) == 3  # one entry of 3, one of 4 … in units of an rms of 1
    sign = np.full((8, 4), 0.01) * np.where(np.arange(4) % 2, 1, -1)
    assert metrics.max_over_rms(abs(sign).max(), np.linalg.norm(sign), sign.size) == pytest.approx(1)
    assert math.isnan(metrics.max_over_rms(0.0, 0.0, 25))


def test_unchanged_fraction():
    assert metrics.unchanged_fraction(3, 12) == 0.25
    assert math.isnan(metrics.unchanged_fraction(0, 0))
