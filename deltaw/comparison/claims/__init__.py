"""Published claims, each checked on the runs by a rule that is stated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from deltaw.comparison.claims import ranks, scores
from deltaw.comparison.claims.verdicts import Claim
from deltaw.comparison.roles import arenas
from deltaw.comparison.runs import Runs

if TYPE_CHECKING:
    import pandas as pd


def claims_frame(runs: Runs, fronts: pd.DataFrame, trajectories: pd.DataFrame) -> pd.DataFrame:
    """One row per claim (and domain): `claim`, `text`, `about`, `verdict`, `says`, `basis`, `rule`, `source`."""
    import pandas as pd

    rows = [
        {"claim": c.claim, "text": c.text, "about": c.about, "verdict": c.verdict, "says": c.says}
        | {"basis": c.basis, "rule": c.rule, "source": c.source}
        for c in all_claims(runs, fronts, trajectories)
    ]
    return pd.DataFrame(rows)


def all_claims(runs: Runs, fronts: pd.DataFrame, trajectories: pd.DataFrame) -> list[Claim]:
    """Every claim, checked."""
    found = arenas(runs)
    out: list[Claim] = []
    for a in found:
        out.extend(scores.of_arena(runs, a, fronts))
    out.extend(scores.across(runs, found))
    for a in found:
        out.extend(ranks.of_arena(runs, a, trajectories))
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
