"""What a claim is, and how the runs decide it: agrees, disagrees or cannot tell, by rules that are stated.

A claim is a list of comparisons (one for each LoRA group, say), each a number of which the claim says that it is above
zero. Its evidence is a value for each whole run, compared over seeds by Welch's t; the p values of one claim are
adjusted by Holm for their number, so that where nothing differs a claim gets a verdict in at most 5 % of tables. A
comparison with a single seed on one side is never decided: the direction of its point is given.

The runs *agree* where every comparison that is decided is decided for the claim, and *disagree* where every such is
decided against it; a claim that says "and" needs all of its comparisons. An undecided comparison whose point lies on
the other side, and at least half as far as the smallest effect that was decided, counts against: one then *cannot
tell*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from deltaw.comparison.welch import ALPHA, NAN, Estimate, holm_steps
from deltaw.types import Interval

Verdict = Literal["agrees", "disagrees", "cannot tell"]
Basis = Literal["", "points", "test items only", "intervals"]
Scale = Literal["difference", "ratio", "number", "correlation"]

ITEMS = 1.959963984540054  # standard errors of an evaluation's test items
WEIGHS = 0.5  # of the smallest decided effect: a point on the other side that is so large counts against


@dataclass(frozen=True)
class ClaimEvidence:
    """One comparison.

    Attributes:
        what: The two things compared, and on what.
        estimate: The number that is shown.
        bounds: What the claim says is above 0, all of it; by default the number itself.
        scale: How the number is shown; a ratio is the exponential of the estimate, a correlation its tanh.
        items: The standard error of the number by the evaluation's test items alone, if that is known.
        paired: Whether that is of differences item by item.
        note: Said after the number.
        lines: Where the claim draws its line (or two), on the scale of the estimate.
        where: At how many tokens, best of how many settings.
    """

    what: str
    estimate: Estimate
    bounds: Sequence[Estimate] = ()
    scale: Scale = "difference"
    items: float = NAN
    note: str = ""
    lines: Sequence[float] = (0.0,)
    where: str = ""
    paired: bool = False

    @property
    def tests(self) -> Sequence[Estimate]:
        """What the claim says is above 0."""
        return self.bounds or (self.estimate,)

    @property
    def p(self) -> float:
        """Two-sided: for the claim all bounds must be above 0, against it one below; NaN without seeds."""
        if not all(b.known for b in self.tests):
            return NAN
        return min(1.0, 2 * min(max(b.above() for b in self.tests), min(b.below() for b in self.tests)))

    @property
    def point(self) -> float:
        """How far the points alone are on the claim's side."""
        return min(b.value for b in self.tests)

    @property
    def basis(self) -> Basis:
        """What the comparison rests on."""
        if math.isfinite(self.p):
            return "intervals"
        return "test items only" if math.isfinite(self.items) else "points"

    def interval(self, alpha: float = ALPHA) -> Interval:
        """The shown number with its interval over seeds; NaN bounds without seeds."""
        found = self.estimate.interval(alpha)
        if self.scale == "ratio":
            return Interval(*map(_exp, found))
        return Interval(*map(math.tanh, found)) if self.scale == "correlation" else found

    def text(self, alpha: float = ALPHA) -> str:
        """`LoRA r=16 − full on learning at 20,000,000 tokens: −0.101 [−0.13, −0.07]`."""
        number = show(self.interval(alpha), self.scale)
        if self.basis == "test items only":
            half = ITEMS * self.items
            number += f" (±{half:.2g} by the {'paired ' if self.paired else ''}test items alone)"
        return f"{self.what}{self.where}: {number}{self.note}"


@dataclass(frozen=True)
class Decision:
    """A comparison and what the runs say of it.

    Attributes:
        evidence: The comparison.
        p: Adjusted for the number of comparisons of the claim; NaN without seeds.
        alpha: The level at which its interval is given.
        speaks: 1 for the claim, −1 against it, 0 undecided.
    """

    evidence: ClaimEvidence
    p: float
    alpha: float
    speaks: int


