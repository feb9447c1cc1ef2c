"""Claims about learning and retention in one domain, checked on the endpoints and fronts of its groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from deltaw.comparison.claims.evidence import Found, at_end, at_equal_learning, claim
from deltaw.comparison.claims.sources import BIDERMAN, CONSISTENCY, MORA
from deltaw.comparison.claims.verdicts import Claim, ClaimEvidence
from deltaw.comparison.endpoints import Endpoints
from deltaw.comparison.fronts import FrontDifference
from deltaw.comparison.manifest import AXES
from deltaw.comparison.roles import Arena
from deltaw.comparison.runs import Runs
from deltaw.comparison.score_differences import Weighted, at_endpoints, score_combination, score_endpoints
from deltaw.comparison.welch import ALPHA, Estimate, holm, two_sided

LEARNING, RETENTION = AXES
NEARLY = 0.25  # "about like full": within a quarter of what LoRA changes
HIGH_RANK, WIDTHS = 256, 16  # the paper's high rank, which is a sixteenth of its model's width
ENDPOINT = (
    "Each group at the largest number of tokens that both have and its best setting there; {what}. Welch's t over "
    "seeds, Holm over the comparisons. For: above 0 at 5 %."
)
FRONT = (
    "Fronts over tokens and settings, see `fronts`; mean over the range of learning that both reach of ({what}), its "
    "interval takes in seeds and what the points leave open of the curve between them. For: above 0 at 5 %, Holm over "
    "the comparisons."
)
CODE, MATHS = ("code",), ("maths", "math", "mathematics")


def of_arena(runs: Runs, a: Arena, fronts: Sequence[FrontDifference]) -> Iterator[Claim]:
    """The claims that concern one domain."""
    yield from _biderman(runs, a, fronts)
    yield _high_rank(runs, a)
    yield _regularises(runs, a)
    yield _like_plain(runs, a)
    yield from _consistency(runs, a, fronts)
    pairs = [(m, g) for rank, m in a.mora for r, g in a.lora if r is not None and r == rank]
    yield claim(
        "mora-learns-more",
        "MoRA learns new facts that LoRA of equal size cannot",
        ENDPOINT.format(what="learning of MoRA − learning of LoRA with the same rank (equal parameters)"),
        a,
        [at_end(runs, m, g, LEARNING) for m, g in pairs],
        "needs learning scores of MoRA and of a LoRA group of the same rank",
        MORA,
    )


def _biderman(runs: Runs, a: Arena, fronts: Sequence[FrontDifference]) -> Iterator[Claim]:
    """LoRA learns less and forgets less; and at equal learning."""
    lora = [g for _, g in a.lora]
    yield claim(
        "lora-learns-less",
        "LoRA learns less than full fine-tuning",
        ENDPOINT.format(what="learning of full − learning of LoRA"),
        a,
        [at_end(runs, a.full, g, LEARNING) for g in lora],
        "needs learning scores of full fine-tuning and of a LoRA group",
        BIDERMAN,
    )
    yield claim(
        "lora-forgets-less",
        "LoRA forgets less than full fine-tuning",
        ENDPOINT.format(what="retention of LoRA − that of full (higher: more was kept)"),
        a,
        [at_end(runs, g, a.full, RETENTION) for g in lora],
        "needs retention scores of full fine-tuning and of a LoRA group",
        BIDERMAN,
    )
    yield claim(
        "lora-forgets-less-at-equal-learning",
        "LoRA forgets less than full fine-tuning that learned as much",
        FRONT.format(what="retention of LoRA − that of full"),
        a,
        [at_equal_learning(fronts, g, a.full) for g in lora],
        "needs learning and retention scores of full fine-tuning and LoRA at several tokens or learning rates",
        BIDERMAN,
    )


def _consistency(runs: Runs, a: Arena, fronts: Sequence[FrontDifference]) -> Iterator[Claim]:
    """The counter-claim: with the optimiser of pretraining, full fine-tuning forgets less than LoRA."""
    pairs = [(full, g) for full in a.same_optimiser for _, g in a.lora]
    needs = (
        "full fine-tuning whose optimizer is that of the pretraining (hyperparameters.optimizer equal to "
        "hyperparameters.pretraining_optimizer), and of a LoRA group"
    )
    yield claim(
        "full-with-same-optimiser-forgets-less",
        "Full fine-tuning with the optimiser of pretraining forgets less than LoRA",
        ENDPOINT.format(what="retention of full with the pretraining's optimiser − that of LoRA"),
        a,
        [at_end(runs, full, g, RETENTION) for full, g in pairs],
        f"needs retention scores of {needs}",
        CONSISTENCY,
    )
    yield claim(
        "full-with-same-optimiser-forgets-less-at-equal-learning",
        "Full fine-tuning with the optimiser of pretraining forgets less than LoRA that learned as much",
        FRONT.format(what="retention of full with the pretraining's optimiser − that of LoRA"),
        a,
        [at_equal_learning(fronts, full, g) for full, g in pairs],
        f"needs learning and retention scores at several tokens or learning rates of {needs}",
        CONSISTENCY,
    )


def _regularises(runs: Runs, a: Arena) -> Claim:
    return claim(
        "lora-regularises-more",
        "LoRA keeps more of what the base knew than weight decay and attention dropout do",
        ENDPOINT.format(what="retention of LoRA − that of full fine-tuning with decay or dropout"),
        a,
        [at_end(runs, g, arm, RETENTION) for _, g in a.lora for arm in _arms(a)],
        "needs retention scores of LoRA and of full fine-tuning with weight decay or dropout",
        BIDERMAN,
    )


def _arms(a: Arena) -> list[str]:
    return [*a.decay, *(g for g in a.dropout if g not in a.decay)]


def _high_rank(runs: Runs, a: Arena) -> Claim:
    """In maths, LoRA of high rank forgets nearly as much as full fine-tuning."""
    rule = (
        f"In maths, of the highest LoRA rank (at least {HIGH_RANK}, or a {WIDTHS}th of the width where the weights are "
        f"known) and the lowest: |retention of the highest − that of full| is at most {100 * NEARLY:.0f} % of "
        "(retention of the lowest − that of full), which must be above 0 by itself. For: within that at 5 %, errors of "
        "all three groups counted; against: beyond it."
    )
    text = "In maths, LoRA of rank 256 forgets nearly as much as full fine-tuning"
    needs = 'needs maths runs (hyperparameters.domain = "maths") of full fine-tuning and two LoRA ranks'
    return claim("high-rank-forgets-like-full", text, rule, a, [_nearly_full(runs, a)], needs, BIDERMAN)


def _nearly_full(runs: Runs, a: Arena) -> Found:
    ranked = [(r, g) for r, g in a.lora if r is not None]
    if a.domain not in MATHS or a.full is None or len(ranked) < 2:
        return None
    (_, low), (rank, high) = ranked[0], ranked[-1]
    least = high_rank(runs, high)
    if rank < least:
        return f"the highest rank is {rank}; the claim is about a rank of at least {least:g}"
    ends, base = score_endpoints(runs, high, a.full, RETENTION), score_endpoints(runs, low, a.full, RETENTION)
    if ends is None or base is None:
        return at_end(runs, high if ends is None else low, a.full, RETENTION) if ends or base else None
    gap = at_endpoints(base, RETENTION).estimate
    if gap.value <= 0 or (gap.known and not 2 * gap.above() < ALPHA):
        return f"{low} did not keep more than {a.full} beyond chance, so there is no gap to measure rank {rank} by"
    return _nearly(ends, base, f"{high} − {a.full} on {RETENTION}", RETENTION)


def _nearly(ends: Endpoints, yard: Endpoints, what: str, axis: str) -> ClaimEvidence:
    """That |a − b| of `ends` is within a quarter of |a − b| of `yard`: two one-sided tests with the errors of both."""
    trials = max(ends.trials, yard.trials)
    allowed = NEARLY * at_endpoints(yard, axis).estimate.value
    share = math.copysign(NEARLY, allowed)
    bounds = [
        score_combination(
            [
                *(Weighted(-sign, ends.a), Weighted(sign, ends.b)),
                *(Weighted(share, yard.a), Weighted(-share, yard.b)),
            ],
            axis,
            trials,
        ).estimate
        for sign in (1.0, -1.0)
    ]
    d = at_endpoints(ends, axis)
    size = abs(allowed)
    note = f", allowed ±{size:.3g}"
    lines = (-size, size)
    return ClaimEvidence(
        what, d.estimate, bounds, items=d.items, note=note, lines=lines, where=ends.where, paired=d.paired
    )


def high_rank(runs: Runs, group: str) -> float:
    """The least rank that the claim about high ranks speaks of: 256, or a sixteenth of the model's width."""
    for r in runs.representatives(group):
        if r.layers is not None:
            inside = r.layers[r.layers["kind"].isin(("attention", "mlp"))]
            if len(inside):
                return min(HIGH_RANK, float(np.median(np.minimum(inside["rows"], inside["cols"]))) / WIDTHS)
    return HIGH_RANK


