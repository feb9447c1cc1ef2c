"""Further sentences of an analysis: what a reader should look into, and whether one weight decay shows."""

from __future__ import annotations

from deltaw.reports.findings import Finding
from deltaw.reports.text import code, listed, number, percent, plural, strong, whole
from deltaw.results.decay import Decay
from deltaw.results.summary import Summary
from deltaw.results.verdict import RULES, Verdict


def concerns(s: Summary) -> list[Finding]:
    """What a reader should look into, the gravest first; empty where nothing is."""
    found = [Finding(text, rule, level) for holds, text, rule, level in (*_inputs(s), *_numbers(s)) if holds]
    return sorted(found, key=lambda finding: finding.level != "warn")


def _inputs(s: Summary) -> list[tuple[object, str, str, str]]:
    """What may be wrong with what went in: whether it holds, the sentence, the rule, the level."""
    mismatched = s.skipped.get("shape_mismatch", 0)
    return [
        (
            s.failed,
            f"{plural(s.failed, 'tensor')} could not be measured; the reasons stand under *skipped*.",
            "Skipped because it could not be measured.",
            "warn",
        ),
        (
            s.verdict == Verdict.UNRELATED,
            "The two checkpoints do not look like a base and its fine-tune; check that the right base was given.",
            RULES[Verdict.UNRELATED],
            "warn",
        ),
        (
            mismatched,
            f"{plural(mismatched, 'tensor has', 'tensors have')} another shape on the other side and no row.",
            "Skipped for another shape on the other side.",
            "warn",
        ),
        (
            len(s.one_sided),
            f"{plural(len(s.one_sided), 'tensor exists', 'tensors exist')} on one side only: "
            f"{listed(code(n) for n in s.one_sided)}.",
            "Skipped as only on one side, and not merely left alone by an adapter.",
            "note",
        ),
    ]


def _numbers(s: Summary) -> list[tuple[object, str, str, str]]:
    """What the numbers warn of."""
    return [
        (
            s.resolution.below_precision,
            f"In {plural(s.resolution.below_precision, 'matrix', 'matrices')} rounding is more than half of the "
            f"change: {_below(s)}.",
            "resolution = below_precision.",
            "warn",
        ),
        (
            s.resolution.noisy,
            f"In {plural(s.resolution.noisy, 'matrix', 'matrices')} rounding explains 1–50 % of the energy: spectra "
            "and plain ranks mix the update with it; the columns *_denoised take it out.",
            "resolution = noisy.",
            "note",
        ),
        (
            s.intruders >= 1,
            f"{plural(int(s.intruders) if s.intruders >= 1 else 0, 'intruder dimension')} among the leading "
            f"directions of the fine-tuned weights.",
            "Sum of the column intruders.",
            "note",
        ),
        (
            s.against_base.along_base.median > 0.1 and s.verdict not in {Verdict.DECAY_ONLY, Verdict.UNRELATED},
            f"{percent(s.against_base.along_base.median)} of the update's energy rescales the base (c = "
            f"{number(s.against_base.shrinkage.median)}): ranks of ΔW + c·W0 (columns *_residual) show the rest.",
            "Median cos²(ΔW, W0) > 0.1.",
            "note",
        ),
    ]


def decay(d: Decay) -> Finding:
    """Whether one weight decay shows in the whole model."""
    rule = (
        "See deltaw.results.decay: a uniform shrink that is larger than a rotation, pruning or a grid makes, by one "
        "factor in most of the matrices that could show it, or in their rows that training never touched."
    )
    if d.visible:
        low, high = number(d.low), number(d.high)
        c = strong(f"c = {number(d.value)}") + (f" ({low} to {high})" if low != high else "")
        return Finding(f"One common shrink is visible{_like(d)}: {c}, {_where(d)}{_exempt(d)}.", rule)
    if d.evidence == "step":
        return Finding(
            f"Nearly every entry moved one step of {d.gate.dtype} towards zero: a common shrink of between "
            f"{number(d.low)} and {number(d.high)}, which this storage cannot tell apart.",
            rule,
            "note",
        )
    if d.instead:
        where = f"in {plural(d.instead_tensors, 'matrix', 'matrices')}"
        return Finding(f"No common weight decay is visible: {where} {INSTEAD[d.instead]}.", rule)
    if d.gate.in_the_way:
        return Finding(
            f"No common weight decay is visible, but {d.gate.dtype} could hide one: below {number(d.gate.threshold)} "
            f"it is stored as no change, below {number(d.gate.step)} as one step at most.",
            rule,
            "note",
        )
    return Finding("No common weight decay is visible.", rule)


NAMED = 3  # matrices that are told by name
INSTEAD = {
    "turn": "the weights shrank no more than they do in a rotation at constant norm, in pruning or on a coarser grid",
    "sparse": "weights shrank, but at least half of them did not move",
    "uneven": "small and large weights, or different rows, shrank by different shares",
    "norms": "the rows or columns were given one norm",
    "grid": "the weights were moved onto a coarser grid",
}


def _like(d: Decay) -> str:
    if d.like_mean:
        return ", such as an average with other weights leaves (the rest of the update is as large)"
    return ", such as decoupled weight decay leaves"


def _where(d: Decay) -> str:
    if d.evidence == "rows":
        kind = "embedding rows" if d.rows_embeddings else "rows"
        return f"in {kind} that moved by nothing else ({plural(d.rows_tensors, 'tensor')})"
    able = f"{whole(d.informative)} matrices that could show it"
    if d.agree == d.informative:
        return "in the one matrix that could show it" if d.agree == 1 else f"in all {able}"
    return f"in {whole(d.agree)} of the {able}"


def _exempt(d: Decay) -> str:
    if not d.exempt:
        return ""
    names = listed([code(name) for name in d.exempt_tensors]) if d.exempt <= NAMED else whole(d.exempt)
    return f"; {names} {'shows' if d.exempt == 1 else 'show'} none"


def _below(s: Summary) -> str:
    return (
        f"{percent(s.precision.unchanged_fraction.median)} of entries hold the same bits in the typical matrix"
        if s.precision.unchanged_fraction.median > 0
        else "their numbers describe the storage"
    )
