"""The sentences of a survey: numbers in, words out, by rules that are stated beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deltaw.reports.findings import Figure, Finding
from deltaw.reports.sides import name_at
from deltaw.reports.text import code, listed, number, percent, plural, strong, whole

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.surveys import Survey
    from deltaw.surveys.merging import Merge

LIKE_CHANCE = 2.0  # standard deviations of the cosine of independent updates


def answer(survey: Survey) -> list[Finding]:
    """What a survey says first: how many there are, how they group, what is wrong with some."""
    frame = survey.adapters()
    found = [_many(survey, frame), _groups(survey, frame), _sizes(frame), _flagged(survey, frame)]
    return [f for f in found if f is not None]


def flagged(frame: pd.DataFrame, word: str) -> pd.DataFrame:
    """The rows that bear a flag."""
    return frame[frame["flags"].str.split(" ").map(lambda words: word in words)]


def sizes_of_clusters(frame: pd.DataFrame) -> pd.Series[int]:
    """How many adapters each cluster has, the largest first."""
    return frame["cluster"].dropna().astype(int).value_counts(sort=False).sort_index()


def clustered(frame: pd.DataFrame) -> pd.Series[float]:
    """The number of each adapter's cluster; NaN where it is like no other: one alone is no cluster."""
    return frame["cluster"].where(frame["cluster"].duplicated(keep=False))


def map_sentence(survey: Survey, axes: tuple[int, int] = (1, 2)) -> str:
    """How much of what parts the adapters two axes of the map show; empty where that is not known."""
    known = survey.about.axes
    if len(known) < max(axes):
        return ""
    share = percent(min(sum(known[a - 1] for a in axes), 1.0), 2)
    return f"Axes {axes[0]} and {axes[1]} hold {share} of the squared distances between the adapters."


def _many(survey: Survey, frame: pd.DataFrame) -> Finding:
    usable = int(frame["cluster"].notna().sum())
    base = f" of {code(name_at(survey.about.base))}" if survey.about.base else ""
    compared = (
        "every pair was compared exactly, from the factors"
        if survey.about.compared == "exact"
        else "every pair was compared by sketches, and each one's nearest exactly"
    )
    if usable < 2:
        compared = "there is no pair to compare"
    failed = len(survey.failed)
    lost = f"; {plural(failed, 'adapter')} could not be read" if failed else ""
    text = f"{strong(plural(len(frame), 'adapter'))}{base}: {compared}{lost}."
    rule = "All that were given. Exact up to 200 adapters; above, sketches with 95 % intervals."
    return Finding(text, rule, "note" if failed else "info")


def _groups(survey: Survey, frame: pd.DataFrame) -> Finding | None:
    sizes = sizes_of_clusters(frame)
    if sizes.sum() < 2:
        return None
    groups, single = sizes[sizes > 1], int((sizes == 1).sum())
    cut = number(survey.about.cut, 2)
    if groups.empty:
        text = f"No two belong together: no average cosine of a group reaches {cut}."
    else:
        largest = listed([f"{whole(n)}" for n in groups.head(3)], 3)
        word = plural(len(groups), "cluster")
        alone = f", and {strong(whole(single))} that {'is' if single == 1 else 'are'} like no other" if single else ""
        text = f"They fall into {strong(word)} of two or more (the largest: {largest}){alone}."
    why = "a fixed one" if survey.about.cut_rule == "fixed" else "the 99 % quantile of independent updates"
    return Finding(text, f"Average linkage of 1 − cosine, cut at a cosine of {cut}, {why}.")


def _sizes(frame: pd.DataFrame) -> Finding | None:
    column = "relative_change" if frame["relative_change"].notna().any() else "fro_norm"
    values = frame[column].dropna().to_numpy(dtype=np.float64)
    values = values[values > 0]
    if len(values) < 2:
        return None
    write = percent if column == "relative_change" else number
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    what = "Relative change" if column == "relative_change" else "‖ΔW‖F"
    text = (
        f"{what}: {strong(write(float(middle)))} in the median; the middle 80 % lie between {write(float(low))} and "
        f"{write(float(high))}."
    )
    return Finding(text, f"Median, and 10 % and 90 % quantiles, of {column} over the adapters that change something.")


def _flagged(survey: Survey, frame: pd.DataFrame) -> Finding | None:
    counts = {word: len(flagged(frame, word)) for word in survey.about.rules}
    told = {word: n for word, n in counts.items() if n and word != "failed"}
    if not told:
        return Finding("Nothing stands out: no copy, none that is zero or diverged.", "No flag holds; see the rules.")
    words = listed([f"{code(word)} ({whole(n)})" for word, n in told.items()], len(told))
    return Finding(f"Look at these first: {words}.", "How many adapters bear each flag; see the rules.", "warn")


def five(survey: Survey) -> list[Figure]:
    """The numbers of the first screen."""
    frame = survey.adapters()
    sizes = sizes_of_clusters(frame)
    copies = len(flagged(frame, "duplicate"))
    marked = int((frame["flags"] != "").sum())
    close = frame["nearest_cosine"].dropna()
    return [
        Figure(whole(len(frame)), "adapters", f"{whole(int(sizes.sum()))} of them with numbers"),
        Figure(whole(int((sizes > 1).sum())), "clusters", "of two adapters or more"),
        Figure(whole(copies), "copies", "adapters whose cosine with another is above .999"),
        Figure(whole(marked), "flagged", "adapters that a rule points at"),
        Figure(number(float(close.median()) if len(close) else None, 2), "nearest", "median cosine with the nearest"),
    ]


def merge_sentences(merge: Merge | None) -> list[Finding]:
    """What a proposed merge would do."""
    if merge is None:
        return []
    whole_ = merge.interference[0]
    names = listed([code(n) for n in merge.names], 4)
    text = (
        f"Merging {names}: energy ratio {strong(number(whole_.energy_ratio))} (1: they are orthogonal), the signs "
        f"disagree in {strong(percent(whole_.sign_disagreement, 2))} of the entries that two of them change."
    )
    out = [Finding(text, "‖ΣΔ‖²/Σ‖Δ‖² over all matrices; entries that are 0 in all but one do not count.")]
    for method, what in (("sum", "In the plain sum"), ("ties", "By TIES (20 % kept)")):
        kept = [k for k in merge.kept if k.method == method and k.kind == "all"]
        told = listed([f"{code(k.name)} {percent(k.survives, 2)}" for k in kept], 6)
        text = f"{what} this share of each one's energy keeps its sign: {told}."
        out.append(Finding(text, "The share of an adapter's energy on entries where the merged update has its sign."))
    return out