def _like_plain(runs: Runs, a: Arena) -> Claim:
    """Decay and dropout learn and forget about like plain full fine-tuning."""
    rule = (
        f"On each axis, |arm − plain full| is at most {100 * NEARLY:.0f} % of the smallest |LoRA − plain full| that "
        "differs from 0 at 5 % (Holm over the LoRA groups and both axes). For: within that at 5 %, errors of all three "
        "groups counted; against: beyond it."
    )
    found: list[Found] = []
    yardsticks = _yardsticks(runs, a)
    for axis in AXES:
        if a.full is None or axis not in yardsticks:
            continue
        if yardsticks[axis] is None and _arms(a):
            found.append(f"no LoRA group differs from {a.full} on {axis} beyond chance: there is no yardstick")
            continue
        found += [_within(runs, arm, a.full, yardsticks[axis], axis) for arm in _arms(a)]
    return claim(
        "decay-and-dropout-like-plain",
        "Weight decay and attention dropout learn and forget about like plain full fine-tuning",
        rule,
        a,
        found,
        "needs scores of plain full fine-tuning, of the same with decay or dropout, and of LoRA as the yardstick",
        BIDERMAN,
    )


def _yardsticks(runs: Runs, a: Arena) -> dict[str, str | None]:
    """By axis the LoRA group whose difference from plain is the smallest that is decided; None if none is.

    With a single seed nothing is decided: then the smallest difference of the points.
    """
    effects: list[tuple[str, str, Estimate]] = []
    for axis in AXES:
        for _, g in a.lora:
            ends = score_endpoints(runs, g, a.full, axis) if a.full is not None else None
            if ends is not None:
                effects.append((axis, g, at_endpoints(ends, axis).estimate))
    p = holm(np.array([two_sided(e) for _, _, e in effects], dtype=np.float64))
    out: dict[str, str | None] = {}
    for axis in dict.fromkeys(axis for axis, _, _ in effects):
        mine = [(abs(e.value), g, e.known, q) for (x, g, e), q in zip(effects, map(float, p), strict=True) if x == axis]
        clear = [(size, g) for size, g, known, q in mine if q < ALPHA or not known]
        out[axis] = min(clear)[1] if clear else None
    return out


def _within(runs: Runs, arm: str, plain: str, lora: str | None, axis: str) -> Found:
    """Whether an arm's difference from plain is within a quarter of a LoRA group's."""
    if lora is None:
        return None
    ends, wide = score_endpoints(runs, arm, plain, axis), score_endpoints(runs, lora, plain, axis)
    if ends is None or wide is None:
        return at_end(runs, arm, plain, axis)
    return _nearly(ends, wide, f"{arm} − {plain} on {axis}", axis)
