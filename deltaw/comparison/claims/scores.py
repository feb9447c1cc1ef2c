"""Claims about learning and retention, checked on scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from deltaw.comparison.claims.verdicts import BIDERMAN, MORA, Claim, Evidence
from deltaw.comparison.fingerprint import score_difference
from deltaw.comparison.fronts import MEAN
from deltaw.comparison.manifest import AXES
from deltaw.comparison.roles import Arena
from deltaw.comparison.runs import Runs, arena, mean_scores
from deltaw.types import Interval

if TYPE_CHECKING:
    import pandas as pd

LEARNING, RETENTION = AXES
SHARE_OF_RANGE = 0.1  # points that differ by less say nothing
NEARLY = 0.25  # "about like full": within a quarter of what LoRA changes
ENDPOINT = "Each group at its last tokens and best learning rate; {what}. For: the 95 % interval lies above 0."
CODE, MATHS = ("code",), ("maths", "math", "mathematics")
PRETRAINING = ("cpt", "pretraining", "continued pretraining", "continued-pretraining")
INSTRUCTION = ("ift", "sft", "instruction", "instruction tuning", "instruction-tuning", "instruction finetuning")


def of_arena(runs: Runs, a: Arena, fronts: pd.DataFrame) -> Iterator[Claim]:
    """The claims that concern one domain."""
    lora = [g for _, g in a.lora]
    yield _claim(
        "lora-learns-less",
        "LoRA learns less than full fine-tuning",
        ENDPOINT.format(what="learning of full − learning of LoRA"),
        a,
        [_difference(runs, a.full, g, LEARNING) for g in lora if a.full],
        "needs learning scores of full fine-tuning and of a LoRA group",
    )
    yield _claim(
        "lora-forgets-less",
        "LoRA forgets less than full fine-tuning",
        ENDPOINT.format(what="retention of LoRA − that of full (higher: more was kept)"),
        a,
        [_difference(runs, g, a.full, RETENTION) for g in lora if a.full],
        "needs retention scores of full fine-tuning and of a LoRA group",
    )
    yield _matched(a, fronts)
    yield _high_rank(runs, a)
    arms = [*a.decay, *(g for g in a.dropout if g not in a.decay)]
    yield _claim(
        "lora-regularises-more",
        "LoRA keeps more of what the base knew than weight decay and attention dropout do",
        ENDPOINT.format(what="retention of LoRA − that of full fine-tuning with decay or dropout"),
        a,
        [_difference(runs, g, arm, RETENTION) for g in lora for arm in arms],
        "needs retention scores of LoRA and of full fine-tuning with weight decay or dropout",
    )
    yield _like_plain(runs, a, arms)
    pairs = [(m, g) for rank, m in a.mora for r, g in a.lora if r is not None and r == rank]
    yield _claim(
        "mora-learns-more",
        "MoRA learns new facts that LoRA of equal size cannot",
        ENDPOINT.format(what="learning of MoRA − learning of LoRA with the same rank (equal parameters)"),
        a,
        [_difference(runs, m, g, LEARNING) for m, g in pairs],
        "needs learning scores of MoRA and of a LoRA group of the same rank",
        MORA,
    )


def _claim(
    name: str,
    text: str,
    rule: str,
    a: Arena,
    found: Sequence[Evidence | None],
    missing: str,
    source: str = BIDERMAN,
) -> Claim:
    evidence = [e for e in found if e is not None]
    return Claim(name, text, source, rule, a.label, evidence, "" if evidence else f"Cannot be checked: {missing}.")


def _difference(runs: Runs, a: str | None, b: str | None, axis: str) -> Evidence | None:
    """A − b on one axis, of the settings that stand for them."""
    if a is None or b is None:
        return None
    x, y = runs.representatives(a), runs.representatives(b)
    interval = score_difference(x, y, axis)
    if not math.isfinite(interval.value):
        return None
    return Evidence(f"{a} − {b} on {axis}", interval, SHARE_OF_RANGE * score_range(runs, a, axis))


def score_range(runs: Runs, group: str, axis: str) -> float:
    """Max − min of an axis over the settings that may be compared with this group's."""
    home = arena(runs.chosen[group])
    values = [mean_scores(rs)[AXES.index(axis)] for s, rs in runs.settings.items() if arena(s) == home]
    values = [v for v in values if math.isfinite(v)]
    return max(values) - min(values) if values else 0.0


def _matched(a: Arena, fronts: pd.DataFrame) -> Claim:
    """LoRA against full where they learned equally much."""
    rule = (
        "Fronts over tokens and learning rates, see `fronts`; mean over the range of learning that both reach of "
        "(retention of LoRA − that of full). For: the 95 % interval over seeds lies above 0."
    )
    evidence = []
    unknown = 0
    for _, g in a.lora:
        for _, row in fronts[(fronts["matched"] == LEARNING)].iterrows():
            if {row["group_a"], row["group_b"]} != {g, a.full}:
                continue
            if row["level"] == MEAN:
                sign = 1 if row["group_a"] == g else -1
                ends = sorted((sign * row["low"], sign * row["high"]))
                interval = Interval(sign * row["difference"], *ends)
                what = f"{g} − {a.full} on {RETENTION} at equal learning ({row['at']:.3g} on average)"
                margin = SHARE_OF_RANGE * max(abs(row["value_a"] - row["value_b"]), 0.0)
                evidence.append(Evidence(what, interval, margin))
            unknown += row["level"] == ""
    missing = "needs learning and retention scores of full fine-tuning and LoRA at several tokens or learning rates"
    if unknown and not evidence:
        missing = "LoRA and full fine-tuning never learned equally much (their ranges of learning do not overlap)"
    text = "LoRA forgets less than full fine-tuning that learned as much"
    return _claim("lora-forgets-less-at-equal-learning", text, rule, a, evidence, missing)