@dataclass(frozen=True)
class Claim:
    """A claim and what the runs say about it; the fields are columns of `claims`.

    Attributes:
        claim: A short identifier.
        text: The claim in words.
        source: Who claims it.
        rule: How the verdict is reached.
        about: The domain and training it was checked on; empty if the runs do not say.
        evidence: The comparisons.
        missing: Why nothing can be said, if so.
        needs_all: The claim says "and": it agrees only if every comparison does.
    """

    claim: str
    text: str
    source: str
    rule: str
    about: str = ""
    evidence: Sequence[ClaimEvidence] = field(default_factory=list)
    missing: str = ""
    needs_all: bool = False

    @cached_property
    def decisions(self) -> list[Decision]:
        """Every comparison, adjusted for their number."""
        adjusted, level = holm_steps(np.array([e.p for e in self.evidence], dtype=np.float64))
        out = []
        for e, p, alpha in zip(self.evidence, map(float, adjusted), map(float, level), strict=True):
            decided = p < ALPHA
            against = decided and min(b.below() for b in e.tests) < max(b.above() for b in e.tests)
            out.append(Decision(e, p, alpha, -1 if against else int(decided)))
        return out

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many comparisons are decided for the claim, against it, and not."""
        spoken = [d.speaks for d in self.decisions]
        return spoken.count(1), spoken.count(-1), spoken.count(0)

    @property
    def opposed(self) -> int:
        """How many undecided comparisons lie on the other side of those that are decided, and far enough to count."""
        decided = [d for d in self.decisions if d.speaks]
        if not decided:
            return 0
        side = decided[0].speaks
        least = WEIGHS * min(abs(d.evidence.point) for d in decided)
        return sum(d.speaks == 0 and -side * d.evidence.point >= least for d in self.decisions)

    @property
    def verdict(self) -> Verdict:
        """What these runs say."""
        agree, against, undecided = self.counts
        if self.needs_all:
            return "disagrees" if against else "agrees" if agree and not undecided else "cannot tell"
        if bool(agree) == bool(against) or self.opposed:
            return "cannot tell"
        return "agrees" if agree else "disagrees"

    @property
    def basis(self) -> Basis:
        """What the verdict rests on: the best that any comparison has."""
        found = {e.basis for e in self.evidence}
        return next((b for b in ("intervals", "test items only", "points") if b in found), "")

    @property
    def p_claim(self) -> float:
        """The smallest adjusted p of its comparisons; NaN without seeds."""
        found = [d.p for d in self.decisions if math.isfinite(d.p)]
        return min(found, default=NAN)

    @property
    def grade(self) -> str:
        """`2 of 3, 1 undecided`; empty for a single comparison."""
        agree, against, undecided = self.counts
        n = len(self.evidence)
        if n < 2:
            return ""
        if not agree and not against:
            return f"none of {n} decided"
        first, word = (against, " against") if not agree else (agree, "")
        rest = [f"{against} against"] if agree and against else []
        rest += [f"{undecided} undecided"] if undecided else []
        return ", ".join([f"{first} of {n}{word}", *rest])

    @property
    def says(self) -> str:
        """The numbers, and what they rest on."""
        if not self.evidence:
            return self.missing
        parts = [f"{self.grade[0].upper()}{self.grade[1:]}."] if self.grade else []
        parts += [f"{self._points()}"] if self.basis != "intervals" else []
        if self.opposed:
            parts.append(f"{self.opposed} undecided {'lies' if self.opposed == 1 else 'lie'} on the other side.")
        return " ".join([*parts, "; ".join(d.evidence.text(d.alpha) for d in self.decisions) + "."])

    def _points(self) -> str:
        points = [e.point for e in self.evidence]
        n, agree, against = len(points), sum(p > 0 for p in points), sum(p < 0 for p in points)
        sides = (("for", agree), ("against", against), ("on neither side of", n - agree - against))
        told = " and ".join(f"{k} {side} it" for side, k in sides if k) if n > 1 else _side(points[0])
        direction = f"the points: {told}" if n > 1 else f"the point is {told}"
        what = "One seed on a side: no verdict" if self.basis == "points" else "Test items only, one seed: no verdict"
        return f"{what}; {direction}."

    @property
    def decides(self) -> str:
        """What would decide the comparisons that are not decided; empty if nothing is open."""
        open_ = [d for d in self.decisions if not d.speaks]
        if not open_:
            return ""
        if any(not math.isfinite(d.p) for d in open_):
            return "Two seeds or more in each group (better three to five) would give it intervals."
        needed = [n for d in open_ if (n := seeds_needed(d.evidence, d.alpha)) is not None]
        if not needed:
            return "More seeds would not decide it soon: the points lie near what the claim's rule draws as its line."
        return f"With the spread seen here, about {max(needed)} seeds in each group would decide what is open."


def _side(point: float) -> str:
    return "for it" if point > 0 else "against it" if point < 0 else "on neither side of it"


def seeds_needed(evidence: ClaimEvidence, alpha: float = ALPHA, most: int = 50) -> int | None:
    """How many seeds in each group would make this effect, with this spread, leave out 0; None if more than `most`."""
    from scipy.special import stdtrit

    test = min(evidence.tests, key=lambda b: abs(b.value))
    effect = max(abs(test.value) - max(test.down, test.up), 0.0)
    now = max(2.0, test.df / 2 + 1)
    if not math.isfinite(now):  # a test of items: it does not know of seeds
        return None
    for n in range(math.floor(now) + 1, most + 1):  # those that are there did not decide it
        error = test.error * math.sqrt(now / n)
        if effect > error * -float(stdtrit(2 * n - 2, alpha / 2)):
            return n
    return None


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0)) if not math.isnan(x) else NAN


def show(interval: Interval, scale: Scale = "number") -> str:
    """`0.263 [0.25, 0.28]`, `+0.1 [−0.02, +0.2]`, `× 1.3 [1.1, 1.5]`, or the number alone."""
    sign = "+" if scale == "difference" else ""
    value, low, high = (f"{x:{sign}.3g}".replace("-", "−") for x in interval)
    value = f"× {value}" if scale == "ratio" else value
    return f"{value} [{low}, {high}]" if math.isfinite(interval.low) else value
