"""Claims and the axes of the first screen: verdicts where nothing differs, and where something does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from benchmarks.calibration.rows import Row, rate
from benchmarks.calibration.runs import FULL, ITEMS, Group, Rng, arms, layers, profile, run, score_runs
from deltaw.comparison.claims import all_claims
from deltaw.comparison.claims.verdicts import Claim
from deltaw.comparison.fingerprint import first_screen
from deltaw.comparison.fronts import compare_fronts
from deltaw.comparison.runs import Runs
from deltaw.types import counted

SEEDS, GROUPS, KINDS = (1, 2, 3, 5), (2, 3, 4, 5), ("iid", "realistic")
ANY = "any claim of the table"


def verdicts(runs: Runs) -> tuple[list[Claim], Mapping[str, Mapping[str, float]]]:
    """The claims that have evidence, and the adjusted p of every group on each axis of the first screen."""
    gaps = compare_fronts(runs)
    return [c for c in all_claims(runs, gaps) if c.evidence], first_screen(runs, gaps)


def table(tables: int = 500) -> Iterator[Row]:
    """Null tables by seeds, groups and evaluation errors; claims about weights with the truth on their line; power."""
    yield from _null(tables)
    yield from _on_the_line(tables)
    yield from _sweeps(tables)
    yield from _power(tables)


def _null(tables: int) -> Iterator[Row]:
    """No group differs: each claim and each axis, pooled over settings, and the settings one by one."""
    decided: Counter[str] = Counter()
    told: Counter[str] = Counter()
    settings = []
    for kind in KINDS:
        for seeds in SEEDS:
            for groups in GROUPS:
                for error in (float("nan"), ITEMS):
                    rng = np.random.default_rng([seeds, groups, KINDS.index(kind), int(error == error)])
                    some, known = 0, set()
                    for _ in range(tables):
                        claims, axes = verdicts(score_runs(rng, kind, arms(groups), seeds, error))
                        spoken = [c.claim for c in claims if c.verdict != "cannot tell"]
                        spoken += [
                            f"first screen: {axis}" for axis, p in axes.items() if any(q < 0.05 for q in p.values())
                        ]
                        some += any(not s.startswith("first") for s in spoken)
                        if seeds > 1:
                            decided.update(spoken)
                            known |= {c.claim for c in claims} | {f"first screen: {a}" for a, p in axes.items() if p}
                        elif spoken:
                            decided["one seed"] += 1
                    told.update(dict.fromkeys(known, tables))  # tables of a setting in which it can be checked
                    with_errors = ", with lm-eval errors" if error == error else ""
                    name = f"nothing differs, {kind}, {counted(seeds, 'seed')}, {groups} groups{with_errors}: {ANY}"
                    settings.append(rate(name, "0" if seeds == 1 else "published", some, tables))
    n_one = tables * len(KINDS) * len(GROUPS) * 2
    yield rate(
        "nothing differs, one seed: any verdict, or difference on the first screen", "0", decided["one seed"], n_one
    )
    for name in sorted(told):
        yield rate(f"nothing differs, two seeds or more, all settings: {name}", "≤ .05", decided[name], told[name])
    yield from settings


def _weight_runs(rng: Rng, kind: str, seeds: int, factors: Mapping[str, Mapping[str, float]]) -> Runs:
    """Full fine-tuning and two LoRA ranks with layers; `factors` by group."""
    levels = profile(rng, 6)
    items = []
    for group in arms(3):
        items += [run(group, s, {}, layers(rng, kind, levels, factors.get(group.name))) for s in range(seeds)]
    return Runs(items, FULL.name)


def _on_the_line(tables: int) -> Iterator[Row]:
    """Claims about weights where the truth lies just on the line that the rule draws."""
    for seeds in (2, 3, 5):
        for kind in KINDS:
            rng = np.random.default_rng([5, seeds, KINDS.index(kind)])
            decided: Counter[str] = Counter()
            told: Counter[str] = Counter()
            for _ in range(tables):
                runs = _weight_runs(rng, kind, seeds, {})
                for c in all_claims(runs, ()):
                    if c.evidence and c.claim in {"mlp-above-attention", "first-and-last-lower"}:
                        told[c.claim] += 1
                        decided[c.claim] += c.verdict != "cannot tell"
            for name in sorted(told):
                yield rate(f"{name}: equal, {kind}, {seeds} seeds: a verdict", "≤ .05", decided[name], told[name])
    yield from _growth(tables)
    yield from _slope(tables)


def _growth(tables: int) -> Iterator[Row]:
    """The rank does not change with tokens; matrices of small rank stand above their rounding earlier."""
    for seeds in (2, 3, 5):
        rng = np.random.default_rng([6, seeds])
        decided = told = 0
        for _ in range(tables):
            levels = profile(rng)
            items = []
            for s in range(seeds):
                for tokens in (1000, 4000):
                    frame = layers(rng, "iid", levels)
                    attention = (frame["kind"] == "attention").to_numpy()
                    frame["rank_90"] *= np.where(attention, 20, 60)
                    frame["resolution"] = np.where(attention | (tokens > 1000), "resolved", "below_precision")
                    items.append(run(FULL, s, {}, frame, tokens=tokens))
            claim = next(c for c in all_claims(Runs(items, FULL.name), ()) if c.claim == "rank-grows-with-tokens")
            told += bool(claim.evidence)
            decided += claim.verdict != "cannot tell"
        yield rate(f"rank-grows-with-tokens: constant, {seeds} seeds: a verdict", "≤ .05", decided, told)


def _slope(tables: int) -> Iterator[Row]:
    """β = .30 exactly, the end of what the claim allows."""
    for seeds in (2, 3, 5):
        rng = np.random.default_rng([8, seeds])
        decided = 0
        for _ in range(tables):
            levels = profile(rng)
            items = []
            for rank in (4, 16, 64):
                group = Group(f"LoRA r={rank}", "lora", {"rank": rank})
                factors = {"stable_rank": rank**0.30}
                items += [run(group, s, {}, layers(rng, "iid", levels, factors)) for s in range(seeds)]
            claims = all_claims(Runs(items, "LoRA r=4"), ())
            decided += next(c for c in claims if c.claim == "stable-rank-grows-as-a-power").verdict != "cannot tell"
        yield rate(f"stable-rank-grows-as-a-power: β = .30, {seeds} seeds: a verdict", "≤ .05", decided, tables)


def _sweeps(tables: int) -> Iterator[Row]:
    """The best of many settings against the best of few, where no setting is better."""
    lora = arms(2)[1]
    for few, many, seeds in ((1, 1, 3), (1, 5, 3), (2, 10, 3), (1, 10, 5), (1, 5, 2)):
        rng = np.random.default_rng([9, few, many, seeds])
        found = 0
        for _ in range(tables):
            items = []
            for group, n in ((FULL, few), (lora, many)):
                for j in range(n):
                    g = group._replace(hyper=dict(group.hyper) | {"learning_rate": 1e-4 * (j + 1)})
                    x = rng.normal(0.5, 0.01, seeds)
                    items += [run(g, 100 * j + s, {"learning": float(v)}) for s, v in enumerate(x)]
            claims = all_claims(Runs(items, FULL.name), ())
            found += next(c for c in claims if c.claim == "lora-learns-less").verdict != "cannot tell"
        name = f"lora-learns-less: best of {few} against best of {many} equal settings, {seeds} seeds: a verdict"
        yield rate(name, "≤ .05", found, tables)


def _power(tables: int) -> Iterator[Row]:
    """One LoRA group of several learned less; and all of them."""
    for seeds, spreads in ((5, 3.0), (3, 6.0)):
        for comparisons in (1, 2, 3, 4, 6):
            for which, nominal in (("one", "≥ .80" if comparisons <= 3 else "published"), ("all", "published")):
                rng = np.random.default_rng([10, seeds, comparisons, which == "all"])
                found = tested = 0
                for _ in range(tables):
                    planted = comparisons if which == "all" else 1
                    claim = _planted(rng, seeds, comparisons, planted, spreads)
                    found += sum(d.speaks == 1 for d in claim.decisions[:planted])
                    tested += planted
                name = f"{which} of {comparisons} LoRA groups {spreads:g} spreads lower, {seeds} seeds: decided"
                yield rate(name, nominal, found, tested)
    yield from _unequal(tables)


def _planted(rng: Rng, seeds: int, comparisons: int, planted: int, spreads: float, ratio: float = 1.0) -> Claim:
    """`lora-learns-less` where the first LoRA groups are lower by so many spreads (rms of the two groups')."""
    groups = [
        FULL,
        *(Group(f"LoRA r={4 * 2**i}", "lora", {"domain": "maths", "rank": 4 * 2**i}) for i in range(comparisons)),
    ]
    spread = 0.02 * float(np.sqrt((1 + ratio**2) / 2))
    items = []
    for i, group in enumerate(groups):
        level = 0.5 - (spreads * spread if 0 < i <= planted else 0.0)
        x = rng.normal(level, 0.02 * (ratio if i == 0 else 1.0), seeds)
        items += [run(group, s, {"learning": float(v)}) for s, v in enumerate(x)]
    return next(c for c in all_claims(Runs(items, FULL.name), ()) if c.claim == "lora-learns-less")


def _unequal(tables: int) -> Iterator[Row]:
    """The same with unequal spreads, three comparisons; the reference's is the larger, or drawn."""
    for seeds, spreads in ((5, 3.0), (3, 6.0)):
        for ratio in (1.5, 2.0, 3.0):
            rng = np.random.default_rng([12, seeds, int(10 * ratio)])
            found = sum(_planted(rng, seeds, 3, 1, spreads, ratio).decisions[0].speaks == 1 for _ in range(tables))
            name = f"one of 3 LoRA groups {spreads:g} spreads lower, spreads 1 to {ratio:g}, {seeds} seeds: decided"
            yield rate(name, "≥ .80" if ratio <= 2 else "published", found, tables)
        rng = np.random.default_rng([13, seeds])
        drawn = 2 ** rng.uniform(-1, 1, 4 * tables)
        found = sum(_planted(rng, seeds, 3, 1, spreads, float(ratio)).decisions[0].speaks == 1 for ratio in drawn)
        name = (
            f"one of 3 LoRA groups {spreads:g} spreads lower, spreads up to 1 to 2 either way, {seeds} seeds: decided"
        )
        yield rate(name, "≥ .80", found, len(drawn))
