"""Synthetic runs of one base: rows of `layers` with known effects, and manifests about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltaw.comparison.evaluations import Score
from deltaw.comparison.manifest import RunSpec
from deltaw.comparison.runs import Run, Runs
from deltaw.results.analysis import Analysis
from deltaw.results.sources import Source
from deltaw.types import Spectrum

MODULES = {
    "self_attn.q_proj": ("attention", 256, 256),
    "self_attn.k_proj": ("attention", 256, 256),
    "self_attn.v_proj": ("attention", 256, 256),
    "self_attn.o_proj": ("attention", 256, 256),
    "mlp.gate_proj": ("mlp", 688, 256),
    "mlp.up_proj": ("mlp", 688, 256),
    "mlp.down_proj": ("mlp", 256, 688),
}
PLANTED = {"rank_90": 60.0, "shrinkage": 0.004, "relative_change": 0.03, "effective_rank": 90.0, "energy_at_16": 0.4}


def make_analysis(
    factors: Mapping[str, float] | None = None,
    *,
    blocks: int = 4,
    seed: int = 0,
    layer_noise: float = 0.05,
    seed_noise: float = 0.0,
    adapter: str = "",
    rank: int | None = None,
    spectra: bool = False,
    base: str = "base",
    **constant: float,
) -> Analysis:
    """An analysis whose metrics are a property of the layer × a factor × noise of the seed × noise of both."""
    profile = np.random.default_rng(12345)  # of the layers: the same in every run
    rng = np.random.default_rng([777, seed])
    rows: list[dict[str, Any]] = []
    found: dict[str, Spectrum] = {}
    shift = {m: rng.normal(0, seed_noise) for m in PLANTED}
    for block in range(blocks):
        for module, (kind, m, n) in MODULES.items():
            name = f"model.layers.{block}.{module}.weight"
            row: dict[str, Any] = {
                **{"name": name, "stack": "model.layers", "layer": block, "module": module, "kind": kind, "part": ""},
                **{"rows": m, "cols": n, "ndim": 2, "base_dtype": "float32", "ft_dtype": "float32"},
                **{"route": "factored" if adapter else "dense", "method": "exact", "seconds": 0.1},
                **{"base_fro_norm": math.sqrt(m * n) * 0.02 * (1 + block), "resolution": "resolved"},
                **{"rank_90_null": 0.5 * min(m, n), "signal_rank": 16, "shrinkage_z": 40.0},
                **{"shrinkage_kind": "uniform"},
            }
            for metric, level in PLANTED.items():
                size = level * math.exp(profile.normal(0, 0.5)) * (factors or {}).get(metric, 1.0)
                row[metric] = size * math.exp(shift[metric] + rng.normal(0, layer_noise))
            row["rank_90"] = round(row["rank_90"])
            row["rank_90_ratio"] = row["rank_90"] / row["rank_90_null"]
            if adapter:
                row |= {"adapter_type": adapter, "adapter_rank": rank, "factor_balance": 1.2}
            rows.append(row | constant)
            if spectra:
                k = min(m, n)
                s = np.exp(-np.arange(k) / (4 + row["rank_90"] / 4)) * 0.1
                if rank:
                    s[rank:] = 0.0
                found[name] = Spectrum(s, m, n, energy=float((s**2).sum()))
    about = Source(path=base, format="safetensors", tensors=len(rows), nbytes=1)
    return Analysis(rows, found, base=about, ft=replace(about, path=f"ft{seed}"), options={"mode": "exact"})


@pytest.fixture
def analysis() -> Callable[..., Analysis]:
    return make_analysis


def score_runs(*points: tuple[Any, ...], reference: str = "full") -> Runs:
    """Runs with scores only: (group, method, learning, retention, {seed, tokens, hyperparameters})."""
    items = []
    for i, (group, method, learning, retention, more) in enumerate(points):
        scores = {k: Score(v) for k, v in (("learning", learning), ("retention", retention)) if v is not None}
        items.append(Run(RunSpec(f"run{i}", group, method, scores=scores, where=f"test:{i}", **more), method))
    return Runs(items, reference)


@pytest.fixture
def scored() -> Callable[..., Runs]:
    return score_runs


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "runs.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """An analysis saved in a directory."""

    def save(name: str, **options: Any) -> Path:
        return make_analysis(**options).save(tmp_path / name)

    return save
