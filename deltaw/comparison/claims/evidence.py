"""Evidence from scores: two groups at their endpoints, or over the range that their fronts share."""

from __future__ import annotations

from collections.abc import Sequence

from deltaw.comparison.claims.verdicts import Claim, ClaimEvidence
from deltaw.comparison.endpoints import missing_endpoints
from deltaw.comparison.fronts import MEAN, FrontDifference
from deltaw.comparison.roles import Arena
from deltaw.comparison.runs import Runs
from deltaw.comparison.score_differences import at_endpoints, score_endpoints

Found = ClaimEvidence | str | None  # a comparison, why there is none although it was asked for, or nothing


def claim(name: str, text: str, rule: str, a: Arena | None, found: Sequence[Found], missing: str, source: str) -> Claim:
    """A claim from what was found for it.

    Args:
        name: Its identifier.
        text: The claim in words.
        rule: How it is decided.
        a: The domain and training; None where it is about several.
        found: Comparisons, and reasons why there is none.
        missing: What the claim needs, where nothing was found.
        source: Who claims it.
    """
    evidence = [f for f in found if isinstance(f, ClaimEvidence)]
    reasons = [f for f in found if isinstance(f, str)]
    why = "" if evidence else f"Cannot be checked: {reasons[0] if reasons else missing}."
    return Claim(name, text, source, rule, a.label if a else "", evidence, why)


def at_end(runs: Runs, a: str | None, b: str | None, axis: str) -> Found:
    """The score of a − that of b, at the largest number of tokens that both have."""
    if a is None or b is None:
        return None
    ends = score_endpoints(runs, a, b, axis)
    if ends is None:
        measured = all(any(r.score(axis) == r.score(axis) for r in runs.items if r.spec.group == g) for g in (a, b))
        return missing_endpoints(runs, a, b) or None if measured else None
    found = at_endpoints(ends, axis)
    return ClaimEvidence(
        f"{a} − {b} on {axis}", found.estimate, items=found.items, where=ends.where, paired=found.paired
    )


def at_equal_learning(fronts: Sequence[FrontDifference], a: str | None, b: str | None) -> Found:
    """The retention of a − that of b over the range of learning that both fronts reach."""
    for gap, estimate in fronts:
        if gap.matched != "learning" or {gap.group_a, gap.group_b} != {a, b}:
            continue
        if gap.level == MEAN:
            more, less = gap.settings_a, gap.settings_b
            if gap.group_a != a:
                estimate, more, less = estimate.negated(), less, more
            sweeps = f" (from {more} settings against {less})" if more != less else ""
            where = f" ({gap.at:.3g} on average){sweeps}"
            return ClaimEvidence(f"{a} − {b} on {gap.compared} at equal learning", estimate, where=where)
        if not gap.level:
            return f"{a} and {b} never learned the same amount (their ranges of learning do not overlap)"
    return None
