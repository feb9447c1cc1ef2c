"""Further sentences of an analysis: what a reader should look into, and whether one weight decay shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltaw.reports.facts import Facts
from deltaw.reports.findings import RULES, Finding, verdict
from deltaw.reports.text import code, listed, number, percent, plural, strong, whole


def concerns(f: Facts) -> list[Finding]:
    """What a reader should look into, the gravest first; empty where nothing is."""
    found = [Finding(text, rule, level) for holds, text, rule, level in (*_inputs(f), *_numbers(f)) if holds]
    return sorted(found, key=lambda finding: finding.level != "warn")


def _inputs(f: Facts) -> list[tuple[object, str, str, str]]:
    """What may be wrong with what went in: whether it holds, the sentence, the rule, the level."""
    return [
        (
            f.failed,
            f"{plural(f.failed, 'tensor')} could not be measured; the reasons are listed under *skipped*.",
            "Skipped with reason failed.",
            "warn",
        ),
        (
            verdict(f) == "unrelated",
            "The two checkpoints do not look like a base and its fine-tune; check that the right base was given.",
            RULES["unrelated"],
            "warn",
        ),
        (
            f.mismatched,
            f"{plural(f.mismatched, 'tensor has', 'tensors have')} another shape on the other side and no row.",
            "Skipped with reason shape_mismatch.",
            "warn",
        ),
        (
            len(f.one_sided),
            f"{plural(len(f.one_sided), 'tensor exists', 'tensors exist')} on one side only: "
            f"{listed(code(n) for n in f.one_sided)}.",
            "Skipped with reason only_in_base or only_in_ft, and not merely left alone by an adapter.",
            "note",
        ),
    ]


def _numbers(f: Facts) -> list[tuple[object, str, str, str]]:
    """What the numbers warn of."""
    return [
        (
            f.below,
            f"In {plural(f.below, 'matrix', 'matrices')} rounding is more than half of what is stored: {_below(f)}.",
            "resolution = below_precision.",
            "warn",
        ),
        (
            f.noisy,
            f"In {plural(f.noisy, 'matrix', 'matrices')} rounding explains 1–50 % of the energy: ranks and spectra "
            f"there mix the update with rounding.",
            "resolution = noisy.",
            "note",
        ),
        (
            f.intruders >= 1,
            f"{plural(int(f.intruders) if f.intruders >= 1 else 0, 'intruder dimension')} among the leading "
            f"directions of the fine-tuned weights.",
            "Sum of the column intruders.",
            "note",
        ),
        (
            f.along_base.median > 0.1 and verdict(f) not in {"decay_only", "unrelated"},
            f"{percent(f.along_base.median)} of the update's energy rescales the base (c = "
            f"{number(f.shrinkage.median)}): ranks of ΔW + c·W0 (columns *_residual) show the rest.",
            "Median cos²(ΔW, W0) > 0.1.",
            "note",
        ),
    ]


def decay(summary: Mapping[str, Any]) -> Finding | None:
    """Whether one weight decay shows in the whole model; `summary` is `Analysis.summary["decay"]`."""
    rule = (
        "See deltaw.results.decay: one factor c > 0 in rows that training never touched, or in most tensors that could "
        "tell it from none."
    )
    if not summary:
        return None
    if summary["visible"]:
        c = strong(f"c = {number(summary['common'])}")
        if summary["evidence"] == "rows":
            where = f"in embedding rows that moved by nothing else ({plural(summary['rows_tensors'], 'tensor')})"
        else:
            where = (
                f"in {whole(summary['agree'])} of {plural(summary['informative'], 'tensor')} that could tell it "
                f"from none"
            )
        exempt = f"; {plural(summary['exempt'], 'tensor')} show none" if summary["exempt"] else ""
        return Finding(f"One common shrink is visible, as decoupled weight decay leaves: {c}, {where}{exempt}.", rule)
    if summary["gate_in_the_way"]:
        return Finding(
            f"No common weight decay is visible, but {summary['gate_dtype']} could hide one: a shrink below "
            f"{number(summary['gate_threshold'])} stores as no change.",
            rule,
            "note",
        )
    return Finding("No common weight decay is visible.", rule)


def _below(f: Facts) -> str:
    return (
        f"{percent(f.equal.median)} of entries hold the same bits in the typical matrix"
        if f.equal.count
        else "their numbers describe the storage"
    )
