"""What these runs say about published claims: agrees, disagrees or cannot tell, by rules that are stated.

A claim is a list of comparisons (one per LoRA group, say), each a number of which the claim says that it is above
zero. A comparison speaks for the claim if its 95 % interval lies above zero, against it if below, and is silent
otherwise. Where there is no interval (a single seed and no standard error) the points speak if they differ by more
than a tenth of the range that the scores span, and the verdict says that it rests on points alone. The runs *agree*
if some comparison speaks for the claim and none against, *disagree* if some speaks against and none for, and else one
*cannot tell*.

Sources: Biderman et al. 2024, LoRA Learns Less and Forgets Less; Jiang et al. 2024, MoRA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from deltaw.types import Interval

Verdict = Literal["agrees", "disagrees", "cannot tell"]
BIDERMAN = "Biderman et al. 2024"
MORA = "Jiang et al. 2024"
NAN = math.nan


@dataclass(frozen=True)
class Evidence:
    """One comparison: a number that the claim says is positive.

    Attributes:
        what: The two things compared, and on what.
        interval: The number with its 95 % interval; NaN bounds if there is none.
        margin: Where there is no interval, what the number has to exceed to speak.
        shown: The numbers as a reader would want them (a ratio rather than its logarithm).
    """

    what: str
    interval: Interval
    margin: float = 0.0
    shown: str = ""

    @property
    def speaks(self) -> int:
        """1 for the claim, −1 against, 0 neither."""
        value, low, high = self.interval
        if math.isfinite(low) and math.isfinite(high):
            return int(low > 0) - int(high < 0)
        return int(value > self.margin) - int(value < -self.margin)

    @property
    def text(self) -> str:
        """`LoRA r=16 − full on learning: −0.101 [−0.13, −0.07]`."""
        return f"{self.what}: {self.shown or show(self.interval, signed=True)}"


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
    """

    claim: str
    text: str
    source: str
    rule: str
    about: str = ""
    evidence: Sequence[Evidence] = field(default_factory=list)
    missing: str = ""

    @property
    def verdict(self) -> Verdict:
        """What these runs say."""
        spoken = {e.speaks for e in self.evidence}
        if 1 in spoken and -1 not in spoken:
            return "agrees"
        if -1 in spoken and 1 not in spoken:
            return "disagrees"
        return "cannot tell"

    @property
    def basis(self) -> str:
        """What the verdict rests on."""
        if not self.evidence:
            return ""
        points = [not math.isfinite(e.interval.low) for e in self.evidence]
        return "points" if all(points) else "intervals" if not any(points) else "intervals and points"

    @property
    def says(self) -> str:
        """One sentence with the numbers."""
        if not self.evidence:
            return self.missing
        counts = [sum(e.speaks == s for e in self.evidence) for s in (1, -1, 0)]
        words = [f"{n} {w}" for n, w in zip(counts, ("for", "against", "undecided"), strict=True) if n]
        many = f"{len(self.evidence)} comparisons ({', '.join(words)}). " if len(self.evidence) > 1 else ""
        alone = " No replicate seeds: chance cannot be excluded." if self.basis == "points" else ""
        return many + "; ".join(e.text for e in self.evidence) + "." + alone


def show(interval: Interval, *, signed: bool = False) -> str:
    """`0.263 [0.25, 0.28]`, or the number alone."""
    sign = "+" if signed else ""
    value, low, high = (f"{x:{sign}.3g}".replace("-", "−") for x in interval)
    return f"{value} [{low}, {high}]" if math.isfinite(interval.low) else value
