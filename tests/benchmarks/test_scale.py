"""The costs of a 671B pair and the simulator of workers, where the answer is known."""

import pytest

from benchmarks.scale import DEEPSEEK_V3, Fleet, Unit, parts, simulate, tasks
from deltaw.measurement.dividing import units_of
from deltaw.results.shares import Share
from deltaw.types import Pair

TEN = [Unit(2.0)] * 10


def test_the_shapes_are_those_of_671_billion_numbers():
    assert sum(k.m * k.n * k.count for k in DEEPSEEK_V3) == pytest.approx(671e9, rel=1e-3)
    experts = DEEPSEEK_V3[0]
    assert (experts.bytes, experts.requests) == (2048 * 7168 + 4 * 16 * 56, 2)


def test_alike_workers_share_alike_work():
    assert simulate(parts(TEN, 5), Fleet(5, start=3)) == 3 + 2 * 2
    assert simulate(tasks(TEN, 1.0), Fleet(5, requeue=True)) == 4
    assert simulate(parts(TEN, 1), Fleet(1)) == 20


def test_reading_counts_where_it_is_slower_and_is_shared():
    units = [Unit(1.0, 1e9)] * 4
    assert simulate(parts(units, 4), Fleet(4, bandwidth=1e8)) == 10
    assert simulate(parts(units, 4), Fleet(4, bandwidth=1e9, shared=1e9)) == 4
    assert simulate(parts(units, 4), Fleet(4, bandwidth=1e10)) == 1


def test_a_slow_worker_holds_its_part_and_not_the_tasks():
    slow = {"slow_share": 1 / 2, "slow_by": 4.0}
    units = [Unit(1.0)] * 800
    by_part, by_task = (simulate(plan, Fleet(8, **slow)) for plan in (parts(units, 8), tasks(units, 1.0)))
    assert by_part == 400
    speed = 800 / by_task  # of all together: between one and all of them slow
    assert 2 < speed < 8
    assert by_task < by_part


def test_a_failure_costs_the_unit_in_work_and_the_time_away():
    units = [Unit(10.0)] * 50
    fleet = Fleet(1, failures_per_hour=36, back_after=5.0, start=1.0)
    took = [simulate(parts(units, 1), fleet, seed) for seed in range(20)]
    assert min(took) >= 501
    lost = [t - 501 for t in took]
    # every failure wastes what was done of a unit and 6 seconds; one in 100 s of work comes some 5 times
    assert 5 * 6 / 2 < sum(lost) / len(lost) < 5 * (6 + 10) * 2
    calm = [simulate(tasks(units, 1.0), Fleet(5, failures_per_hour=36, requeue=True), seed) for seed in range(20)]
    assert min(calm) >= 100
    assert len(set(calm)) > 1


def test_a_lost_task_is_done_by_one_who_is_idle():
    for seed in range(50):
        units = [Unit(100.0)]
        alone = simulate([units], Fleet(1, failures_per_hour=20, back_after=1e6), seed)
        shared = simulate([units], Fleet(9, failures_per_hour=20, back_after=1e6, requeue=True), seed)
        if alone > 1e6:
            assert shared < 1e4
            return
    raise AssertionError("no run failed")


def test_the_division_is_that_of_part():
    import torch

    from deltaw.checkpoints.memory import MemoryHandle

    sizes = [(64, 64), (64, 32), (48, 48), (16, 8), (40, 40), (64, 48)]
    pairs = [[Pair(str(i), None, MemoryHandle(str(i), torch.empty(s, device="meta")))] for i, s in enumerate(sizes)]
    from deltaw.measurement.cost import work

    units = [Unit(work(unit)) for unit in pairs]
    ours = sorted(sorted(u.seconds for u in part) for part in parts(units, 3))
    theirs = sorted(sorted(work(u) for u in units_of(Share(i, 3), pairs)) for i in (1, 2, 3))
    assert ours == theirs
