"""A budget is spent as well as any choice could: every choice of small cases is tried."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.edits import budget
from deltaw.edits.budget import Menu, spend
from deltaw.edits.policies import Policy, menus


def best_of_all(offers: list[Menu], room: int) -> float:
    """What the best of all choices keeps."""
    each = [[(0, 0.0), *((int(r) * o.cost, float(e)) for r, e in zip(o.ranks, o.energy, strict=True))] for o in offers]
    return max(sum(e for _, e in c) for c in itertools.product(*each) if sum(cost for cost, _ in c) <= room)


def offered(costs: list[int], spectra: list[np.ndarray], ranks: tuple[int, ...] = ()) -> list[Menu]:
    found = menus(Policy(parameters=1, ranks=ranks), [[s] for s in spectra])
    return [Menu(cost, *menu) for cost, menu in zip(costs, found, strict=True)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Menu], int]:
    count = draw(st.integers(1, 4))
    costs = draw(st.lists(st.integers(1, 9).map(lambda c: 3 * c), min_size=count, max_size=count))
    g = np.random.default_rng(draw(st.integers(0, 2**32)))
    spectra = [np.sort(g.exponential(size=draw(st.integers(0, 4))))[::-1] for _ in range(count)]
    ranks = draw(st.sampled_from([(), (1, 2), (2, 4), (3,)]))
    return offered(costs, spectra, ranks), draw(st.integers(0, 90))


@given(cases())
@settings(max_examples=300)
def test_it_is_the_best_of_all_choices(case: tuple[list[Menu], int]):
    offers, room = case
    found = spend(offers, room)
    assert sum(r * o.cost for r, o in zip(found.ranks, offers, strict=True)) <= room
    assert all(r == 0 or r in o.ranks for r, o in zip(found.ranks, offers, strict=True))
    assert found.energy == pytest.approx(best_of_all(offers, room), rel=1e-12)
    assert found.gap == 0


@given(cases())
@settings(max_examples=300)
def test_without_room_for_the_table_the_bound_holds_and_the_budget_is_kept(case: tuple[list[Menu], int]):
    offers, room = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "LARGEST_TABLE", -1)
        found = spend(offers, room)
    assert sum(r * o.cost for r, o in zip(found.ranks, offers, strict=True)) <= room
    best = best_of_all(offers, room)
    assert found.energy <= best * (1 + 1e-12) <= found.bound * (1 + 1e-9)
    assert best <= found.energy / (1 - found.gap) * (1 + 1e-9) if found.gap < 1 else True


def test_greedy_by_energy_per_number_is_not_enough():
    """One direction of the small matrix is the better rate, and leaves no room for the large one."""
    offers = offered([6, 10], [np.sqrt([7.0]), np.sqrt([11.0])])
    assert spend(offers, 10).ranks == (0, 1)
    assert spend(offers, 15).ranks == (0, 1)
    assert spend(offers, 16).ranks == (1, 1)


def test_a_large_model_is_spent_exactly():
    g = np.random.default_rng(0)
    shapes = [(4096, 4096)] * 4 + [(11008, 4096)] * 3
    costs = [m + n for _ in range(8) for m, n in shapes]
    offers = offered(costs, [np.sort(g.pareto(2, 600))[::-1] for _ in costs])
    found = spend(offers, 10_000_000)
    spent = sum(r * c for r, c in zip(found.ranks, costs, strict=True))
    assert found.gap == 0
    assert 10_000_000 - min(costs) < spent <= 10_000_000
