"""Published claims, each checked on the runs by a rule that is stated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from deltaw.comparison.claims import domains, ranks, recent, scores
from deltaw.comparison.claims.verdicts import Claim
from deltaw.comparison.fronts import FrontDifference
from deltaw.comparison.roles import arenas
from deltaw.comparison.runs import Runs

if TYPE_CHECKING:
    import pandas as pd


def claims_frame(claims: Iterable[Claim]) -> pd.DataFrame:
    """One row per claim (and domain).

    Columns: `claim`, `text`, `about`, `verdict`, `basis`, `for`, `against`, `undecided` (numbers of comparisons),
    `p_claim` (the smallest adjusted p), `says`, `rule`, `source`, `points_for`, `points_against` (on which side the
    points lie, whatever the seeds say), `decides` (what would decide what is open).
    """
    import pandas as pd

    return pd.DataFrame([_row(c) for c in claims])


def _row(c: Claim) -> dict[str, str | int | float]:
    agree, against, undecided = c.counts
    points = [e.point for e in c.evidence]
    return {
        **{"claim": c.claim, "text": c.text, "about": c.about, "verdict": c.verdict, "basis": c.basis},
        **{"for": agree, "against": against, "undecided": undecided, "p_claim": c.p_claim},
        **{"says": c.says, "rule": c.rule, "source": c.source, "points_for": sum(p > 0 for p in points)},
        **{"points_against": sum(p < 0 for p in points), "decides": c.decides},
    }


def all_claims(runs: Runs, fronts: Sequence[FrontDifference]) -> list[Claim]:
    """Every claim, checked."""
    found = arenas(runs)
    out: list[Claim] = []
    for a in found:
        out.extend(scores.of_arena(runs, a, fronts))
    out.extend(domains.across(runs, found))
    for a in found:
        out.extend(ranks.of_arena(runs, a))
        out.extend(recent.of_arena(runs, a))
    out.extend(recent.across(runs, found))
    return _most_informed(out)


def _most_informed(claims: Iterable[Claim]) -> list[Claim]:
    """A claim that nothing can be said about in one domain is not listed if another domain speaks of it."""
    claims = list(claims)
    spoken = {c.claim for c in claims if c.evidence}
    out: list[Claim] = []
    for c in claims:
        if not c.evidence and (c.claim in spoken or any(o.claim == c.claim for o in out)):
            continue
        out.append(c)
    return out
