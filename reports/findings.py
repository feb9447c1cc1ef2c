"""The sentences of an analysis: numbers in, words out, by rules that are stated beside them.

Every rule names what it looks at and its threshold. Nothing is said of the rank of a matrix that rounding hides, and
nothing is said of causes: a merged low-rank update and weight decay leave marks that can be seen, so the sentences say
what the marks are *consistent with*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaw.reports import offer
from deltaw.reports.extent import more_than_the_base, only_a_part
from deltaw.reports.text import EMPTY, code, listed, number, percent, plural, strong, whole
from deltaw.results.rows import Spread
from deltaw.results.summary import Summary
from deltaw.results.typical import FEW, Typical
from deltaw.results.verdict import CONCENTRATED, RULES, Verdict

if TYPE_CHECKING:
    from deltaw.reports.offer import Offer

UNRELATED = "These are not a base and its fine-tune"
NEGLIGIBLE = 1e-5  # of the energy: rounding that changes no digit that is shown
ADAPTER = 16  # the rank of the adapter that a sentence speaks of
AS_NOISE = 0.85  # rank_90 over that of noise, from which an update is as spread as noise
SMALL = 32  # dimensions from which a rank between those of a low-rank update and of noise says something
KNOWN_RANK = 0.5  # of the dimensions: the largest rank that a sentence calls one
RESOLUTION = "resolved, noisy, below_precision: rounding explains up to 1 %, up to 50 %, more than 50 % of ‖ΔW‖²."


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


def word(verdict: Verdict) -> str:
    """A verdict as it is written: `low rank`, `below precision`."""
    return verdict.value.replace("_", " ")


def answer(s: Summary, offered: Offer | None = None) -> list[Finding]:
    """The answer in a few sentences: what changed, how much of it is real, how low-rank it is.

    How much was compared comes first where it is not nearly all, and nothing is then said of the model.

    Args:
        s: The summary.
        offered: What an adapter would take, if it is known.
    """
    extent = (only_a_part(s), more_than_the_base(s))
    return [*(Finding(*said, "warn") for said in extent if said), *_said(s, offered)]


def _said(s: Summary, offered: Offer | None) -> list[Finding]:
    kind = s.verdict
    rule = RULES[kind]
    if kind == Verdict.EMPTY:
        failed = f" {plural(s.failed, 'tensor')} could not be measured." if s.failed else ""
        return [Finding(f"No tensor of the two checkpoints has a row in this analysis.{failed}", rule, "warn")]
    if kind == Verdict.UNCHANGED:
        hold = "holds" if s.tensors == 1 else "hold"
        equal = f"{_all(s.tensors, s.coverage.partial)} compared {hold} the same numbers on both sides."
        return [Finding(equal.capitalize() if s.coverage.partial else f"{strong('Nothing changed')}: {equal}", rule)]
    return [said for said in (_what(s, kind), _real(s, kind), _rank(s, kind, offered)) if said]


def _what(s: Summary, kind: Verdict) -> Finding:
    rule = RULES[kind]
    if kind == Verdict.VECTORS_ONLY and not s.matrices:
        return Finding(f"{strong(_vectors(s).capitalize())} changed, and there is no matrix to compare.", rule)
    if kind == Verdict.VECTORS_ONLY:
        return Finding(
            f"{_of_these(s, 'Only')} {strong(plural(s.changed_vectors, 'vector'))} (norms and biases) changed; "
            f"{_the_matrices(s)} the same numbers on both sides.",
            rule,
        )
    if kind == Verdict.UNRELATED:
        what = "What was compared is no base and its fine-tune" if s.coverage.partial else UNRELATED
        return Finding(
            f"{strong(what)}: the weights differ by {percent(s.change.median)} of the base's norm and hardly point the "
            f"same way (cosine {number(s.against_base.cosine.median, 2)}; a fine-tune's is close to 1).",
            rule,
            "warn",
        )
    compared = " compared" if s.coverage.partial else ""
    counted = f"{strong(f'{whole(s.changed_matrices)} of {whole(s.matrices)}')}{compared}"
    counts = f"{counted} {'matrix' if s.matrices == 1 else 'matrices'} changed"
    if kind == Verdict.EMBEDDINGS_ONLY:
        kinds = " and ".join(sorted(s.changed_kinds))
        counts = f"{_of_these(s, 'Only')} {kinds} matrices changed ({counted} matrices)"
    else:
        rule = "Counts of rows with ΔW ≠ 0; relative_change of changed matrices."
    vectors = f"; so did {_vectors(s)}" if s.changed_vectors else ""
    if math.isnan(s.change.median):
        return Finding(f"{counts}{vectors}; {_nothing_relative(s)}.", rule)
    if s.matrices == 1:
        counts = f"The {strong('one')} matrix{compared} changed"
    return Finding(f"{counts}{_by(s)}{vectors}.", rule)


def _nothing_relative(s: Summary) -> str:
    """Why no matrix that changed has a relative change: the base's norm is not known, or it is 0."""
    if math.isnan(s.base_norm):
        return "how far, relative to the base, only the base's weights could tell"
    return "the base is zero there, so nothing relative to it can be said"


