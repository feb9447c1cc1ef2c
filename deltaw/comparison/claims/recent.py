"""Claims of 2025 and 2026: stable rank over LoRA ranks, reinforcement learning's updates, intruder dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from deltaw.comparison.claims.domains import INSTRUCTION
from deltaw.comparison.claims.evidence import Found, claim
from deltaw.comparison.claims.sources import INTRUDERS, LINEAR_RL, SPARSE_RL, STABLE_RANK
from deltaw.comparison.claims.verdicts import Claim, ClaimEvidence
from deltaw.comparison.endpoints import at_common_tokens, has_layers
from deltaw.comparison.manifest import AXES
from deltaw.comparison.roles import Arena
from deltaw.comparison.runs import Array, Run, Runs, arena, mean_scores
from deltaw.comparison.trajectories import Trajectory, curves
from deltaw.comparison.welch import Estimate, GroupShare, combination

BETA = (0.23, 0.30)
RL = (
    "rl",
    "grpo",
    "ppo",
    "dpo",
    "rlhf",
    "rlvr",
    "dapo",
    "reinforce",
    "reinforcement learning",
    "reinforcement-learning",
)
SPARSE = 0.5  # RL leaves more of the entries unchanged, SFT fewer; published: 68 to 96 % against 6 to 15 %
DOMINANT = 0.5
LINE = 0.9
LEAST_POINTS = 4  # of a curve that may be called a line
LEAST_SETTINGS = 6  # of a rank correlation
SEEDS = "Student's t over seeds at 5 %, Holm over the comparisons"


def of_arena(runs: Runs, a: Arena) -> Iterator[Claim]:
    """The claims that concern one domain."""
    yield _stable_rank(runs, a)
    yield _dominance(runs, a)
    yield _line(runs, a)
    yield _intruders(runs, a)


def _medians(runs: Runs, replicates: Sequence[Run], metric: str) -> Array:
    """The median of each run over the matrices that have a value in all of them; NaN where there is none."""
    values = runs.table.metric(metric, replicates)
    known = np.isfinite(values).all(0) if values.size else np.zeros(0, dtype=bool)
    return np.median(values[:, known], axis=1) if known.any() else np.full(len(replicates), math.nan)


def _stable_rank(runs: Runs, a: Arena) -> Claim:
    low, high = BETA
    rule = (
        "Slope β of ln(median stable rank of each run) over ln(rank of the LoRA group), three ranks or more at the "
        f"largest number of tokens that all have; Welch's t over seeds. For: above {low} and below {high:.2f} at 5 %; "
        "against: beyond one of them."
    )
    text = "The stable rank of LoRA updates grows as r^β over their ranks, with β from .23 to .30"
    missing = "needs analysed runs of three LoRA ranks"
    return claim("stable-rank-grows-as-a-power", text, rule, a, [_slope(runs, a)], missing, STABLE_RANK)


def _slope(runs: Runs, a: Arena) -> Found:
    ranked = {r: g for r, g in a.lora if r}
    if len(ranked) < 3:
        return None
    having = {r: g for r, g in ranked.items() if any(has_layers(x) for x in runs.items if x.spec.group == g)}
    if len(having) < 3:
        return None
    found = at_common_tokens(runs, list(having.values()), has_layers)
    if found is None:
        return "the LoRA groups have no number of tokens in common"
    every = [r for replicates in found for r in replicates]
    values = np.log(_medians(runs, every, "stable_rank"))
    if not np.isfinite(values).all():
        return "the LoRA groups share no matrix with a stable rank"
    x = np.log(np.array(list(having), dtype=np.float64))
    weights = (x - x.mean()) / float(((x - x.mean()) ** 2).sum())
    ends = np.cumsum([len(f) for f in found])[:-1]
    parts = [GroupShare(float(w), v) for w, v in zip(weights, np.split(values, ends), strict=True)]
    slope = combination(parts)
    low, high = BETA
    bounds = [replace(slope, value=slope.value - low), replace(slope.negated(), value=high - slope.value)]
    ranks = ", ".join(str(r) for r in having)
    note = f", allowed [{low}, {high:.2f}]"
    return ClaimEvidence(f"slope over ranks {ranks}", slope, bounds, scale="number", note=note, lines=BETA)


def across(runs: Runs, found: Sequence[Arena]) -> Iterator[Claim]:
    """RL's updates are sparse, supervised fine-tuning's are not."""
    rule = (
        f"Median unchanged_fraction of each run of full fine-tuning. For: above {SPARSE} for reinforcement learning "
        f"and below it for supervised fine-tuning, {SEEDS}. Stored precision decides how many entries an update leaves "
        "unchanged, so that both must be stored alike."
    )
    evidence: list[Found] = []
    for kinds, sign, word in ((RL, 1.0, "RL"), (INSTRUCTION, -1.0, "SFT")):
        for a in found:
            if a.training in kinds and a.full is not None:
                values = _medians(
                    runs, [r for r in runs.representatives(a.full) if has_layers(r)], "unchanged_fraction"
                )
                estimate = combination([GroupShare(1.0, values)])
                if math.isfinite(estimate.value):
                    bound = replace(
                        estimate if sign > 0 else estimate.negated(), value=sign * (estimate.value - SPARSE)
                    )
                    what = f"{a.full}, unchanged ({word})"
                    evidence.append(ClaimEvidence(what, estimate, [bound], scale="number", lines=(SPARSE,)))
    trained = {a.training in RL for a in found if a.training in (*RL, *INSTRUCTION) and a.full is not None}
    precisions = _precisions(runs, [a.full for a in found if a.training in (*RL, *INSTRUCTION) and a.full is not None])
    if len(trained) < 2:
        evidence = []
    elif len(precisions) > 1:
        evidence = [f"the runs are stored differently ({', '.join(sorted(precisions))})"]
    text = "Updates of reinforcement learning leave most entries unchanged, those of supervised fine-tuning do not"
    missing = 'needs analysed full fine-tuning of both kinds (hyperparameters.training = "rl" and "sft")'
    yield replace(claim("rl-updates-are-sparse", text, rule, None, evidence, missing, SPARSE_RL), needs_all=True)


def _precisions(runs: Runs, groups: Sequence[str]) -> set[str]:
    """The precisions that the matrices of these groups are stored in."""
    out: set[str] = set()
    for r in (r for g in groups for r in runs.representatives(g)):
        if r.layers is not None:
            column = "ft_precision" if "ft_precision" in r.layers.columns else "ft_dtype"
            out |= {str(v) for v in r.layers.loc[r.layers["ndim"] >= 2, column].dropna().unique()}
    return out


def _rl_full(a: Arena) -> list[str]:
    """Full fine-tuning by reinforcement learning."""
    return [a.full] if a.training in RL and a.full is not None else []


RL_NEEDS = 'full fine-tuning by reinforcement learning (hyperparameters.training = "rl")'


def _dominance(runs: Runs, a: Arena) -> Claim:
    rule = (
        f"Median energy_at_1 of each run. For: above {DOMINANT}, {SEEDS}. The paper measures how much of the "
        "performance the first direction recovers, which weights alone cannot show."
    )
    found: list[Found] = []
    for g in _rl_full(a):
        values = _medians(runs, [r for r in runs.representatives(g) if has_layers(r)], "energy_at_1")
        share = combination([GroupShare(1.0, values)])
        if math.isfinite(share.value):
            bound = replace(share, value=share.value - DOMINANT)
            found.append(ClaimEvidence(f"{g}, energy_at_1", share, [bound], scale="number", lines=(DOMINANT,)))
    text = "One direction dominates the updates of reinforcement learning"
    return claim("rl-rank-1-dominates", text, rule, a, found, f"needs an analysed run of {RL_NEEDS}", LINEAR_RL)


def _line(runs: Runs, a: Arena) -> Claim:
    rule = (
        f"Per seed R² of a straight line through σ1 of ΔW over tokens, the median over matrices, {LEAST_POINTS} points "
        f"or more. For: above {LINE}, {SEEDS}."
    )
    found: list[Found] = [_linearity(runs, c) for c in curves(runs) if c.group in _rl_full(a)]
    text = "The first direction of the updates of reinforcement learning grows along a line"
    missing = f"needs analysed runs at {LEAST_POINTS} numbers of tokens of {RL_NEEDS}"
    return claim("rl-rank-1-is-linear", text, rule, a, found, missing, LINEAR_RL)


def _linearity(runs: Runs, curve: Trajectory) -> Found:
    by_seed: dict[int, list[tuple[int, Run]]] = {}
    for tokens, replicates in curve.points:
        for i, r in enumerate(replicates):
            if r.layers is not None:
                by_seed.setdefault(i if r.spec.seed is None else r.spec.seed, []).append((tokens, r))
    complete = [points for points in by_seed.values() if len(points) == len(curve.points)]
    if len(curve.points) < LEAST_POINTS or not complete:
        return None
    values = [_r_squared(runs, points) for points in complete]
    if not np.isfinite(values).all():
        return None
    share = combination([GroupShare(1.0, values)])
    where = f"{curve.group}{', ' + curve.setting if curve.setting else ''}, {len(curve.points)} points, R²"
    return ClaimEvidence(where, share, [replace(share, value=share.value - LINE)], scale="number", lines=(LINE,))


def _r_squared(runs: Runs, points: Sequence[tuple[int, Run]]) -> float:
    """The median over matrices of the R² of σ1 against tokens."""
    values = runs.table.metric("spectral_norm", [r for _, r in points])
    values = values[:, np.isfinite(values).all(0)] if values.size else np.zeros((len(points), 0))
    varied = values.std(0) > 0
    if not varied.any():
        return math.nan
    tokens = np.array([t for t, _ in points], dtype=np.float64)
    return float(np.median([np.corrcoef(tokens, column)[0, 1] ** 2 for column in values[:, varied].T]))


def _intruders(runs: Runs, a: Arena) -> Claim:
    rule = (
        f"Spearman's ρ over settings between the median number of intruder dimensions and −retention, means over "
        f"seeds, {LEAST_SETTINGS} settings or more; Fisher's z with Bonett and Wright's error. For: above 0 at 5 %."
    )
    text = "The more intruder dimensions, the more was forgotten"
    missing = f"needs retention scores and analyses with --alignment of {LEAST_SETTINGS} settings (ranks, rates)"
    return claim("intruders-predict-forgetting", text, rule, a, [_correlation(runs, a)], missing, INTRUDERS)


def _correlation(runs: Runs, a: Arena) -> Found:
    from scipy import stats

    points: list[tuple[float, float]] = []
    alone = False
    for setting, replicates in runs.settings.items():
        if arena(setting) != (a.domain, a.training):
            continue
        found = [r for r in replicates if has_layers(r)]
        kept = mean_scores(replicates)[AXES.index("retention")]
        values = _medians(runs, found, "intruders") if found else np.zeros(0)
        if len(values) and np.isfinite(values).all() and math.isfinite(kept):
            points.append((float(values.mean()), -kept))
            alone = alone or len(found) < 2
    x, y = (np.array(v) for v in zip(*points, strict=True)) if points else (np.zeros(0), np.zeros(0))
    if len(points) < LEAST_SETTINGS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    rho = float(stats.spearmanr(x, y).statistic)
    z = math.atanh(max(-0.999999, min(0.999999, rho)))
    n = len(points)
    error = math.nan if alone else math.sqrt((1 + rho**2 / 2) / (n - 3))
    return ClaimEvidence(f"{n} settings, ρ", Estimate(z, error, float(n - 2)), scale="correlation")
