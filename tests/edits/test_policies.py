"""Which ranks a policy gives, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaw.edits.policies import Policy, directions_for, menus
from deltaw.errors import OptionError

S = np.array([4.0, 2.0, 1.0, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "found none"),
        ({"rank": 4, "energy": 0.9}, "found --rank and --energy"),
        ({"above_noise": True, "parameters": 9}, "found --above-noise and --parameters"),
        ({"rank": 0}, "rank is 0"),
        ({"energy": 0.0}, "energy is 0.0"),
        ({"energy": 1.5}, "energy is 1.5"),
        ({"energy": math.nan}, "energy is nan"),
        ({"parameters": -1}, "parameters is -1"),
        ({"rank": 4, "ranks": (8, 0)}, "ranks are 8, 0"),
        ({"rank": 4, "ranks": (8, 16), "max_rank": 4}, "below the least of the ranks, 8"),
    ],
)
def test_what_is_refused(options: dict[str, object], message: str):
    with pytest.raises(OptionError, match=message):
        Policy(**options)


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({"rank": 3}, 3),
        ({"rank": 3, "max_rank": 2}, 2),
        ({"rank": 3, "ranks": (2, 8)}, 8),
        ({"rank": 30, "ranks": (2, 8)}, 8),
        ({"rank": 3, "ranks": (2, 8), "max_rank": 7}, 2),
        ({"energy": 16 / 21.25}, 1),
        ({"energy": 0.9}, 2),
        ({"energy": 1.0}, 4),
        ({"above_noise": True}, 4),
        ({"above_noise": True, "max_rank": 3}, 3),
    ],
)
def test_the_rank_of_one_matrix(options: dict[str, object], rank: int):
    assert Policy(**options).wanted([S]) == rank


def test_a_stack_gets_what_its_neediest_expert_needs_and_noise_gets_nothing():
    assert Policy(energy=0.9).wanted([S, np.ones(10), np.zeros(0)]) == 9
    assert Policy(energy=0.9).wanted([np.zeros(0)]) == Policy(above_noise=True, ranks=(8,)).wanted([np.zeros(0)]) == 0


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30), st.floats(0.01, 1))
def test_it_is_the_smallest_rank_that_holds_the_share(values: list[float], share: float):
    s = np.sort(values)[::-1]
    r = directions_for(s, share)
    energy = s**2
    assert energy[:r].sum() >= share * energy.sum() * (1 - 1e-9)
    assert r == 1 or energy[: r - 1].sum() < share * energy.sum() * (1 + 1e-9)


def test_menus_end_where_the_signal_does_and_take_the_given_ranks():
    ((ranks, energy),) = menus(Policy(parameters=9), [[S]])
    assert list(ranks) == [1, 2, 3, 4]
    assert list(energy) == [16, 20, 21, 21.25]
    ((ranks, energy),) = menus(Policy(parameters=9, ranks=(2, 8, 16)), [[S]])
    assert list(ranks) == [2, 8]
    assert list(energy) == [20, 21.25]
    ((ranks, energy),) = menus(Policy(parameters=9, max_rank=3), [[S, S[:1]]])
    assert list(ranks) == [1, 2, 3]
    assert list(energy) == [32, 36, 37]
    assert not len(menus(Policy(parameters=9), [[np.zeros(0)]])[0][0])
