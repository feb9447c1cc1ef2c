"""The map over independent units: an error anywhere in a worker reaches the caller, and nothing waits for ever."""

import pytest

from deltaw.measurement.engines.threads import Budget, map_unordered


def run(function=lambda item, context: item, need=lambda item: 1, prepare=lambda number: None):
    return list(map_unordered(function, [1, 2, 3, 4], jobs=2, budget=Budget(10), need=need, prepare=prepare))


def broken(*_: object):
    raise ValueError("broken")


def test_every_item_once():
    assert sorted(run()) == [(1, 1), (2, 2), (3, 3), (4, 4)]


@pytest.mark.parametrize("where", ["function", "need", "prepare"])
def test_an_error_anywhere_in_a_worker_is_raised(where: str):
    with pytest.raises(ValueError, match="broken"):
        run(**{where: broken})
