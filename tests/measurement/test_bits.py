"""Bits before values: what is bit-identical is unchanged, whatever it holds; ΔW = 0 has nothing to resolve."""

import math

import pytest
import torch

import deltaw


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("shape", [(6, 6), (6,)])
def test_equal_bits_are_unchanged_though_they_are_no_numbers(value, shape):
    mask = torch.zeros(shape)
    mask[0] = value
    base = {"w.weight": normal(6, 8), "mask": mask}
    ft = {"w.weight": normal(6, 8, seed=1), "mask": mask.clone()}
    result = deltaw.analyze(base, ft)
    assert not result.failed
    (row,) = [r for r in result.rows if r["name"] == "mask"]
    assert (row["route"], row["fro_norm"], row["unchanged_fraction"]) == ("unchanged", 0, 1)
    assert math.isnan(row.get("base_fro_norm", math.nan))
    assert math.isnan(row.get("relative_change", math.nan))
    assert result.summary.coverage.share == 1


def test_another_nan_is_a_failure():
    nan = torch.full((4, 4), math.nan)
    other = nan.view(torch.int32).clone()
    other[0, 0] += 1
    base, ft = {"w.weight": normal(6, 8), "n": nan}, {"w.weight": normal(6, 8), "n": other.view(torch.float32)}
    result = deltaw.analyze(base, ft)
    assert [s.name for s in result.failed] == ["n"]
    assert result.summary.coverage.compared_numbers == 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_change_of_nothing_but_a_sign_of_zero_has_nothing_to_resolve(dtype):
    zero = torch.zeros(5, 5, dtype=dtype)
    negative = zero.clone()
    negative[0, 0] = -0.0
    base = {"w.weight": normal(6, 8).to(dtype), "z.weight": zero}
    ft = {"w.weight": normal(6, 8, seed=1).to(dtype), "z.weight": negative}
    frame = deltaw.analyze(base, ft).to_pandas().set_index("name")
    row = frame.loc["z.weight"]
    assert row["fro_norm"] == 0
    assert row["unchanged_fraction"] == 0.96
    assert row["resolution"] == ""
    assert row["signal_rank"] == 0
    assert row["rank_90"] == 0


def test_small_matrices_are_contrasted(tmp_path):
    """`compare` looks for leading directions in token types, small heads and first convolutions as well."""
    shapes = {"a": (20, 16), "types": (2, 16), "head": (3, 16), "one": (1, 9), "conv": (6, 1, 3, 3)}
    base = {f"{n}.weight": normal(*shape) for n, shape in shapes.items()}
    torch.save(base, tmp_path / "base.pt")
    for i in range(2):
        ft = {n: t + 0.01 * normal(*t.shape, seed=10 * i + len(n)) for n, t in base.items()}
        torch.save(ft, tmp_path / f"f{i}.pt")
        deltaw.analyze(tmp_path / "base.pt", tmp_path / f"f{i}.pt", out=tmp_path / f"r{i}")
    found = deltaw.compare([tmp_path / "r0", tmp_path / "r1"]).similarity()
    assert found.set_index("kind").loc["all", "n_matrices"] == len(base)