def _vectors(s: Summary) -> str:
    if s.changed_vectors < s.vectors:
        return f"{whole(s.changed_vectors)} of {plural(s.vectors, 'vector')}"
    compared = " compared" if s.coverage.partial else ""
    return f"the one vector{compared}" if s.vectors == 1 else f"all {whole(s.vectors)} vectors{compared}"


def _by(s: Summary) -> str:
    """How far the changed matrices moved: one, all alike, or the typical one with the range."""
    by = strong(percent(s.change.median))
    if s.changed_matrices == 1 or s.change.n < 2:
        return f" by {by} of its norm" if s.changed_matrices == 1 else f", the typical one by {by} of its norm"
    low, high = percent(s.change.low, 2), percent(s.change.high, 2)
    if low == high:
        return f", all by about {by} of their norm"
    most = code(s.most_changed_matrices[0].key)
    return f", the typical one by {by} of its norm ({low} to {high}; most in {most})"


def _the_matrices(s: Summary) -> str:
    if s.matrices == 1:
        return "the one matrix holds"
    return f"{'the' if s.coverage.partial else 'all'} {plural(s.matrices, 'matrix', 'matrices')} hold"


def _of_these(s: Summary, first: str) -> str:
    return f"Of these {first.lower()}" if s.coverage.partial else first


def _real(s: Summary, kind: Verdict) -> Finding | None:
    if kind in {Verdict.VECTORS_ONLY, Verdict.UNRELATED}:
        return None
    if s.adapter.factored == s.changed_matrices:
        what = " and ".join(_methods(s)) or "an adapter"
        return Finding(
            f"The update was read from the factors of {what}{_of_rank(s)}, so there is no rounding in it.",
            "All changed matrices come from factors.",
        )
    if s.adapter.types and not s.precision.dtypes:
        return Finding(
            f"The update was computed from {' and '.join(_methods(s))}{_of_rank(s)}, so there is no rounding in it.",
            "All changed matrices come from an adapter.",
        )
    known = s.resolution.known
    if not known:
        return None
    dtype = listed(s.precision.dtypes) if s.precision.dtypes else "the stored precision"
    rounding = s.precision.rounding
    if s.resolution.resolved == known and rounding.high < NEGLIGIBLE:
        return Finding(
            f"Storage rounding is negligible ({dtype}).",
            f"Rounding explains less than {NEGLIGIBLE:g} of the energy of every changed matrix.",
        )
    if s.resolution.resolved == known:
        return Finding(
            f"Storage rounding ({dtype}) explains {percent(rounding.median, 2)} of the energy in the typical matrix "
            f"and at most {percent(rounding.high, 2)} in any: {strong('the update is real')}.",
            RESOLUTION,
        )
    if kind == Verdict.BELOW_PRECISION:
        return Finding(
            f"{strong('Most of it is rounding')}: in {whole(s.resolution.below_precision)} of "
            f"{plural(known, 'changed matrix', 'changed matrices')} the update is smaller than the rounding of {dtype} "
            "storage; neither its size nor its rank can be read there.",
            RESOLUTION,
            "warn",
        )
    noisy, below = s.resolution.noisy, s.resolution.below_precision
    if noisy == known:
        where = "In the changed matrix" if known == 1 else f"In all {whole(known)} changed matrices"
        ranks = "its rank is read" if known == 1 else "their ranks are read"
        text = f"{where} storage rounding ({dtype}) explains 1 to 50 % of the energy; {ranks} without it."
        return Finding(text, RESOLUTION, "note")
    parts = []
    if noisy:
        parts.append(f"1 to 50 % of the energy in {strong(whole(noisy))}, whose ranks are read without it")
    if below:
        of = "" if noisy else " of the energy"
        parts.append(f"more than half{of} in {strong(whole(below))}, whose ranks are not read")
    return Finding(
        f"Of {plural(known, 'changed matrix', 'changed matrices')}, storage rounding ({dtype}) explains "
        f"{' and '.join(parts)}.",
        RESOLUTION,
        "note",
    )


