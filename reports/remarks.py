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
            f"In {plural(s.resolution.below_precision, 'matrix', 'matrices')} rounding is more than half of what "
            f"is stored: {_below(s)}.",
            "resolution = below_precision.",
            "warn",
        ),
        (
            s.resolution.noisy,
            f"In {plural(s.resolution.noisy, 'matrix', 'matrices')} rounding explains 1–50 % of the energy: "
            f"ranks and spectra there mix the update with rounding.",
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
        "See deltaw.results.decay: one factor c > 0 in rows that training never touched, or in most tensors that could "
        "tell it from none."
    )
    if d.visible:
        c = strong(f"c = {number(d.value)}")
        if d.evidence == "rows":
            where = f"in embedding rows that moved by nothing else ({plural(d.rows_tensors, 'tensor')})"
        else:
            where = f"in {whole(d.agree)} of {plural(d.informative, 'tensor')} that could tell it from none"
        exempt = f"; {plural(d.exempt, 'tensor')} show none" if d.exempt else ""
        return Finding(f"One common shrink is visible, as decoupled weight decay leaves: {c}, {where}{exempt}.", rule)
    if d.gate.in_the_way:
        return Finding(
            f"No common weight decay is visible, but {d.gate.dtype} could hide one: a shrink below "
            f"{number(d.gate.threshold)} stores as no change.",
            rule,
            "note",
        )
    return Finding("No common weight decay is visible.", rule)


def _below(s: Summary) -> str:
    return (
        f"{percent(s.precision.unchanged_fraction.median)} of entries hold the same bits in the typical matrix"
        if s.precision.unchanged_fraction.n
        else "their numbers describe the storage"
    )
