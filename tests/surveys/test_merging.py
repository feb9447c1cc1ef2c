"""A proposed merge against dense float64: sums, TIES, what survives."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import deltaw
from benchmarks.many_adapters import task_factors, write_adapter
from deltaw.surveys.merging import ties
from tests.surveys.conftest import TINY, dense


def naive_ties(X: np.ndarray, density: float = 0.2) -> np.ndarray:
    """Yadav et al. 2023, entry by entry: trim, elect the sign of the sum, average those that agree."""
    trimmed = X.copy()
    for x in trimmed:
        keep = math.ceil(density * x.size)
        x[np.abs(x) < np.sort(np.abs(x).ravel())[-keep]] = 0
    out = np.zeros(X.shape[1:])
    for at in np.ndindex(out.shape):
        values = trimmed[(slice(None), *at)]
        sign = np.sign(values.sum())
        agree = values[(values != 0) & (np.sign(values) == sign)]
        out[at] = agree.mean() if agree.size else 0.0
    return out


def test_ties_is_what_the_paper_says():
    X = np.random.default_rng(0).normal(size=(3, 8, 9))
    assert np.allclose(ties(torch.from_numpy(X)).numpy(), naive_ties(X))


def test_a_merge_is_measured_as_on_dense_matrices(tiny_base: Path, tmp_path: Path):
    planted = {f"a{i}": task_factors(TINY, i // 2, i, rank=2, size=1 + i) for i in range(3)}
    planted["a2"] = {m: f for m, f in planted["a2"].items() if "mlp" in m}
    for name, factors in planted.items():
        write_adapter(tmp_path / "adapters" / name, factors)
    merge = deltaw.survey(tiny_base, tmp_path / "adapters", merge_check=list(planted)).merge
    assert merge is not None
    deltas = {name: dense(factors) for name, factors in planted.items()}
    names = sorted({n for d in deltas.values() for n in d})
    shape = {n: deltas["a0"][n].shape for n in names}
    stacks = {n: np.stack([d[n].numpy() if n in d else np.zeros(shape[n]) for d in deltas.values()]) for n in names}
    summed = sum(float((X.sum(0) ** 2).sum()) for X in stacks.values())
    energy = [sum(float((X[i] ** 2).sum()) for X in stacks.values()) for i in range(3)]
    assert merge.interference[0].kind == "all"
    assert merge.interference[0].matrices == len(names)
    assert merge.interference[0].energy_ratio == pytest.approx(summed / sum(energy), rel=1e-10)
    differ = shared = 0
    for X in stacks.values():
        signs = np.sign(X)
        several = (signs != 0).sum(0) > 1
        shared += several.sum()
        differ += (several & (signs.max(0) == 1) & (signs.min(0) == -1)).sum()
    assert merge.interference[0].sign_disagreement == pytest.approx(differ / shared)
    found = {(k.name, k.method): k for k in merge.kept if k.kind == "all"}
    for method, merged in (("sum", lambda X: X.sum(0)), ("ties", naive_ties)):
        for i, name in enumerate(deltas):
            along = sum(float((merged(X) * X[i]).sum()) for X in stacks.values())
            survived = sum(float((X[i] ** 2)[np.sign(merged(X)) == np.sign(X[i])].sum()) for X in stacks.values())
            assert found[name, method].gain == pytest.approx(along / energy[i], rel=1e-8)
            assert found[name, method].survives == pytest.approx(survived / energy[i], rel=1e-8)
    assert {i.kind for i in merge.interference} == {"all", "attention", "mlp"}


def test_equal_and_opposite_adapters_are_the_ends_of_the_scale(
    tiny: Callable[..., Path], tiny_base: Path, tmp_path: Path
):
    tiny("a")
    tiny("again")
    factors = {m: (-B, A) for m, (B, A) in task_factors(TINY, 0, 0, rank=2).items()}
    write_adapter(tmp_path / "adapters" / "opposite", factors)
    same = deltaw.survey(tiny_base, tmp_path / "adapters", merge_check=["a", "again"]).merge
    against = deltaw.survey(tiny_base, tmp_path / "adapters", merge_check=["a", "opposite"]).merge
    assert same is not None
    assert against is not None
    assert same.interference[0].energy_ratio == pytest.approx(2)
    assert same.interference[0].sign_disagreement == 0
    assert all(k.survives == pytest.approx(1) for k in same.kept if k.method == "sum")
    assert against.interference[0].energy_ratio == pytest.approx(0, abs=1e-12)
    assert against.interference[0].sign_disagreement == 1
    assert all(k.gain == pytest.approx(0, abs=1e-12) for k in against.kept if k.method == "sum")