def _of_rank(s: Summary) -> str:
    return f" of rank {_span(s.adapter.rank)}" if s.adapter.rank.n else ""


def _methods(s: Summary) -> list[str]:
    names = {"lora": "a LoRA adapter", "dora": "a DoRA adapter", "mora": "a MoRA adapter"}
    return [names.get(t, f"an adapter ({t})") for t in s.adapter.types[:2]]


def _rank(s: Summary, kind: Verdict, offered: Offer | None) -> Finding | None:
    rule = RULES[kind]
    if kind == Verdict.VECTORS_ONLY:
        return Finding("Vectors have no rank; there is nothing here for a low-rank adapter.", rule)
    if kind == Verdict.UNRELATED:
        return Finding("The ranks and energies below describe that difference, not a fine-tune.", rule, "warn")
    if kind == Verdict.BELOW_PRECISION:
        return Finding(_visible_directions(s), rule, "warn")
    if kind == Verdict.DECAY_ONLY:
        c = f"c = {number(s.decay.value)}" if s.decay.visible else f"{number(s.decay.low)} to {number(s.decay.high)}"
        return Finding(
            f"{strong(percent(s.against_base.along_base.median))} of the update's energy lies along the base weights "
            f"themselves: they shrank by one factor ({c}), as decoupled weight decay leaves them. The update's ranks "
            f"are those of W0; an adapter has nothing to learn from it.",
            rule,
        )
    if kind == Verdict.ADAPTER and s.adapter.rank.high == 1:
        return Finding(f"{strong('Low-rank by construction')}: its factors allow one direction.", rule)
    # factors of as many directions as the matrices have allow every rank
    if kind == Verdict.ADAPTER and s.rank.rank_90.n and s.adapter.rank.median < s.rank.dimensions.median:
        return Finding(
            f"{strong('Low-rank by construction')}: 90 % of the energy takes {strong(number(s.rank.rank_90.median))} "
            f"of the {number(s.adapter.rank.median)} directions that the factors allow, in the typical matrix.",
            rule,
        )
    if kind == Verdict.LOW_RANK:
        one = s.precision.signal_rank.high == 1
        directions, hold = ("direction", "holds") if one else ("directions", "hold")
        return Finding(
            f"{strong(f'Low-rank: {_span(s.precision.signal_rank)} {directions}')} above rounding {hold} "
            f"{percent(s.precision.signal_energy.median)} of the energy in the typical matrix; the rest is no more "
            "than rounding leaves. This is consistent with a merged low-rank update.",
            rule,
        )
    if not s.rank.rank_90.n:
        return Finding(_visible_directions(s), "No changed matrix is resolved.", "note") if s.changed_matrices else None
    return _spread(s, kind, offered)


def _spread(s: Summary, kind: Verdict, offered: Offer | None) -> Finding:
    typical = s.rank.typical
    if typical.dimensions < FEW:
        return _too_few(s, rule=RULES[kind])
    about = "about " if s.estimated else ""
    parts = [
        f"{strong(_head(typical, kind))}: 90 % of the energy takes {about}{number(typical.rank_90)}{_open(typical)} of "
        f"{whole(typical.dimensions)} directions (noise: {number(typical.rank_90_null, 2)}){_which(s)}"
    ]
    if typical.dimensions > ADAPTER and not math.isnan(typical.energy_at_16):
        parts.append(f"a rank-{ADAPTER} adapter could keep {strong(percent(typical.energy_at_16, 2))}")
    if offered is not None and (needed := offer.sentence(offered, percent)):
        parts.append(needed)
    return Finding(
        f"{'; '.join(parts)}.",
        f"{RULES[kind]} “Concentrated” up to {CONCENTRATED} of the rank of noise, “not low-rank” below {AS_NOISE}, "
        f"“like noise” from there. Of a matrix with fewer than {SMALL} directions no word is said between the two. “Of "
        f"rank r”: all but r directions, at most half of them, hold no more than rounding leaves. The matrix of the "
        "median ratio, of those whose rank may be quoted, with the rounding taken out where there is any.",
    )