def _high_rank(runs: Runs, a: Arena) -> Claim:
    """In maths, LoRA of high rank forgets nearly as much as full fine-tuning."""
    rule = (
        f"In maths: the highest rank's gap to full in retention is at most {NEARLY:.0%} of the lowest "
        "rank's gap (the paper: rank 256, a sixteenth of the width). For: the whole interval is within that."
    )
    text = "In maths, LoRA of rank 256 forgets nearly as much as full fine-tuning"
    name = "high-rank-forgets-like-full"
    ranked = [(r, g) for r, g in a.lora if r is not None]
    missing = 'needs maths runs (hyperparameters.domain = "maths") of full fine-tuning and two LoRA ranks'
    if a.domain not in MATHS or a.full is None or len(ranked) < 2:
        return _claim(name, text, rule, a, [], missing)
    low = _difference(runs, ranked[0][1], a.full, RETENTION)
    high = _difference(runs, ranked[-1][1], a.full, RETENTION)
    if low is None or high is None:
        return _claim(name, text, rule, a, [], missing)
    allowed = NEARLY * abs(low.interval.value)
    return _claim(name, text, rule, a, [_within(high, allowed)], missing)


def _within(e: Evidence, allowed: float) -> Evidence:
    """Evidence that a difference is at most so large either way (two one-sided tests)."""
    value, low, high = e.interval
    inside = allowed - abs(value)
    if math.isfinite(low):
        ends = (allowed - max(abs(low), abs(high)), allowed - (0.0 if low <= 0 <= high else min(abs(low), abs(high))))
    else:
        ends = (math.nan, math.nan)
    shown = f"{e.text.rsplit(': ', 1)[1]}, allowed ±{allowed:.3g}"
    return Evidence(e.what, Interval(inside, *ends), 0.0, shown)


def _like_plain(runs: Runs, a: Arena, arms: list[str]) -> Claim:
    """Decay and dropout learn and forget about like plain full fine-tuning."""
    rule = (
        f"On each axis, |arm − plain full| is at most {NEARLY:.0%} of the largest |LoRA − plain full|. For: the whole "
        "interval is within that; against: it is wholly outside."
    )
    found: list[Evidence | None] = []
    for axis in AXES:
        lora = [_difference(runs, g, a.full, axis) for _, g in a.lora]
        effects = [abs(e.interval.value) for e in lora if e is not None]
        for arm in arms if effects else []:
            e = _difference(runs, arm, a.full, axis)
            found.append(_within(e, NEARLY * max(effects)) if e is not None else None)
    return _claim(
        "decay-and-dropout-like-plain",
        "Weight decay and attention dropout learn and forget about like plain full fine-tuning",
        rule,
        a,
        found,
        "needs scores of plain full fine-tuning, of the same with decay or dropout, and of LoRA as the yardstick",
    )


def across(runs: Runs, found: list[Arena]) -> Iterator[Claim]:
    """The claims that compare domains or kinds of training."""
    for axis in AXES:
        yield _gap(
            runs,
            f"{axis}-gap-larger-for-code",
            f"The gap between LoRA and full fine-tuning in {axis} is larger for code than for maths",
            axis,
            [
                (x, y)
                for x in found
                for y in found
                if x.domain in CODE and y.domain in MATHS and x.training == y.training
            ],
            'needs runs of both domains (hyperparameters.domain = "code" and "maths")',
        )
        yield _gap(
            runs,
            f"{axis}-gap-larger-for-pretraining",
            f"The gap in {axis} is larger for continued pretraining than for instruction tuning",
            axis,
            [
                (x, y)
                for x in found
                for y in found
                if x.training in PRETRAINING and y.training in INSTRUCTION and x.domain == y.domain
            ],
            'needs runs of both kinds (hyperparameters.training = "cpt" and "ift")',
        )


def _gap(runs: Runs, name: str, text: str, axis: str, pairs: list[tuple[Arena, Arena]], missing: str) -> Claim:
    rule = (
        "For each LoRA rank that both have: the gap in the first minus the gap in the second, in the units of the "
        "scores. For: the 95 % interval (the two combined in quadrature) lies above 0."
    )
    evidence = []
    sign = -1 if axis == LEARNING else 1  # LoRA is expected to learn less and to keep more
    for x, y in pairs:
        other = {r: g for r, g in y.lora if r is not None}
        for rank, g in x.lora:
            if rank not in other:
                continue
            first = _difference(runs, g, x.full, axis)
            second = _difference(runs, other[rank], y.full, axis)
            if first is None or second is None:
                continue
            value = sign * (first.interval.value - second.interval.value)
            half = math.hypot(*((e.interval.high - e.interval.low) / 2 for e in (first, second)))
            margin = SHARE_OF_RANGE * max(abs(first.interval.value), abs(second.interval.value))
            what = f"gap of rank {rank}, {x.label} − {y.label}"
            evidence.append(Evidence(what, Interval(value, value - half, value + half), margin))
    return Claim(name, text, BIDERMAN, rule, "", evidence, "" if evidence else f"Cannot be checked: {missing}.")
