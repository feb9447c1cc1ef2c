"""The sentences of an analysis: numbers in, words out, by rules that are stated beside them.

Every rule names what it looks at and its threshold. Nothing is said of the rank of a matrix that rounding hides, and
nothing is said of causes: a merged low-rank update and weight decay leave marks that can be seen, so the sentences say
what the marks are *consistent with*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltaw.reports.facts import Facts, Spread
from deltaw.reports.text import EMPTY, code, number, percent, plural, strong, whole

UNRELATED_COSINE = 0.5  # below this the two sets of weights do not point the same way
DECAY_SHARE = 0.9  # of the update's energy lies along W0
DECAY_SPREAD = 0.2  # of the factor c, relative
LOW_RANK_SHARE = 1 / 8  # of the dimensions
BEYOND = 1.5  # energy below the noise edge, in units of the predicted rounding
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


def verdict(f: Facts) -> str:
    """What kind of update this is. The first rule that holds decides; `RULES` states them in words."""
    if not f.tensors:
        return "empty"
    if not f.changed:
        return "unchanged"
    if not f.changed_matrices:
        return "vectors_only"
    if f.cosine.median < UNRELATED_COSINE and f.change.median > UNRELATED_COSINE:
        return "unrelated"
    if f.factored > f.changed_matrices / 2:
        return "adapter"
    if set(f.changed_kinds) <= {"embedding", "head"} < set(f.kinds) | {"embedding", "head"}:
        return "embeddings_only"
    if f.below >= f.changed_matrices / 2:
        return "below_precision"
    if f.along_base.median > DECAY_SHARE and _relative(f.shrinkage) <= DECAY_SPREAD:
        return "decay_only"
    if f.signal_rank.median >= 1 and f.signal_share.median <= LOW_RANK_SHARE and _only_rounding_beyond(f):
        return "low_rank"
    return "spread"


RULES = {
    "empty": "No tensor has a row.",
    "unchanged": "Every row has ΔW = 0.",
    "vectors_only": "Every matrix has ΔW = 0, some vectors (norms, biases) do not.",
    "unrelated": f"In the median matrix cos(W, W0) < {UNRELATED_COSINE} and relative_change > {UNRELATED_COSINE}.",
    "adapter": "More than half of the changed matrices were read from an adapter's factors.",
    "embeddings_only": "Every changed matrix is an embedding or a head, and the model has other matrices.",
    "below_precision": "At least half of the changed matrices are below_precision: rounding explains more than half "
    "their energy.",
    "decay_only": f"In the median matrix cos²(ΔW, W0) > {DECAY_SHARE}, and the middle 80 % of the factors c lie within "
    f"{percent(DECAY_SPREAD)} of their median.",
    "low_rank": f"In the median matrix at most one in {round(1 / LOW_RANK_SHARE)} directions stands above the noise "
    f"edge, and the energy "
    f"below it is at most {BEYOND} times what rounding predicts.",
    "spread": "None of the other rules holds.",
}


def answer(f: Facts) -> list[Finding]:
    """The answer in up to three sentences: what changed, how much of it is real, how low-rank it is."""
    kind = verdict(f)
    rule = RULES[kind]
    if kind == "empty":
        failed = f" {plural(f.failed, 'tensor')} could not be measured." if f.failed else ""
        return [Finding(f"No tensor of the two checkpoints has a row in this analysis.{failed}", rule, "warn")]
    if kind == "unchanged":
        return [
            Finding(
                f"{strong('Nothing changed')}: {_all(f.tensors)} compared hold the same numbers on both sides.", rule
            )
        ]
    return [s for s in (_what(f, kind), _real(f, kind), _rank(f, kind)) if s]


def _what(f: Facts, kind: str) -> Finding:
    rule = (
        RULES[kind]
        if kind in {"vectors_only", "unrelated", "embeddings_only"}
        else "Counts of rows with ΔW ≠ 0; relative_change of changed matrices."
    )
    if kind == "vectors_only":
        return Finding(
            f"Only {strong(plural(f.changed_vectors, 'vector'))} (norms and biases) changed; "
            f"{'all' if f.matrices != 1 else 'the'} {plural(f.matrices, 'matrix', 'matrices')} hold the same "
            f"numbers on both sides.",
            rule,
        )
    if kind == "unrelated":
        return Finding(
            f"{strong('These are not a base and its fine-tune')}: the typical difference is "
            f"{percent(f.change.median)} of the base's "
            f"norm, and the two sets of weights hardly point the same way (cosine {number(f.cosine.median, 2)}; a "
            f"fine-tune is close to 1).",
            rule,
            "warn",
        )
    counts = f"{strong(f'{whole(f.changed)} of {whole(f.tensors)}')} tensors changed"
    if kind == "embeddings_only":
        counts = (
            f"Only {' and '.join(sorted(f.changed_kinds))} matrices changed ({whole(f.changed_matrices)} of "
            f"{whole(f.matrices)} matrices"
            + (f", and {plural(f.changed_vectors, 'vector')})" if f.changed_vectors else ")")
        )
    if math.isnan(f.change.median):
        return Finding(f"{counts}; how far, relative to the base, is not known without the base's weights.", rule)
    return Finding(
        f"{counts}; the typical matrix moved by {strong(percent(f.change.median))} of its norm{_range(f)}.", rule
    )


def _range(f: Facts) -> str:
    if f.change.count < 2:
        return ""
    low, high = percent(f.change.low, 2), percent(f.change.high, 2)
    span = f"{low} to {high}" if low != high else f"all about {low}"
    return f" ({span}; most in {code(f.top[0])})"


def _real(f: Facts, kind: str) -> Finding | None:
    rule = "resolved, noisy, below_precision: rounding explains up to 1 %, up to 50 %, more than 50 % of ‖ΔW‖²."
    if kind in {"vectors_only", "unrelated"}:
        return None
    if f.factored == f.changed_matrices:
        what = " and ".join(f.adapters[:2]) or "adapter"
        rank = f" of rank {_span(f.adapter_rank)}" if f.adapter_rank.count else ""
        return Finding(
            f"It is read from the factors of a {what} adapter{rank}, not from a stored sum, so no rounding is in it.",
            "All changed matrices come from factors.",
        )
    known = f.resolved + f.noisy + f.below
    if not known:
        return None
    dtype = f.dtypes[0] if f.dtypes else "the stored precision"
    if f.resolved == known:
        return Finding(
            f"{strong('It is real')} as far as storage goes: rounding to {dtype} explains "
            f"{percent(f.rounding.median, 2)} of its energy in "
            f"the typical matrix and at most {percent(f.rounding.high, 2)} in any.",
            rule,
        )
    if kind == "below_precision":
        return Finding(
            f"{strong('Most of it is rounding')}: in {whole(f.below)} of "
            f"{plural(known, 'changed matrix', 'changed matrices')} the update is smaller than the "
            f"rounding of {dtype} storage, so neither its size nor its rank can be read there.",
            rule,
            "warn",
        )
    unclear = f.noisy + f.below
    below = f" (more than half in {whole(f.below)})" if f.below else ""
    return Finding(
        f"{strong(f'{whole(f.resolved)} of {whole(known)}')} changed matrices stand clear of {dtype} rounding; in "
        f"{whole(unclear)} it "
        f"explains more than 1 % of the energy{below}, and no rank is claimed for those.",
        rule,
        "note",
    )


def _rank(f: Facts, kind: str) -> Finding | None:
    rule = RULES[kind]
    if kind == "vectors_only":
        return Finding("Vectors have no rank, so there is nothing for a low-rank adapter to hold.", rule)
    if kind == "unrelated":
        return Finding(
            "Ranks and energies below describe that difference; they say nothing about a fine-tuning.", rule, "warn"
        )
    if kind == "below_precision":
        return Finding(_visible_directions(f), rule, "warn")
    if kind == "decay_only":
        return Finding(
            f"{strong(percent(f.along_base.median))} of its energy lies along the base weights themselves, with "
            f"nearly one factor "
            f"(c = {number(f.shrinkage.median)}, middle 80 % {number(f.shrinkage.p10)} to {number(f.shrinkage.p90)}): "
            f"{_direction(f.shrinkage.median)}. Its ranks are those of W0.",
            rule,
        )
    if kind == "adapter" and f.rank_90.count and f.adapter_rank.count:
        return Finding(
            f"It is {strong('low-rank by construction')}: 90 % of its energy takes "
            f"{strong(number(f.rank_90.median))} of the "
            f"{number(f.adapter_rank.median)} directions that its factors allow, in the typical matrix.",
            rule,
        )
    if kind == "low_rank" and f.resolved < f.changed_matrices / 2:
        return Finding(_visible_directions(f), rule, "note")
    if kind == "low_rank":
        return Finding(
            f"{strong(f'{_span(f.signal_rank)} directions')} stand above rounding, "
            f"{percent(f.signal_energy.median)} of the energy in the typical "
            "matrix; what lies below is no larger than rounding leaves. This is consistent with a merged low-rank "
            "update.",
            rule,
        )
    if not f.rank_90.count:
        return Finding(_visible_directions(f), "No changed matrix is resolved.", "note") if f.changed_matrices else None
    return _spread(f)


def _spread(f: Facts) -> Finding:
    ratio = f.rank_90_ratio.median
    words = next(text for limit, text in WORDS if ratio < limit or math.isinf(limit))
    energy = f.energy_at.get(16, Spread()).median
    adapter = (
        f" A rank-16 update could keep at best {strong(percent(energy, 2))} of it." if not math.isnan(energy) else ""
    )
    approximately = "about " if f.estimated else ""
    return Finding(
        f"The update {strong(words)}: 90 % of its energy takes {approximately}{number(f.rank_90.median)} of "
        f"{number(f.dimensions.median)} directions in the "
        f"typical matrix, {number(ratio, 2)} of what noise of the same shape takes.{adapter}",
        "Median rank_90_ratio of the resolved matrices: "
        + "; ".join(f"below {limit} “{text}”" if limit < math.inf else f"else “{text}”" for limit, text in WORDS)
        + ".",
    )


def _visible_directions(f: Facts) -> str:
    if not f.signal_rank.median >= 1:
        return "In the typical matrix no direction stands above rounding: its rank cannot be read from these files."
    directions = plural(round(f.signal_rank.median), "direction stands", "directions stand")
    return (
        f"In the typical matrix {strong(directions)} above rounding, with {percent(f.signal_energy.median, 2)} of "
        f"the energy; whether more lie "
        "below it cannot be read from these files, so no rank is claimed."
    )


def _direction(c: float) -> str:
    if c < 0:
        return "a uniform growth of the weights"
    return "a uniform shrink, which is what weight decay leaves"


def _relative(spread: Spread) -> float:
    """The width of the middle 80 % over the median."""
    return (spread.p90 - spread.p10) / abs(spread.median) if spread.median else math.inf


def _only_rounding_beyond(f: Facts) -> bool:
    if f.beyond.count:
        return f.beyond.median <= BEYOND
    return f.signal_energy.median >= 1 - 1e-6


def _span(s: Spread) -> str:
    return number(s.low) if s.low == s.high else f"{number(s.low)}–{number(s.high)} (median {number(s.median)})"


def _all(count: int) -> str:
    return "the one tensor" if count == 1 else f"all {whole(count)} tensors"


def five(f: Facts) -> list[Figure]:
    """The five numbers of the first screen, each with its meaning; one that does not apply says why."""
    clear = f.rank_90.count
    hidden = EMPTY if f.changed_matrices else "0"
    no_rank = "no changed matrix stands clear of rounding" if f.changed_matrices else "no matrix changed"
    energy = f.energy_at.get(16, Spread()).median
    sure = f.resolved + (f.factored if f.resolved == 0 else 0)
    return [
        Figure(
            percent(f.change.median) if f.changed_matrices else "0",
            "relative change",
            "‖ΔW‖ / ‖W0‖ of the typical changed matrix" if f.has_base else "needs the base's weights",
            "relative_change",
        ),
        Figure(f"{whole(f.changed)} / {whole(f.tensors)}", "tensors changed", _meaning_of_changed(f)),
        Figure(
            f"{whole(sure)} / {whole(f.changed_matrices)}",
            "matrices resolved",
            "stand clear of the rounding of their storage",
            "resolution",
        ),
        Figure(
            number(f.rank_90_ratio.median, 2) if clear else hidden,
            "rank against noise",
            f"rank_90 {number(f.rank_90.median)}; noise of that shape has {number(f.rank_90_null.median)}"
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


def _meaning_of_changed(f: Facts) -> str:
    skipped = f"; {plural(f.skipped, 'other')} skipped" if f.skipped else ""
    return f"{plural(f.matrices, 'matrix', 'matrices')} and {plural(f.vectors, 'vector')}{skipped}"
