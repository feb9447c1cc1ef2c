"""Overlaps, angles and intruders of subspaces that are known."""

import math

import numpy as np
import pytest

from deltaw import metrics
from deltaw.errors import OptionError


def basis(d, k, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, k)))[0]


def test_phi_of_nested_and_orthogonal_subspaces():
    u = basis(20, 6)
    assert metrics.phi(u, u[:, :3]) == pytest.approx(1)
    assert metrics.phi(u[:, :3], u[:, 3:]) == pytest.approx(0, abs=1e-12)
    assert metrics.phi(u[:, :2], u[:, 1:4]) == pytest.approx(1 / 2)
    assert math.isnan(metrics.phi(u[:, :0], u))


def test_phi_of_random_subspaces_is_its_null():
    values = [metrics.phi(basis(200, 8, 2 * i), basis(200, 16, 2 * i + 1)) for i in range(40)]
    assert np.mean(values) == pytest.approx(metrics.phi_null(8, 16, 200), rel=0.1)


def test_phi_table_holds_every_phi():
    u, v = basis(12, 5), basis(12, 4, 1)
    table = metrics.phi_table(u, v)
    for i in range(1, 6):
        for j in range(1, 5):
            assert table[i - 1, j - 1] == pytest.approx(metrics.phi(u[:, :i], v[:, :j]))


@pytest.mark.parametrize("degrees", [1e-7, 1e-3, 1, 44, 46, 80, 90])
def test_rotation_by_a_known_angle(degrees):
    u = basis(30, 5)
    angle = math.radians(degrees)
    turned = u[:, :4].copy()
    turned[:, 2] = math.cos(angle) * u[:, 2] + math.sin(angle) * u[:, 4]
    assert metrics.rotation(u[:, :4], turned) == pytest.approx(degrees, rel=1e-6, abs=1e-12)
    assert metrics.principal_angles(u[:, :4], turned)[:3] == pytest.approx(np.zeros(3), abs=1e-7)


def test_principal_angles_of_different_dimensions():
    u = basis(9, 4)
    assert metrics.principal_angles(u[:, :2], u) == pytest.approx([0, 0], abs=1e-7)
    assert metrics.principal_angles(u, u[:, :2]) == pytest.approx([0, 0], abs=1e-7)


def test_intruders_are_those_below_epsilon():
    cos = np.array([0.99, 0.5, 0.49, 0.1])
    assert metrics.intruders(cos, 0.5) == metrics.intruders_right(cos, 0.5) == 2
    top = np.array([4.0, 3.0, 2.0, 1.0])
    assert metrics.intruder_energy(cos, top, 0.5) == pytest.approx(5 / 30)
    assert metrics.intruder_energy(cos, top, 0.0) == 0
    assert math.isnan(metrics.intruder_energy(cos, np.zeros(4), 0.5))


@pytest.mark.parametrize("d", [1, 2, 8, 64, 200, 201, 1024])
def test_a_random_direction_counts_as_often_as_predicted(d):
    g = np.random.default_rng(d)
    x = g.standard_normal((2000, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for epsilon in (0.25, 0.5, 0.7):
        seen = (np.abs(x).max(axis=1) < epsilon).mean()
        assert metrics.random_intruder(d, d, epsilon) == pytest.approx(seen, abs=0.03)


def test_nulls():
    assert metrics.intruders_null(np.zeros(10), 0.5, 4096, 4096) == pytest.approx(10, rel=1e-6)
    assert metrics.base_overlap_left_null(basis(40, 4)) == pytest.approx(0.1)
    assert metrics.base_overlap_right_null(basis(80, 4)) == pytest.approx(0.05)
    assert metrics.base_overlap_left(basis(40, 4), basis(40, 4)) == pytest.approx(1)
    assert metrics.base_overlap_right(basis(40, 4), basis(40, 4)) == pytest.approx(1)


def test_amplification_and_shift():
    assert metrics.amplification(6.91**2, 0.32) == pytest.approx(21.6, abs=0.1)
    assert math.isnan(metrics.amplification(1.0, 0.0))
    assert metrics.spectral_shift([3.0, 4.0], [3.0, 0.0]) == pytest.approx(4 / 3)
    assert math.isnan(metrics.spectral_shift([1.0], [0.0]))


def test_update_ratio_and_sign_flips_at_their_edges():
    assert metrics.update_ratio(1.0, [4.0, 3.0]) == 0.25
    assert math.isnan(metrics.update_ratio(1.0, [0.0]))
    assert math.isnan(metrics.update_ratio(1.0, []))
    assert metrics.sign_flips(3, 12) == 0.25
    assert math.isnan(metrics.sign_flips(0, 0))


def test_spectral_shift_is_below_the_relative_change():
    g = np.random.default_rng(0)
    w0, d = g.standard_normal((20, 30)), 0.3 * g.standard_normal((20, 30))
    shift = metrics.spectral_shift(np.linalg.svd(w0 + d)[1], np.linalg.svd(w0)[1])
    assert 0 < shift <= np.linalg.norm(d) / np.linalg.norm(w0)


@pytest.mark.parametrize(("u", "v"), [(np.ones(3), np.ones((3, 1))), (np.ones((3, 1)), np.ones((4, 1)))])
def test_bases_of_different_spaces_are_refused(u, v):
    for f in (metrics.phi, metrics.phi_table, metrics.principal_angles):
        with pytest.raises(OptionError, match="bases"):
            f(u, v)
