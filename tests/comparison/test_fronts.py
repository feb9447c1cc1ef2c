import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from deltaw.comparison.front_error import Corners, corner_weights, seed_error
from deltaw.comparison.front_sag import sag
from deltaw.comparison.fronts import MEAN, common_range, compare_fronts, front, fronts_frame, mean_height, ranges
from deltaw.comparison.runs import Runs

Scored = Callable[..., Runs]


def frame_of(runs: Runs) -> pd.DataFrame:
    return fronts_frame(compare_fronts(runs))


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(points)
def test_front_is_what_nothing_beats(found: list[tuple[int, int]]) -> None:
    f = front(found)
    kept = set(zip(f.x, f.y, strict=True))
    for x, y in found:
        beaten = any(u >= x and v >= y and (u, v) != (x, y) for u, v in found)
        assert ((x, y) in kept) != beaten
    assert (np.diff(f.x) > 0).all()
    assert (np.diff(f.y) < 0).all()


def test_missing_scores_are_no_points() -> None:
    assert len(front([(math.nan, 1.0), (1.0, math.nan)]).x) == 0


def test_height_between_points_is_linear() -> None:
    f = front([(0.0, 1.0), (1.0, 0.5), (2.0, 0.4)])
    assert mean_height(f, "learning", 0.5, 0.5) == 0.75
    assert mean_height(f, "learning", 0.0, 2.0) == pytest.approx((0.75 + 0.45) / 2)
    assert mean_height(f, "retention", 0.75, 0.75) == 0.5
    assert mean_height(f, "learning", -0.1, 1.0) is None
    assert mean_height(f, "learning", 1.0, 2.1) is None
    dense = np.linspace(0.3, 1.7, 20001)
    expected = np.mean(np.interp(dense, f.x, f.y))
    assert mean_height(f, "learning", 0.3, 1.7) == pytest.approx(expected, abs=1e-4)


def test_common_range() -> None:
    a, b = front([(0, 1), (2, 0)]), front([(1, 3), (3, 2)])
    assert common_range(a, b, "learning") == (1, 2)
    assert common_range(a, b, "retention") is None


scores = st.floats(0.001, 1)


@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=6), st.lists(st.tuples(scores, scores), min_size=1))
def test_both_fronts_have_a_height_everywhere_in_their_overlap(
    a: list[tuple[float, float]], b: list[tuple[float, float]]
) -> None:
    for matched in ("learning", "retention"):
        fronts = front(a), front(b)
        overlap = common_range(*fronts, matched)
        if overlap is not None:
            for low, high in ranges(overlap).values():
                assert all(mean_height(f, matched, low, high) is not None for f in fronts)


