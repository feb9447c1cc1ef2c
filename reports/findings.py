"""The sentences of an analysis: numbers in, words out, by rules that are stated beside them.

Every rule names what it looks at and its threshold. Nothing is said of the rank of a matrix that rounding hides, and
nothing is said of causes: a merged low-rank update and weight decay leave marks that can be seen, so the sentences say
what the marks are *consistent with*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltaw.reports.text import EMPTY, code, number, percent, plural, strong, whole
from deltaw.results.rows import Spread
from deltaw.results.summary import Ranks, Summary
from deltaw.results.verdict import RULES, Verdict
from deltaw.types import ENOUGH

UNRELATED = "These are not a base and its fine-tune"
# Reasons that take nothing from what was compared: buffers, copies, what nobody asked for.
KNOWN_WITHOUT_A_ROW = frozenset({"not_floating", "tied_to", "excluded", "not_a_weight"})
WORDS = (
    (0.15, "is low-rank"),
    (0.5, "is concentrated in few directions"),
    (0.85, "is spread over many directions"),
    (math.inf, "is spread almost as evenly as noise"),
)


@dataclass(frozen=True)
class Finding:
    """One sentence and the rule that chose it."""

    text: str
    rule: str
    level: str = "info"  # info, note, warn


@dataclass(frozen=True)
class Figure:
    """One of the numbers of the first screen."""

    value: str
    label: str
    meaning: str
    metric: str = ""


def answer(s: Summary) -> list[Finding]:
    """The answer in a few sentences: what changed, how much of it is real, how low-rank it is.

    How much was compared comes first where it is not nearly all, and nothing is then said of the model.
    """
    return [*_coverage(s), *_said(s)]


def _coverage(s: Summary) -> list[Finding]:
    c = s.coverage
    if not c.partial:
        return []
    missing = {reason: count for reason, count in s.skipped.items() if reason not in KNOWN_WITHOUT_A_ROW}
    why = ""
    if missing:
        reason = max(missing, key=lambda r: missing[r])
        why = f"; the largest group without a row is {code(reason)} ({plural(missing[reason], 'tensor')})"
    return [
        Finding(
            f"{strong(f'Only {share(c.share)} of the base was compared')}: {whole(c.compared_numbers)} of "
            f"{whole(c.numbers)} numbers, in {whole(c.compared_tensors)} of {plural(c.tensors, 'tensor')}{why}. "
            "What follows is about that part.",
            f"Less than {ENOUGH:.0%} of the base's floating numbers were compared or are known to be unchanged.",
            "warn",
        )
    ]


def _said(s: Summary) -> list[Finding]:
    kind = s.verdict
    rule = RULES[kind]
    if kind == Verdict.EMPTY:
        failed = f" {plural(s.failed, 'tensor')} could not be measured." if s.failed else ""
        return [Finding(f"No tensor of the two checkpoints has a row in this analysis.{failed}", rule, "warn")]
    if kind == Verdict.UNCHANGED:
        equal = f"{_all(s.tensors, s.coverage.partial)} compared hold the same numbers on both sides."
        return [Finding(equal.capitalize() if s.coverage.partial else f"{strong('Nothing changed')}: {equal}", rule)]
    return [said for said in (_what(s, kind), _real(s, kind), _rank(s, kind)) if said]


def _what(s: Summary, kind: Verdict) -> Finding:
    rule = (
        RULES[kind]
        if kind in {Verdict.VECTORS_ONLY, Verdict.UNRELATED, Verdict.EMBEDDINGS_ONLY}
        else "Counts of rows with ΔW ≠ 0; relative_change of changed matrices."
    )
    if kind == Verdict.VECTORS_ONLY:
        return Finding(
            f"{_of_these(s, 'Only')} {strong(plural(s.changed_vectors, 'vector'))} (norms and biases) changed; "
            f"{'all' if s.matrices != 1 and not s.coverage.partial else 'the'} "
            f"{plural(s.matrices, 'matrix', 'matrices')} hold the same numbers on both sides.",
            rule,
        )
    compared = "compared " if s.coverage.partial else ""
    if kind == Verdict.UNRELATED:
        return Finding(
            f"{strong('What was compared is no base and its fine-tune' if s.coverage.partial else UNRELATED)}: the "
            "typical difference is "
            f"{percent(s.change.median)} of the base's "
            f"norm, and the two sets of weights hardly point the same way (cosine "
            f"{number(s.against_base.cosine.median, 2)}; a fine-tune is close to 1).",
            rule,
            "warn",
        )
    counts = f"{strong(f'{whole(s.changed)} of {whole(s.tensors)}')} {compared}tensors changed"
    if kind == Verdict.EMBEDDINGS_ONLY:
        counts = (
            f"{_of_these(s, 'Only')} {' and '.join(sorted(s.changed_kinds))} matrices changed "
            f"({whole(s.changed_matrices)} of {whole(s.matrices)} matrices"
            + (f", and {plural(s.changed_vectors, 'vector')})" if s.changed_vectors else ")")
        )
    if math.isnan(s.change.median):
        return Finding(f"{counts}; how far, relative to the base, is not known without the base's weights.", rule)
    return Finding(
        f"{counts}; the typical matrix moved by {strong(percent(s.change.median))} of its norm{_range(s)}.", rule
    )


def _of_these(s: Summary, word: str) -> str:
    return f"Of these {word.lower()}" if s.coverage.partial else word


def _range(s: Summary) -> str:
    if s.change.n < 2:
        return ""
    low, high = percent(s.change.low, 2), percent(s.change.high, 2)
    span = f"{low} to {high}" if low != high else f"all about {low}"
    return f" ({span}; most in {code(s.most_changed_matrices[0].key)})"


def _real(s: Summary, kind: Verdict) -> Finding | None:
    rule = "resolved, noisy, below_precision: rounding explains up to 1 %, up to 50 %, more than 50 % of ‖ΔW‖²."
    if kind in {Verdict.VECTORS_ONLY, Verdict.UNRELATED}:
        return None
    if s.adapter.factored == s.changed_matrices:
        what = " and ".join(s.adapter.types[:2]) or "adapter"
        rank = f" of rank {_span(s.adapter.rank)}" if s.adapter.rank.n else ""
        return Finding(
            f"It is read from the factors of a {what} adapter{rank}, not from a stored sum, so no rounding is in it.",
            "All changed matrices come from factors.",
        )
    known = s.resolution.known
    if not known:
        return None
    dtype = s.precision.dtypes[0] if s.precision.dtypes else "the stored precision"
    if s.resolution.resolved == known:
        return Finding(
            f"{strong('It is real')} as far as storage goes: rounding to {dtype} explains "
            f"{percent(s.precision.rounding.median, 2)} of its energy in "
            f"the typical matrix and at most {percent(s.precision.rounding.high, 2)} in any.",
            rule,
        )
    if kind == Verdict.BELOW_PRECISION:
        return Finding(
            f"{strong('Most of it is rounding')}: in {whole(s.resolution.below_precision)} of "
            f"{plural(known, 'changed matrix', 'changed matrices')} the update is smaller than the "
            f"rounding of {dtype} storage, so neither its size nor its rank can be read there.",
            rule,
            "warn",
        )
    noisy, below = s.resolution.noisy, s.resolution.below_precision
    parts = []
    if noisy:
        parts.append(f"in {whole(noisy)} it explains 1 to 50 % of the energy, and their ranks are read without it")
    if below:
        parts.append(f"in {whole(below)} it explains more than half, and no rank is claimed for those")
    return Finding(
        f"{strong(f'{whole(s.resolution.resolved)} of {whole(known)}')} changed matrices stand clear of {dtype} "
        f"rounding; {'; '.join(parts)}.",
        rule,
        "note",
    )


def _rank(s: Summary, kind: Verdict) -> Finding | None:
    rule = RULES[kind]
    if kind == Verdict.VECTORS_ONLY:
        return Finding("Vectors have no rank, so there is nothing for a low-rank adapter to hold.", rule)
    if kind == Verdict.UNRELATED:
        return Finding(
            "Ranks and energies below describe that difference; they say nothing about a fine-tuning.", rule, "warn"
        )
    if kind == Verdict.BELOW_PRECISION:
        return Finding(_visible_directions(s), rule, "warn")
    if kind == Verdict.DECAY_ONLY:
        c = s.against_base.shrinkage
        return Finding(
            f"{strong(percent(s.against_base.along_base.median))} of its energy lies along the base weights "
            f"themselves, with nearly one factor (c = {number(c.median)}, middle 80 % {number(c.p10)} to "
            f"{number(c.p90)}): {_direction(c.median)}. Its ranks are those of W0.",
            rule,
        )
    if kind == Verdict.ADAPTER and s.rank.rank_90.n and s.adapter.rank.n:
        return Finding(
            f"It is {strong('low-rank by construction')}: 90 % of its energy takes "
            f"{strong(number(s.rank.rank_90.median))} of the "
            f"{number(s.adapter.rank.median)} directions that its factors allow, in the typical matrix.",
            rule,
        )
    if kind == Verdict.LOW_RANK:
        return Finding(
            f"{strong(f'{_span(s.precision.signal_rank)} directions')} stand above rounding, "
            f"{percent(s.precision.signal_energy.median)} of the energy in the typical "
            "matrix; what lies below is no larger than rounding leaves. This is consistent with a merged low-rank "
            "update.",
            rule,
        )
    if not s.rank.rank_90.n:
        return Finding(_visible_directions(s), "No changed matrix is resolved.", "note") if s.changed_matrices else None
    return _spread(s)


def _spread(s: Summary) -> Finding:
    ratio = s.rank.rank_90_ratio.median
    words = next(text for limit, text in WORDS if ratio < limit or math.isinf(limit))
    energy = s.energy["energy_at_16"].median
    adapter = (
        f" A rank-16 update could keep at best {strong(percent(energy, 2))} of it." if not math.isnan(energy) else ""
    )
    approximately = "about " if s.estimated else ""
    return Finding(
        f"The update {strong(words)}: 90 % of its energy takes {approximately}{number(s.rank.rank_90.median)} of "
        f"{number(s.rank.dimensions.median)} directions in the "
        f"typical matrix{_open(s.rank)}, {number(ratio, 2)} of what noise of the same shape takes.{adapter}",
        "Median rank_90_ratio, with the rounding taken out where there is any: "
        + "; ".join(f"below {limit} “{text}”" if limit < math.inf else f"else “{text}”" for limit, text in WORDS)
        + ".",
    )


def _open(ranks: Ranks) -> str:
    """Between what the typical rank may lie, where it is not exact."""
    low, high = ranks.rank_90_low, ranks.rank_90_high
    return f" (between {number(low)} and {number(high)})" if low < high else ""


def _visible_directions(s: Summary) -> str:
    if not s.precision.signal_rank.median >= 1:
        return "In the typical matrix no direction stands above rounding: its rank cannot be read from these files."
    directions = plural(round(s.precision.signal_rank.median), "direction stands", "directions stand")
    return (
        f"In the typical matrix {strong(directions)} above rounding, with "
        f"{percent(s.precision.signal_energy.median, 2)} of the energy; whether more lie "
        "below it cannot be read from these files, so no rank is claimed."
    )


def _direction(c: float) -> str:
    if c < 0:
        return "a uniform growth of the weights"
    return "a uniform shrink, which is what weight decay leaves"


def _span(x: Spread) -> str:
    return number(x.low) if x.low == x.high else f"{number(x.low)}–{number(x.high)} (median {number(x.median)})"


def _all(count: int, partial: bool) -> str:
    return "the one tensor" if count == 1 else f"{'the' if partial else 'all'} {whole(count)} tensors"


def share(x: float) -> str:
    """A share below all, never rounded to all of it."""
    return f"{math.floor(1000 * x) / 10:.3g} %"


def five(s: Summary) -> list[Figure]:
    """The five numbers of the first screen, each with its meaning; one that does not apply says why."""
    clear = s.rank.rank_90.n
    hidden = EMPTY if s.changed_matrices else "0"
    no_rank = "no changed matrix stands clear of rounding" if s.changed_matrices else "no matrix changed"
    energy = s.energy["energy_at_16"].median
    sure = s.resolution.resolved + (s.adapter.factored if s.resolution.resolved == 0 else 0)
    return [
        Figure(
            percent(s.change.median) if s.changed_matrices else "0",
            "relative change",
            "‖ΔW‖ / ‖W0‖ of the typical changed matrix" if s.has_base else "needs the base's weights",
            "relative_change",
        ),
        Figure(f"{whole(s.changed)} / {whole(s.tensors)}", "tensors changed", _meaning_of_changed(s)),
        Figure(
            f"{whole(sure)} / {whole(s.changed_matrices)}",
            "matrices resolved",
            "stand clear of the rounding of their storage",
            "resolution",
        ),
        Figure(
            number(s.rank.rank_90_ratio.median, 2) if clear else hidden,
            "rank against noise",
            f"rank_90 {number(s.rank.rank_90.median)}; noise of that shape has {number(s.rank.rank_90_null.median)}"
            if clear
            else no_rank,
            "rank_90_ratio",
        ),
        Figure(
            percent(energy, 2) if clear else hidden,
            "kept by rank 16",
            "the best that a rank-16 adapter could keep of it" if clear else no_rank,
            "energy_at_16",
        ),
    ]


def _meaning_of_changed(s: Summary) -> str:
    others = sum(s.skipped.values())
    skipped = f"; {plural(others, 'other')} skipped" if others else ""
    return f"{plural(s.matrices, 'matrix', 'matrices')} and {plural(s.vectors, 'vector')}{skipped}"
