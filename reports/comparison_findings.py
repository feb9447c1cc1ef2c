"""The sentences of a comparison: numbers in, words out, by rules that are stated beside them.

A difference is called one only where its 95 % interval leaves zero (or one, for ratios) on one side; without an
interval it is described as a difference of points. Nothing here says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from deltaw.reports.comparison_points import cut_off
from deltaw.reports.findings import Figure, Finding
from deltaw.reports.text import EMPTY, aligned, code, listed, missing, number, percent, plural, short, strong, whole

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.comparison import Comparison

AXES = {"learning": ("learned more", "learned less"), "retention": ("kept more", "kept less")}
EQUAL = "equal_learning"
TOLD = 3  # groups that the first sentence tells of
ALPHA = 0.05
ENOUGH_SEEDS = 4  # from which an interval over seeds is seldom several times as wide as the effect
# Measured by `python -m benchmarks.calibration`; the table stands in docs/validity.md.
CHANCE = (
    "Where nothing differs, a claim gets a verdict in at most 5 % of tables, and some claim of a table in up to 13 % "
    "where scores alone are compared, in about a quarter with claims about weights: one verdict among many undecided "
    "ones is weak evidence."
)
RULE_DIFFERENCE = (
    "A group differs from its reference where the 95 % interval of the difference excludes 0: Welch's over seeds, each "
    "group at the largest number of tokens that both have, adjusted by Holm for the number of groups on each axis. At "
    "equal learning: mean over the range of learning that both fronts reach, with what the points leave open between "
    "them. With one seed on a side nothing is decided and the points are given."
)
RULE_UPDATE = (
    "Medians over the matrices that both groups have; a difference where Welch's p over seeds, adjusted by Holm for "
    "the number of groups, is below 5 % and the interval of the ratio excludes 1."
)


def answer(c: Comparison) -> list[Finding]:
    """The first screen: who learned and kept more, what was compared, what the updates look like, what it means."""
    found = [_lead(c), _what(c), _update(c), _verdicts(c)]
    return [f for f in found if f is not None]


def five(c: Comparison) -> list[Figure]:
    """The numbers of the first screen."""
    runs, prints = c.runs(), c.fingerprints()
    comparable = prints[prints["reference"] == c.reference]  # of the same domain
    learned, kept = _best(comparable, "learning"), _best(comparable, "retention")
    claims = c.claims()
    claims = claims[claims["basis"] != ""]
    counts = [int((claims["verdict"] == v).sum()) for v in ("agrees", "disagrees", "cannot tell")]
    reference = prints.set_index("group").loc[c.reference]
    return [
        Figure(whole(len(runs)), "runs", f"in {plural(len(c.groups), 'group')}; {_seeds(prints)}"),
        Figure(*learned, "highest mean score on what was learned"),
        Figure(*kept, "highest mean score on what the base knew"),
        Figure(
            number(reference["rank_90"]),
            "rank_90 of the reference",
            "median over its matrices" if not missing(reference["rank_90"]) else "its weights were not analysed",
            "rank_90",
        ),
        Figure(f"{counts[0]} / {counts[1]} / {counts[2]}", "claims", "checked: agree / disagree / cannot tell"),
    ]


def _best(prints: pd.DataFrame, axis: str) -> tuple[str, str]:
    label = {"learning": "learned most", "retention": "kept most"}[axis]
    known = prints[prints[axis].notna()]
    if not len(known):
        return EMPTY, f"{label}: no scores"
    row = known.sort_values(axis).iloc[-1]
    return number(row[axis]), f"{label}: {short(row['group'], 24)}"


def _seeds(prints: pd.DataFrame) -> str:
    low, high = int(prints["n_seeds"].min()), int(prints["n_seeds"].max())
    return plural(low, "seed") + " each" if low == high else f"{low} to {high} seeds each"


def _what(c: Comparison) -> Finding:
    prints = c.fingerprints()
    analysed = int((c.runs()["n_layers"] > 0).sum())
    others = [g for g in c.groups if g != c.reference]
    several = prints["reference"].nunique() > 1
    text = f"{strong(plural(len(c.runs()), 'run'))} of one base in {plural(len(c.groups), 'group')}"
    text += f", {whole(analysed) if analysed else 'none'} of them with weights" if analysed < len(c.runs()) else ""
    if several:
        text += "; scores are compared within a domain and a kind of training only, each group with its reference."
    else:
        text += f"; {code(c.reference)} is compared with {listed([code(g) for g in others], 4)}." if others else "."
    alone = prints[prints["n_seeds"] == 1]
    if len(alone) == len(prints):
        text += " There is one seed per group: nothing here says what other seeds would give"
        text += ", intervals cover layers only." if analysed else "."
    elif len(alone):
        text += f" {plural(len(alone), 'group has', 'groups have')} one seed only."
    return Finding(text, "Groups with one seed have no spread between seeds.", "note" if len(alone) else "info")


def _lead(c: Comparison) -> Finding | None:
    """Each group against its reference on both axes and at equal learning, what is decided first."""
    prints = c.fingerprints()
    prints = prints[(prints["group"] != prints["reference"])]
    known = prints[prints[[f"{a}_effect" for a in AXES]].notna().any(axis=1)]
    if not len(known):
        return None
    decided = known[[f"{a}_p" for a in (*AXES, EQUAL)]].lt(ALPHA).sum(axis=1)
    size = known[[f"{a}_effect" for a in AXES]].abs().max(axis=1)
    order = known.assign(decided=decided, size=size).sort_values(["decided", "size"], ascending=False, kind="stable")
    several = prints["reference"].nunique() > 1
    against = "" if several else f"Against {code(c.reference)}: "
    rest = order.iloc[TOLD:]
    if known[[f"{a}_p" for a in AXES]].isna().all(axis=None):
        points = "; ".join(f"{_who(row, True)} {_points(row, AXES)}" for _, row in order.head(TOLD).iterrows())
        more = f"; and {plural(len(rest), 'other group')}" if len(rest) else ""
        text = f"No verdict: every comparison has one seed on a side. The points: {points}{more}."
        return Finding(text, RULE_DIFFERENCE, "note")
    text = "; ".join(_told(row, several) for _, row in order.head(TOLD).iterrows())
    if len(rest):
        text += f"; {_rest(rest)}"
    return Finding(f"{against}{text}.", RULE_DIFFERENCE, "info" if decided.any() else "note")


def _rest(rest: pd.DataFrame) -> str:
    n, clear = len(rest), int((rest["decided"] > 0).sum())
    if not clear:
        return f"{plural(n, 'other group')} cannot be told apart from it"
    if clear == n:
        return "the other group differs, too" if n == 1 else f"all {whole(n)} other groups differ, too"
    return f"{whole(clear)} of {plural(n, 'other group')} {'differs' if clear == 1 else 'differ'}, too"


def _who(row: pd.Series[Any], several: bool) -> str:
    return f"{code(row['group'])}{' against ' + code(row['reference']) if several else ''}"


def _points(row: pd.Series[Any], axes: Iterable[str]) -> str:
    known = [a for a in axes if not missing(row[f"{a}_effect"])]
    return listed([f"{strong(_signed(row[f'{a}_effect']))} on {a}" for a in known])


def _told(row: pd.Series[Any], several: bool) -> str:
    """`LoRA` learned less (−0.07 [−0.09, −0.05]), kept more (+0.11 [+0.1, +0.12])."""
    who = _who(row, several)
    clear = [_axis(row, a, *words) for a, words in AXES.items() if row[f"{a}_p"] < ALPHA]
    if row[f"{EQUAL}_p"] < ALPHA:
        clear.append(f"at equal learning {_axis(row, EQUAL, *AXES['retention'])}")
    open_ = [a for a in AXES if not missing(row[f"{a}_effect"]) and not row[f"{a}_p"] < ALPHA]
    seeds = [a for a in open_ if not missing(row[f"{a}_p"])]
    points = [a for a in open_ if missing(row[f"{a}_p"])]
    parts = [f"{who} {listed(clear, 3)}"] if clear else []
    if seeds:
        said = listed([f"{a} ({_span(row, a)})" for a in seeds])
        parts.append(f"{'but' if clear else who} cannot be told apart on {said}")
    if points:
        said = _points(row, points)
        parts.append(f"{'and' if parts else who} has one seed on a side, no verdict: the points lie at {said}")
    if not missing(row[f"{EQUAL}_p"]) and not row[f"{EQUAL}_p"] < ALPHA:
        parts.append(f"and at equal learning the difference is open ({_span(row, EQUAL)})")
    return ", ".join(parts)


def _axis(row: pd.Series[Any], axis: str, more: str, less: str) -> str:
    return f"{more if row[f'{axis}_effect'] > 0 else less} ({_span(row, axis)})"


def _span(row: pd.Series[Any], axis: str) -> str:
    """`−0.07 [−0.09, −0.05]`."""
    value, low, high = (row[f"{axis}_effect{e}"] for e in ("", "_low", "_high"))
    if missing(low):
        return strong(_signed(value))
    value, low, high = aligned((value, low, high), signed=True)
    return f"{strong(value)} [{low}, {high}]"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def against_references(c: Comparison) -> pd.DataFrame:
    """The rows of `fronts` that compare a group with its reference: `group`, and differences of group − reference."""
    frame = c.fronts()
    of = c.fingerprints().set_index("group")["reference"].to_dict()
    first = [of[a] == b for a, b in zip(frame["group_a"], frame["group_b"], strict=True)]
    second = [of[b] == a for a, b in zip(frame["group_a"], frame["group_b"], strict=True)]
    rows = [
        frame[first].assign(group=frame["group_a"]),
        frame[second].assign(
            group=frame["group_b"], difference=-frame["difference"], low=-frame["high"], high=-frame["low"]
        ),
    ]
    import pandas as pd

    return pd.concat([r for r in rows if len(r)]) if any(map(len, rows)) else frame.assign(group="")


def _update(c: Comparison) -> Finding | None:
    """Rank and distance of the reference, and the widest contrasts with it."""
    prints = c.fingerprints().set_index("group")
    reference = prints.loc[c.reference]
    if missing(reference["relative_change"]):
        return None
    text = f"{code(c.reference)} moved its matrices by {strong(percent(reference['relative_change']))} of their norm"
    if not missing(reference["rank_90"]):
        text += f" with a median rank_90 of {strong(number(reference['rank_90']))}"
        if not missing(reference["rank_90_ratio"]):
            text += f" ({number(reference['rank_90_ratio'], 2)} of what pure noise has)"
    others = prints[prints["rank_90_effect"].notna() & prints["reference"].eq(c.reference)].sort_values(
        "rank_90_effect"
    )
    if len(others):
        low, high = others.iloc[0], others.iloc[-1]
        shown = [(others.index[0], low)] + ([(others.index[-1], high)] if len(others) > 1 else [])
        text += "; its rank is " + " and ".join(
            f"{_times(1 / r['rank_90_effect'])} that of {code(g)}{_sure(r)}"
            for g, r in shown
            if r["rank_90_effect"] > 0
        )
    return Finding(text + ".", RULE_UPDATE)


def _times(ratio: float) -> str:
    return "about" if 0.995 <= ratio < 1.005 else f"{number(ratio, 2)} times"


def _sure(row: Any) -> str:
    if missing(row["rank_90_p"]):
        return " (one seed on a side: nothing is known of others)"
    clear = row["rank_90_p"] < ALPHA and (row["rank_90_effect_low"] > 1 or row["rank_90_effect_high"] < 1)
    return "" if clear else " (no difference is decided)"


def _verdicts(c: Comparison) -> Finding | None:
    claims = c.claims()
    told = claims[claims["basis"] != ""]
    if not len(told):
        return None
    counts = {v: int((told["verdict"] == v).sum()) for v in ("agrees", "disagrees", "cannot tell")}
    verbs = {"agrees": "agree with {}", "disagrees": "disagree with {}", "cannot tell": "leave {} open"}
    words = [verbs[v].format(whole(n)) for v, n in counts.items() if n]
    text = f"{plural(len(told), 'published claim applies', 'published claims apply')}: these runs {listed(words)}."
    against = told[told["verdict"] == "disagrees"]
    if len(against):
        text += f" They disagree with {listed([f'“{t}”' for t in against['text']], 2)}."
    return Finding(text, "Each claim's rule stands beside its verdict below.")


def one_seed(c: Comparison) -> str:
    """What would decide the claims of which the points are all there is; empty if there are none."""
    told = c.claims()
    points = told[told["basis"].isin(["points", "test items only"])]
    if not len(points):
        return ""
    directions = f"{int(points['points_for'].sum())} for and {int(points['points_against'].sum())} against"
    return (
        f"{plural(len(points), 'claim')} {'rests' if len(points) == 1 else 'rest'} on comparisons with one seed on a "
        f"side, which decide nothing; their points lie {directions}. Two seeds or more in each group, better three to "
        "five, would decide them; the standard error of an evaluation is that of its items, not of the seeds."
    )


READINGS: dict[str, tuple[str, str]] = {
    "pareto": (
        "Learning against retention",
        "Right is more learned, up is more kept; the best is top right. A pale point is one run, a full one the "
        "mean over seeds; a group's points are joined along tokens, or along its settings. The wide grey line "
        "joins the points that no other beats on both axes. A point further left and higher may simply have "
        "trained less: compare the lines at equal learning, not the end points.",
    ),
    "fingerprints": (
        "What each group's update looks like",
        "One panel per quantity, one line per group, the reference on top. A dot is the median over matrices (for "
        "scores the mean over seeds), the bar its 95 % interval; bars that leave the panel are wider than it. The "
        "thin vertical line is the reference.",
    ),
    "spectra": (
        "Singular spectra by group",
        "σ of ΔW relative to its norm, geometric mean over the matrices of a kind, on logarithmic axes. A LoRA "
        "update ends at its rank. The dotted line is what noise of the same norm and shape would show: a spectrum "
        "that follows it has no preferred directions.",
    ),
    "ranks": (
        "Rank by layer and module",
        "The number of directions that hold 90 % of each update's energy, against depth, one panel per module. "
        "Matrices that do not stand above their rounding noise are left out.",
    ),
    "trajectories": (
        "Over training",
        "One line per group and choice of hyperparameters, means over seeds. With three seeds or more, and where "
        "few groups are drawn, the pale band is the 95 % interval, cut off where it is wider than the panel.",
    ),
    "claims": (
        "The claims, comparison by comparison",
        "One panel per claim, one row per comparison: the number and its interval over seeds, adjusted for the number "
        "of comparisons of the claim. The dashed line is the one that the claim draws. A filled dot is decided at 5 %: "
        "blue for the claim, orange against it; a hollow one is not. Intervals that leave the panel are wider than it; "
        "a dot without one has a single seed on a side.",
    ),
    "similarity": (
        "Overlap of the updates",
        "φ is the overlap of the leading directions of two updates: 1 if one contains the other; the cosine "
        "compares the whole updates entry by entry. The colour is the overlap less what chance gives that pair of "
        "ranks and shapes: replicates that are no more alike than chance found different directions.",
    ),
}


def readings(c: Comparison) -> dict[str, str]:
    """One line per figure: what it says here."""
    return {
        "pareto": _read_pareto(c),
        "fingerprints": _read_fingerprints(c),
        "spectra": "A curve that falls away early is of low rank; one that follows the dotted line is like noise.",
        "ranks": _read_ranks(c),
        "claims": "Nothing here says why: a verdict is what these runs show, by the rule beside it.",
        "trajectories": _read_trajectories(c),
        "similarity": _read_similarity(c),
    }


def _read_pareto(c: Comparison) -> str:
    runs = c.runs()
    best = list(dict.fromkeys(runs[runs["on_front"].eq(True)]["group"]))
    total = runs[runs["on_front"].notna()]["group"].nunique()
    have = "has" if len(best) == 1 else "have"
    names = listed([code(g) for g in best], 4)
    return f"{plural(len(best), 'group')} of {whole(total)} {have} a point that nothing beats on both axes: {names}."


def _read_fingerprints(c: Comparison) -> str:
    prints = c.fingerprints()
    common = [code(g) for g in prints[prints["common_shrinkage"].eq(True)]["group"]]
    if common:
        text = f"In {listed(common)} all matrices that could show it shrank by one factor, as weight decay leaves them."
    else:
        text = "In no group did all matrices shrink by one factor, which is what decoupled weight decay would leave."
    if cut := cut_off(prints):
        seeds = int(prints["n_seeds"].min())
        why = f": {plural(seeds, 'seed leaves', 'seeds leave')} that much open" if seeds < ENOUGH_SEEDS else ""
        text += f" {plural(cut, 'interval is', 'intervals are')} too wide to draw and cut off at the panel{why}."
    return text


def _read_ranks(c: Comparison) -> str:
    claims = c.claims().set_index("claim")
    row: Any = claims.loc["mlp-above-attention"]
    says = row["says"] if isinstance(row["says"], str) else row["says"].iloc[0]
    return says if says.startswith(str(c.reference)) else "Rank against depth, for every module that repeats."


def _read_trajectories(c: Comparison) -> str:
    frame = c.trajectories()
    part = frame[frame["metric"] == "rank_90"]
    if not len(part):
        return "How scores move over training."
    ends = [(g["value"].iloc[0], g["value"].iloc[-1]) for _, g in part.groupby(["group", "curve"])]
    grown, n = sum(last > first for first, last in ends), len(ends)
    if n == 1:
        return f"The rank {'grew' if grown else 'did not grow'} from the first point to the last."
    some = "none" if not grown else "all" if grown == n else whole(grown)
    return f"The rank grew in {some}{'' if some == 'all' else ' of'} {n} curves from the first point to the last."


def _read_similarity(c: Comparison) -> str:
    frame = c.similarity()
    frame = frame[frame["kind"] == "all"]
    if not len(frame):
        return ""
    same = frame[frame["group_a"] == frame["group_b"]]
    other = frame[frame["group_a"] != frame["group_b"]]
    parts = [
        f"{what} {strong(number(part['phi_left'].mean(), 2))}"
        for part, what in ((same, "within a group"), (other, "between groups"))
        if len(part)
    ]
    chance = number(frame["phi_left_null"].mean(), 2)
    return f"Mean overlap φ of the leading output directions: {listed(parts)}; by chance it would be {chance}."


def how_settings(c: Comparison) -> Sequence[tuple[str, str]]:
    """(group, the setting that stands for it)."""
    return [(r["group"], r["setting"] or "its only setting") for _, r in c.fingerprints().iterrows()]