@given(scores, scores)
def test_no_level_is_outside_the_overlap(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert all(low <= start <= end <= high for start, end in ranges((low, high)).values())


def sweep(seeds: int, noise: float, gap: float) -> list[tuple[object, ...]]:
    """Two groups at three learning rates: b keeps `gap` more at equal learning, and learns less at each rate."""
    rng = np.random.default_rng(0)
    out: list[tuple[object, ...]] = []
    for group, shift in (("full", 0.0), ("LoRA", gap)):
        for seed in range(seeds):
            for i, lr in enumerate((1e-4, 3e-4, 1e-3)):
                learning = 0.1 * i + (0.05 if group == "full" else 0.0)
                kept = 1.0 - learning + shift + rng.normal(0, noise)
                more = {"seed": seed, "hyperparameters": {"learning_rate": lr}}
                out.append((group, group.lower(), learning, kept, more))
    return out


def test_matched_learning_is_not_the_endpoint(scored: Scored) -> None:
    """At each learning rate LoRA forgets less; at equal learning it does not: the front says so."""
    frame = frame_of(scored(*sweep(3, 0.001, 0.0)))
    row = frame[(frame["matched"] == "learning") & (frame["level"] == MEAN)].iloc[0]
    assert row["difference"] == pytest.approx(0.0, abs=0.003)
    assert row["low"] < 0 < row["high"]
    assert (row["n_seeds_a"], row["n_seeds_b"]) == (3, 3)


def test_a_gap_at_matched_learning_has_its_interval(scored: Scored) -> None:
    frame = frame_of(scored(*sweep(3, 0.002, 0.04)))
    rows = frame[frame["matched"] == "learning"]
    assert set(rows["level"]) == {MEAN, "low", "middle", "high"}
    assert rows[rows["level"] != MEAN]["note"].eq("").all()
    assert rows["difference"].to_numpy() == pytest.approx(-0.04, abs=0.005)
    back = frame[(frame["matched"] == "retention") & (frame["level"] == MEAN)].iloc[0]
    assert back["difference"] == pytest.approx(-0.04, abs=0.005)


def test_interval_of_a_front_covers(scored: Scored) -> None:
    """Seeds move along both axes; the mean difference at equal learning is known."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        runs = []
        for group, gap in (("full", 0.0), ("LoRA", 0.05)):
            for seed in range(3):
                u, v = rng.normal(0, 0.01, 2)
                for i in range(4):
                    x, y = 0.1 * i + u + rng.normal(0, 0.003), 1 - 0.1 * i + gap + v + rng.normal(0, 0.003)
                    runs.append((group, "", x, y, {"seed": seed, "tokens": 100 * i}))
        frame = frame_of(scored(*runs))
        row = frame[(frame["matched"] == "learning") & (frame["level"] == MEAN)].iloc[0]
        covered += row["low"] <= -0.05 <= row["high"]
    assert covered >= 93


def test_no_overlap_is_unknown(scored: Scored) -> None:
    frame = frame_of(scored(("full", "full", 0.3, 0.5, {}), ("LoRA", "lora", 0.2, 0.6, {})))
    assert len(frame) == 2
    assert frame["note"].str.startswith("unknown: the ranges of").all()
    assert frame["difference"].isna().all()


def test_one_seed_has_no_interval(scored: Scored) -> None:
    frame = frame_of(scored(*sweep(1, 0.0, 0.04)))
    assert frame["low"].isna().all()
    assert frame["difference"].notna().all()
    assert frame["note"].str.contains("fewer than two seeds in a group").all()


def test_seeds_that_do_not_differ_are_no_seeds(scored: Scored) -> None:
    frame = frame_of(scored(*sweep(3, 0.0, 0.04)))
    assert frame["low"].isna().all()
    assert frame["note"].str.contains("do not differ at all").all()


def test_other_domains_are_not_compared(scored: Scored) -> None:
    runs = scored(
        ("a", "full", 0.3, 0.5, {"hyperparameters": {"domain": "code"}}),
        ("b", "lora", 0.3, 0.5, {"hyperparameters": {"domain": "maths"}}),
    )
    assert len(frame_of(runs)) == 0


def test_weights_of_the_corners_give_the_mean_height() -> None:
    x, y = np.array([0.0, 1.0, 1.5, 4.0]), np.array([5.0, 3.0, 1.0, 0.0])
    f = front(list(zip(x, y, strict=True)))
    for low, high in ((0.0, 4.0), (0.2, 1.2), (1.0, 1.5), (2.0, 2.0), (1.0, 1.0), (4.0, 4.0)):
        weights = corner_weights(x, low, high)
        assert weights.sum() == pytest.approx(1.0)
        assert weights @ y == pytest.approx(mean_height(f, "learning", low, high))


CURVES = {
    "quadratic": lambda x: 0.6 - 0.3 * x**2,
    "quartic": lambda x: 0.6 - 0.3 * x**4,
    "saturating": lambda x: 0.6 - 0.3 * (1 - np.exp(-3 * x)),
    "logistic": lambda x: 0.6 - 0.3 / (1 + np.exp(-10 * (x - 0.5))),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("n", [2, 3])
def test_few_points_leave_open_all_that_a_falling_curve_may_do(name: str, n: int) -> None:
    curve = CURVES[name]
    x = np.linspace(0.1, 0.9, n)
    f = front(list(zip(x, curve(x), strict=True)))
    for low, high in ((0.1, 0.9), (0.3, 0.7), (0.15, 0.2), (0.33, 0.33)):
        dense = np.linspace(low, high, 4001)
        true, chord = float(np.mean(curve(dense))), mean_height(f, "learning", low, high)
        assert chord is not None
        down, up = sag(f.x, f.y, low, high)
        assert chord - down - 1e-4 <= true <= chord + up + 1e-4
    assert sag(f.x, f.y, 0.1, 0.1) == (0, 0)  # a point is known


@pytest.mark.parametrize("n", [4, 6, 9])
def test_the_bends_of_a_parabola_are_seen_exactly(n: int) -> None:
    """Its second difference is the same everywhere, and the chords lie below it by just the sag."""
    curve = CURVES["quadratic"]
    x = np.linspace(0.1, 0.9, n)
    f = front(list(zip(x, curve(x), strict=True)))
    for low, high in ((0.1, 0.9), (0.3, 0.7), (0.15, 0.2)):
        true, chord = float(np.mean(curve(np.linspace(low, high, 4001)))), mean_height(f, "learning", low, high)
        assert chord is not None
        down, up = sag(f.x, f.y, low, high)
        assert down == pytest.approx(0, abs=1e-12)
        assert true == pytest.approx(chord + up, abs=1e-4)
        assert sag(f.x, f.y, 0.2, 0.2).up == pytest.approx(curve(0.2) - np.interp(0.2, f.x, f.y), abs=1e-9)


def test_more_points_leave_less_open() -> None:
    curve = CURVES["quadratic"]
    widths = [sum(sag(x := np.linspace(0.1, 0.9, n), curve(x), 0.1, 0.9)) for n in (2, 3, 4, 6, 12)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.01 * widths[0]


def test_a_gap_between_points_is_not_bridged_by_their_bends() -> None:
    x = np.array([0.1, 0.8, 0.9, 0.95])
    y = CURVES["quadratic"](x)
    down, up = sag(x, y, 0.2, 0.7)  # all within the gap: only that the curve falls is known
    assert down + up == pytest.approx(y[0] - y[1])


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_the_error_of_a_front_is_not_too_small(shared: float) -> None:
    """Also where a seed lies high along its whole curve."""
    rng = np.random.default_rng(2)
    x = np.linspace(0.1, 0.9, 5)
    y = CURVES["quadratic"](x)
    missed = 0
    for _ in range(300):
        fronts = []
        for _ in range(2):
            noise = math.sqrt(shared) * rng.normal(size=(1, 3)) + math.sqrt(1 - shared) * rng.normal(size=(5, 3))
            seeds = y[:, None] + 0.01 * noise
            found = [{s: (float(x[i]), float(seeds[i, s])) for s in range(3)} for i in range(5)]
            fronts.append(Corners(x, seeds.mean(1), found))
        gap = corner_weights(x, 0.1, 0.9) @ (fronts[0].y - fronts[1].y)
        error, df, seeds_used = seed_error(*fronts, 0.1, 0.9)
        missed += abs(gap) > error * stats.t.ppf(0.975, df)
        assert seeds_used == (3, 3)
    assert missed <= 0.05 * 300 + 6
