"""Made-up runs with a known truth: scores, and layers of which every metric is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from deltaw.comparison.evaluations import Score
from deltaw.comparison.manifest import RunSpec
from deltaw.comparison.runs import Run, Runs
from deltaw.metrics.registry import REGISTRY

Rng = np.random.Generator
SEED_SPREAD = 0.02  # of scores
ITEMS = 0.005  # the standard error that an evaluation gives
LAYER_SPREAD, SEED_OF_LAYERS, NOISE = 0.5, 0.1, 0.05  # of the logarithms of a metric
BLOCKS = 4
MODULES = {
    "self_attn.q_proj": ("attention", 64, 64),
    "self_attn.k_proj": ("attention", 64, 64),
    "self_attn.v_proj": ("attention", 64, 64),
    "self_attn.o_proj": ("attention", 64, 64),
    "mlp.gate_proj": ("mlp", 128, 64),
    "mlp.up_proj": ("mlp", 128, 64),
    "mlp.down_proj": ("mlp", 64, 128),
}
# Numbers that are never 0 and have no sign, as they stand in a table of layers that rounding does not touch.
METRICS = tuple(
    name
    for name, m in REGISTRY.items()
    if m.unit != "word"
    and m.section in {"size", "rank", "energy", "precision"}
    and name not in {"rounding_noise", "base_rounding"}
    and not name.endswith("_null")
)


class Group(NamedTuple):
    """A group of made-up runs: its name, method and hyperparameters, and the spread of its seeds."""

    name: str
    method: str
    hyper: Mapping[str, object]
    spread: float = 1.0


FULL = Group("full", "full", {"domain": "maths"})
DECAY = Group("full + decay", "full", {"domain": "maths", "weight_decay": 0.1})


def arms(n: int) -> list[Group]:
    """Full fine-tuning, LoRA of one rank to three, and from four groups on an arm with weight decay."""
    ranks = {2: (16,), 3: (4, 256), 4: (4, 256), 5: (4, 16, 256)}[n]
    lora = [Group(f"LoRA r={r}", "lora", {"domain": "maths", "rank": r}) for r in ranks]
    return [FULL, *lora, *([DECAY] if n >= 4 else [])]


def scores(rng: Rng, kind: str, groups: Sequence[Group], seeds: int) -> np.ndarray:
    """(groups, seeds) of a score of mean 0.5, where no group differs.

    Args:
        rng: The source of chance.
        kind: `iid`; `realistic`: half of the variance is the seed's and shared by the groups (the same data order),
            spreads differ between groups, and a score is a share of 200 items.
        groups: The groups.
        seeds: Of each.
    """
    x = rng.normal(size=(len(groups), seeds))
    if kind == "realistic":
        x = math.sqrt(0.5) * x + math.sqrt(0.5) * rng.normal(size=(1, seeds))
        x = x * np.exp(0.5 * rng.normal(size=(len(groups), 1)))
        return np.round((0.5 + SEED_SPREAD * x) * 200) / 200
    return 0.5 + SEED_SPREAD * x


def run(
    group: Group,
    seed: int,
    found: Mapping[str, float],
    layers: pd.DataFrame | None = None,
    *,
    error: float = math.nan,
    tokens: int | None = None,
) -> Run:
    """One run of a group."""
    name = f"{group.name}-{seed}-{tokens}"
    marks = {axis: Score(float(value), error) for axis, value in found.items()}
    spec = RunSpec(name, group.name, group.method, seed, tokens, dict(group.hyper), marks, where=name)
    return Run(spec, group.method, layers)


def score_runs(rng: Rng, kind: str, groups: Sequence[Group], seeds: int, error: float = math.nan) -> Runs:
    """Runs with scores only, where no group differs."""
    learning, retention = scores(rng, kind, groups, seeds), scores(rng, kind, groups, seeds)
    items = [
        run(g, s, {"learning": learning[i, s], "retention": retention[i, s]}, error=error)
        for i, g in enumerate(groups)
        for s in range(seeds)
    ]
    return Runs(items, groups[0].name)


@cache
def template(blocks: int = BLOCKS) -> pd.DataFrame:
    """A table of layers without metrics."""
    rows = [
        {"name": f"model.layers.{b}.{m}.weight", "stack": "model.layers", "layer": b, "module": m, "kind": kind}
        | {"part": "", "rows": rows, "cols": cols, "ndim": 2, "ft_dtype": "float32", "resolution": "resolved"}
        for b in range(blocks)
        for m, (kind, rows, cols) in MODULES.items()
    ]
    frame = pd.DataFrame(rows)
    frame["rank_90_null"] = 0.5 * np.minimum(frame["rows"], frame["cols"])
    return frame.set_index(pd.Index(frame["name"], name="key"))


def profile(rng: Rng, blocks: int = BLOCKS) -> np.ndarray:
    """(metrics, layers): what is the layer's own in every run; none for the rank, of which the claims speak."""
    levels = LAYER_SPREAD * rng.normal(size=(len(METRICS), blocks * len(MODULES)))
    for name in ("rank_90", "rank_90_ratio"):
        levels[METRICS.index(name)] = 0.0
    return levels


def layers(rng: Rng, kind: str, levels: np.ndarray, factors: Mapping[str, float] | None = None) -> pd.DataFrame:
    """A table of layers whose metrics are exp(layer's level + seed's shift + noise).

    Args:
        rng: The source of chance.
        kind: `iid`: each metric has its own seed effect; `realistic`: one that all metrics share.
        levels: Of `profile`.
        factors: Of some metrics.
    """
    shift = rng.normal(size=(1, 1)) if kind == "realistic" else rng.normal(size=(len(METRICS), 1))
    values = np.exp(levels + SEED_OF_LAYERS * shift + NOISE * rng.normal(size=levels.shape))
    frame = template(levels.shape[1] // len(MODULES))
    known = pd.DataFrame(values.T, index=frame.index, columns=list(METRICS))
    for name, factor in (factors or {}).items():
        known[name] *= factor
    return pd.concat([frame, known], axis=1)