def _head(typical: Typical, kind: Verdict) -> str:
    """What kind of rank that is, in a word or two."""
    if kind == Verdict.CONCENTRATED:
        return "Concentrated in few directions"
    if typical.rank <= KNOWN_RANK * typical.dimensions:
        return f"Of rank {number(typical.rank)}"
    if kind == Verdict.NOISY:
        return "Rounding leaves open whether it is low-rank"
    if typical.ratio >= AS_NOISE:
        return "Spread out like noise"
    return "Not low-rank" if typical.dimensions >= SMALL else "Too small to call low-rank or not"


def _too_few(s: Summary, rule: str) -> Finding:
    most = whole(s.rank.dimensions.high)
    has = f"has {most}" if s.changed_matrices == 1 else f"have at most {most}"
    directions = "direction" if s.rank.dimensions.high == 1 else "directions"
    what = "matrix" if s.changed_matrices == 1 else "matrices"
    return Finding(f"The changed {what} {has} {directions}: too few for a rank to say anything.", rule)


def _which(s: Summary) -> str:
    """Whose numbers these are, where shapes differ: then there is no shape of the typical matrix."""
    return "" if s.rank.dimensions.low == s.rank.dimensions.high else f" in {code(s.rank.typical.name)}"


def _open(ranks: Typical) -> str:
    """Between what the typical rank may lie, where it is not exact."""
    low, high = ranks.rank_90_low, ranks.rank_90_high
    return f" ({number(low)}–{number(high)})" if low < high else ""


def _visible_directions(s: Summary) -> str:
    if not s.precision.signal_rank.median >= 1:
        return "In the typical matrix no direction rises above rounding; its rank cannot be read from these files."
    directions = plural(round(s.precision.signal_rank.median), "direction rises", "directions rise")
    return (
        f"In the typical matrix {strong(directions)} above rounding, with "
        f"{percent(s.precision.signal_energy.median, 2)} of the energy; how many more lie below it, these files cannot "
        "tell, so no rank is claimed."
    )


def _span(x: Spread) -> str:
    return number(x.low) if x.low == x.high else f"{number(x.low)}–{number(x.high)} (median {number(x.median)})"


def _all(count: int, partial: bool) -> str:
    return "the one tensor" if count == 1 else f"{'the' if partial else 'all'} {whole(count)} tensors"


def five(s: Summary) -> list[Figure]:
    """The five numbers of the first screen, each with its meaning; one that does not apply says why."""
    typical = s.rank.typical
    clear = typical.dimensions >= FEW
    hidden = EMPTY if s.changed_matrices else "0"
    no_rank = "rounding hides it in every changed matrix" if s.changed_matrices else "no matrix changed"
    if s.changed_matrices and typical.dimensions:
        no_rank = f"no matrix has {FEW} directions"
    energy = typical.energy_at_16
    sure = s.resolution.resolved + (s.adapter.factored if s.resolution.resolved == 0 else 0)
    return [
        Figure(
            percent(s.change.median) if s.changed_matrices else "0",
            "relative change",
            "‖ΔW‖ / ‖W0‖, typical changed matrix" if s.has_base else "needs the base's weights",
            "relative_change",
        ),
        Figure(f"{whole(s.changed_matrices)} / {whole(s.matrices)}", "matrices changed", _meaning_of_changed(s)),
        Figure(
            f"{whole(sure)} / {whole(s.changed_matrices)}",
            "of these resolved",
            "larger than their storage's rounding" if s.precision.rounding.n else "no storage rounds them",
            "resolution",
        ),
        Figure(
            number(typical.ratio, 2) if clear else hidden,
            "rank over noise",
            f"rank for 90 %: {number(typical.rank_90)}; noise: {number(typical.rank_90_null, 2)}" if clear else no_rank,
            "rank_90_ratio",
        ),
        Figure(EMPTY, "kept by rank 16", "nothing here for an adapter", "energy_at_16")
        if s.verdict in offer.NOTHING
        else Figure(
            percent(energy, 2) if clear else hidden,
            "kept by rank 16",
            "at best, by an adapter" if clear else no_rank,
            "energy_at_16",
        ),
    ]


def _meaning_of_changed(s: Summary) -> str:
    vectors = (
        f"and {whole(s.changed_vectors)} of {plural(s.vectors, 'vector')}" if s.vectors else "there are no vectors"
    )
    others = sum(s.skipped.values())
    return f"{vectors}; {plural(others, 'tensor')} without a row" if others else vectors
