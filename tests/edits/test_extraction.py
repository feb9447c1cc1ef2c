"""`deltaw.extract`: the certificate is what it says, ranks are what was asked for, what is left out is named."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import deltaw
from deltaw.cli import main
from deltaw.edits import making
from deltaw.errors import DeltaWError, EditError, ResultsError
from tests.conftest import State, pico_state, save_lora, save_single

COLUMNS = ["name", "rows", "cols", "rank", "parameters", "energy_kept", "relative_error", "signal_rank"]


def merged(state: State, ranks: dict[str, int], dtype: torch.dtype, arithmetic: torch.dtype = torch.float64) -> State:
    """The state with a matrix of the given rank added to some tensors, stored in a dtype."""
    g = torch.Generator().manual_seed(3)
    size = 0.02
    out = {n: t.clone() for n, t in state.items()}
    for name, r in ranks.items():
        m, n = state[name].shape
        B, A = torch.randn(m, r, generator=g), torch.randn(r, n, generator=g)
        out[name] = state[name].double() + (size * B).to(arithmetic) @ A.to(arithmetic)
    return {n: t.to(dtype) for n, t in out.items()}


def wide_state(dtype: torch.dtype) -> State:
    g = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (96, 80), "b.weight": (80, 128), "c.weight": (200, 90)}
    return {n: (0.05 * torch.randn(*s, generator=g)).to(dtype) for n, s in shapes.items()}


def product(folder: Path, name: str) -> torch.Tensor:
    state = load_file(folder / "adapter_model.safetensors")
    module = f"base_model.model.{name.removesuffix('.weight')}"
    return state[f"{module}.lora_B.weight"].double() @ state[f"{module}.lora_A.weight"].double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rank", [4, 16, 64])
def test_a_merged_lora_comes_back_at_its_rank(tmp_path: Path, dtype: torch.dtype, rank: int):
    base = wide_state(dtype)
    ft = merged(base, dict.fromkeys(base, rank), dtype)
    out = tmp_path / "out"
    found = deltaw.extract(
        save_single(base, tmp_path / "base"), save_single(ft, tmp_path / "ft"), out, above_noise=True
    )
    assert [row.rank for row in found.layers] == [rank] * 3
    assert [row.signal_rank for row in found.layers] == [rank] * 3
    for row in found.layers:
        delta = ft[row.name].double() - base[row.name].double()
        rounding = float(torch.linalg.vector_norm(delta - product(out, row.name)) / torch.linalg.vector_norm(delta))
        assert row.relative_error == pytest.approx(rounding, rel=1e-6)
        assert row.relative_error < (0.03 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("policy", [{"rank": 5}, {"energy": 0.9}, {"parameters": 4000}, {"rank": 3, "ranks": (4, 8)}])
def test_every_row_is_what_the_files_say(tmp_path: Path, pico_pair: tuple[Path, Path], dtype: str, policy: dict):
    base, ft = pico_pair
    out = tmp_path / "out"
    found = deltaw.extract(base, ft, out, dtype=dtype, save_modules="none", **policy)
    table = pd.read_csv(out / "extraction.csv")
    assert list(table) == COLUMNS
    assert len(table) == len(found.layers) > 0
    W0, W = load_file(base / "model.safetensors"), load_file(ft / "model.safetensors")
    config = json.loads((out / "adapter_config.json").read_text())
    for row in table.itertuples():
        delta = W[row.name].double() - W0[row.name].double()
        s = torch.linalg.svdvals(delta).numpy()
        left = float(torch.linalg.vector_norm(delta - product(out, row.name)) / torch.linalg.vector_norm(delta))
        assert row.relative_error == pytest.approx(left, rel=1e-6)
        assert row.energy_kept == pytest.approx((s[: row.rank] ** 2).sum() / (s**2).sum(), rel=1e-9)
        exact = math.sqrt(1 - row.energy_kept)
        assert (
            exact * (1 - 1e-6)
            <= row.relative_error
            <= exact + {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
        )
        assert row.parameters == row.rank * (row.rows + row.cols)
        own = [
            v
            for k, v in config["rank_pattern"].items()
            if k == "^" + row.name.removesuffix(".weight").replace(".", r"\.")
        ]
        assert row.rank == (own[0] if own else config["r"])
        if "energy" in policy:
            above = s[: row.signal_rank] ** 2
            assert above[: row.rank].sum() >= 0.9 * above.sum()
            assert above[: row.rank - 1].sum() < 0.9 * above.sum()
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert config["lora_alpha"] == config["r"]
    assert found.parameters == table["parameters"].sum() <= policy.get("parameters", math.inf)


def test_the_arithmetic_of_a_merge_in_float32_is_no_direction(tmp_path: Path):
    """B·A in float32 has an error of its own, which stands above that of storing the sum once."""
    base = wide_state(torch.float32)
    ft = merged(base, dict.fromkeys(base, 16), torch.float32, arithmetic=torch.float32)
    found = deltaw.extract(base, ft, tmp_path / "out", above_noise=True)
    assert [row.rank for row in found.layers] == [16] * 3


def test_norms_are_stored_whole_or_named(tmp_path: Path, pico_pair: tuple[Path, Path]):
    base, ft = pico_pair
    found = deltaw.extract(base, ft, tmp_path / "auto", rank=2)
    W = load_file(ft / "model.safetensors")
    norms = {n for n in W if "norm" in n}
    assert {f"{s.name}.weight" for s in found.saved} == norms
    stored = load_file(tmp_path / "auto" / "adapter_model.safetensors")
    assert all(torch.equal(stored[f"base_model.model.{n}"], W[n]) for n in norms)
    none = deltaw.extract(base, ft, tmp_path / "none", rank=2, save_modules="none")
    assert {s.name for s in none.skipped} == norms
    assert not none.saved
    card = (tmp_path / "none" / "README.md").read_text()
    assert all(f"`{n}`" in card for n in norms)


def test_the_budget_counts_what_is_stored_whole(tmp_path: Path, pico_pair: tuple[Path, Path]):
    found = deltaw.extract(*pico_pair, tmp_path / "out", parameters=1200)
    assert sum(s.parameters for s in found.saved) == 80
    assert 1200 - 80 - 40 < found.parameters - 80 <= 1200 - 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": 30}, "a budget of 30 numbers holds no direction: .*the smallest pair takes 32"),
        ({"rank": 2, "include": "nothing"}, "--include"),
        ({"rank": 2, "exclude": "weight"}, "--exclude|excluded"),
        ({"rank": 2, "dtype": "float8"}, "float8"),
        ({"rank": 2, "save_modules": "all"}, "auto, none"),
        ({"rank": 2, "memory": 0}, "memory is 0"),
        ({"rank": 2, "jobs": 0}, "jobs is 0"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path: Path, pico_pair: tuple[Path, Path], options: dict, message: str):
    with pytest.raises(DeltaWError, match=message) as error:
        deltaw.extract(*pico_pair, tmp_path / "out", **options)
    assert "\n" not in str(error.value)


def test_nothing_above_the_noise(tmp_path: Path):
    """A float32 base that was stored in bfloat16: all of ΔW is rounding."""
    base = wide_state(torch.float32)
    paths = (
        save_single(base, tmp_path / "base"),
        save_single({n: t.bfloat16() for n, t in base.items()}, tmp_path / "ft"),
    )
    for policy in ({"energy": 0.9}, {"above_noise": True}, {"parameters": 10_000}):
        with pytest.raises(EditError, match="nothing of the update stands above the rounding"):
            deltaw.extract(*paths, tmp_path / "out", **policy)
    assert [r.rank for r in deltaw.extract(*paths, tmp_path / "out", rank=2).layers] == [2, 2, 2]


def test_no_update_at_all(tmp_path: Path, pico: State):
    paths = save_single(pico, tmp_path / "base"), save_single(pico, tmp_path / "ft")
    with pytest.raises(EditError, match="no matrix changed"):
        deltaw.extract(*paths, tmp_path / "out", rank=2)


def test_an_update_of_what_no_factors_hold_is_not_called_none(tmp_path: Path):
    paths = [
        save_single({"w": torch.full((8, 6), x), "norm.weight": torch.full((8,), x)}, tmp_path / str(x))
        for x in (1.0, 2.0)
    ]
    with pytest.raises(EditError, match="no matrix that an adapter could hold as factors changed") as caught:
        deltaw.extract(*paths, tmp_path / "out", rank=2)
    assert "norm" in str(caught.value)
    assert "1 more" in str(caught.value)


def test_an_existing_output_is_kept(tmp_path: Path, pico_pair: tuple[Path, Path]):
    out = tmp_path / "out"
    deltaw.extract(*pico_pair, out, rank=2)
    before = (out / "adapter_model.safetensors").read_bytes()
    with pytest.raises(ResultsError, match=r"holds README\.md already.*--force"):
        deltaw.extract(*pico_pair, out, rank=3)
    assert (out / "adapter_model.safetensors").read_bytes() == before
    deltaw.extract(*pico_pair, out, rank=3, force=True)
    assert (out / "adapter_model.safetensors").read_bytes() != before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("kept")
    with pytest.raises(ResultsError, match=r"holds mine\.txt already"):
        deltaw.extract(*pico_pair, tmp_path / "notes", rank=2)
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "extraction.csv",
    ]


@pytest.mark.parametrize("policy", [{"rank": 3}, {"energy": 0.8}, {"parameters": 3000}])
def test_a_killed_run_goes_on(
    tmp_path: Path, pico_pair: tuple[Path, Path], policy: dict, monkeypatch: pytest.MonkeyPatch
):
    """After a kill in the middle the same command makes the same files, and solves nothing twice."""
    whole = deltaw.extract(*pico_pair, tmp_path / "whole", **policy)
    solved: list[str] = []
    pair = making._pair

    def counted(*args):
        solved.append("")
        if len(solved) == 5:
            raise KeyboardInterrupt
        return pair(*args)

    monkeypatch.setattr(making, "_pair", counted)
    with pytest.raises(KeyboardInterrupt):
        deltaw.extract(*pico_pair, tmp_path / "out", jobs=1, **policy)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    again = deltaw.extract(*pico_pair, tmp_path / "out", **policy)
    assert again.layers == whole.layers
    assert len(solved) == len(whole.layers) + 1  # the one that was interrupted
    files = [(tmp_path / f / "adapter_model.safetensors").read_bytes() for f in ("whole", "out")]
    assert files[0] == files[1]


def test_a_tensor_that_fails_is_named_and_the_others_are_there(tmp_path: Path, pico: State):
    bad = "model.layers.0.mlp.up_proj.weight"
    ft = {n: t + 1e-3 * torch.randn(t.shape, generator=torch.Generator().manual_seed(len(n))) for n, t in pico.items()}
    ft[bad] = torch.full_like(pico[bad], torch.nan)
    base, broken = save_single(pico, tmp_path / "base"), save_single(ft, tmp_path / "ft")
    result = CliRunner().invoke(
        main, ["extract", str(base), str(broken), "--rank", "2", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 3, result.output
    assert f"failed: {bad}" in result.output
    assert bad not in set(pd.read_csv(tmp_path / "out" / "extraction.csv")["name"])


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--rank", "2", "--energy", ".9"], 2, "found --rank and --energy"),
        ([], 2, "exactly one of"),
        (["--rank", "0"], 2, "--rank"),
        (["--rank", "2", "--ranks", "8,x"], 2, "separated by commas"),
        (["--parameters", "31"], 1, "the smallest pair takes 32"),
    ],
)
def test_exit_codes(tmp_path: Path, pico_pair: tuple[Path, Path], args: list[str], code: int, says: str):
    base, ft = map(str, pico_pair)
    result = CliRunner().invoke(main, ["extract", base, ft, "--out", str(tmp_path / "out"), *args])
    assert result.exit_code == code
    assert says in result.output


def test_an_adapter_as_base_is_refused(tmp_path: Path, pico_pair: tuple[Path, Path]):
    adapter = save_lora(tmp_path / "adapter")
    result = CliRunner().invoke(
        main, ["extract", str(adapter), str(pico_pair[1]), "--rank", "2", "--out", str(tmp_path / "o")]
    )
    assert result.exit_code == 1
    assert "an adapter, where the base is expected" in " ".join(result.output.split())


def test_a_lora_is_extracted_from_its_factors(tmp_path: Path, pico_pair: tuple[Path, Path]):
    adapter = save_lora(tmp_path / "adapter")
    found = deltaw.extract(pico_pair[0], adapter, tmp_path / "out", above_noise=True)
    (row,) = found.layers
    assert (row.rank, row.signal_rank) == (2, 2)
    assert row.relative_error < 1e-6
    assert not found.saved


def test_large_matrices_take_the_krylov_way_and_are_as_exact(tmp_path: Path):
    g = torch.Generator().manual_seed(0)
    W0 = 0.02 * torch.randn(1100, 1300, generator=g)
    s = torch.logspace(0, -3, 200)
    u, v = (torch.linalg.qr(torch.randn(n, 200, generator=g))[0] for n in W0.shape)
    state, tuned = {"big.weight": W0}, {"big.weight": W0 + u * s @ v.T}
    paths = save_single(state, tmp_path / "base"), save_single(tuned, tmp_path / "ft")
    (row,) = deltaw.extract(*paths, tmp_path / "out", rank=8).layers
    values = torch.linalg.svdvals(tuned["big.weight"].double() - W0.double()).numpy()
    assert row.energy_kept == pytest.approx((values[:8] ** 2).sum() / (values**2).sum(), rel=1e-6)
    assert row.relative_error == pytest.approx(np.sqrt(1 - row.energy_kept), rel=1e-3)
    assert row.signal_rank is None


def test_hostile_names_stay_in_one_line_of_the_card(tmp_path: Path):
    name = "a\n# not a heading.`b`.weight"
    g = torch.Generator().manual_seed(0)
    state = {name: torch.randn(8, 8, generator=g), "b.weight": torch.randn(8, 8, generator=g)}
    ft = {n: t + 0.1 for n, t in state.items()} | {name: torch.full((8, 8), torch.nan)}
    (tmp_path / "base").mkdir()
    (tmp_path / "ft").mkdir()
    save_file(state, tmp_path / "base" / "model.safetensors")
    save_file(ft, tmp_path / "ft" / "model.safetensors")
    deltaw.extract(tmp_path / "base", tmp_path / "ft", tmp_path / "out", rank=1)
    assert "\n# not a heading" not in (tmp_path / "out" / "README.md").read_text()


def test_of_two_models_in_memory(tmp_path: Path):
    state = pico_state()
    ft = merged(state, {"model.layers.0.mlp.up_proj.weight": 3}, torch.float32)
    found = deltaw.extract(state, ft, tmp_path / "out", above_noise=True)
    assert [row.rank for row in found.layers] == [3]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert not found.command


def test_bad_inputs_cost_nothing_of_what_is_there(tmp_path: Path, pico_pair: tuple[Path, Path]):
    """--force overwrites when there is something to write, and not before the inputs are known to be usable."""
    base, ft = pico_pair
    out, edited = tmp_path / "adapter", tmp_path / "edited"
    deltaw.extract(base, ft, out, rank=2)
    deltaw.edit(base, ft, edited, scale=1)
    lora = save_lora(tmp_path / "lora", use_dora=True)
    before = {p: p.read_bytes() for folder in (out, edited) for p in folder.iterdir() if p.is_file()}
    for wrong in (
        lambda: deltaw.extract(base, tmp_path / "absent", out, rank=2, force=True),
        lambda: deltaw.extract(base, ft, out, rank=2, include="absent", force=True),
        lambda: deltaw.extract(base, base, out, rank=2, force=True),
        lambda: deltaw.resize(lora, out, rank=2, force=True),
        lambda: deltaw.edit(base, lora, edited, scale=1, force=True),
        lambda: deltaw.edit(base, ft, edited, without_decay=True, force=True),
    ):
        with pytest.raises(DeltaWError):
            wrong()
        assert {p: p.read_bytes() for folder in (out, edited) for p in folder.iterdir() if p.is_file()} == before


def test_the_curve_is_the_most_that_numbers_can_keep(tmp_path: Path):
    """Held to every choice of ranks there is, and to one rank for all; the adapter lies on or below it."""
    base = {n: t[:7, :6].contiguous() for n, t in wide_state(torch.float32).items() if n != "c.weight"}
    base["c.weight"] = torch.zeros(3, 6)
    ft = {
        n: t + 0.01 * torch.randn(t.shape, generator=torch.Generator().manual_seed(i))
        for i, (n, t) in enumerate(base.items())
    }
    sides = save_single(base, tmp_path / "base"), save_single(ft, tmp_path / "ft")
    found = deltaw.extract(*sides, tmp_path / "out", energy=0.8)
    curve = found.curve
    assert curve is not None
    assert curve.whole
    squares = [torch.linalg.svdvals((ft[n] - base[n]).double()).square().numpy() for n in base]
    costs = [sum(t.shape) for t in base.values()]
    total = sum(float(s.sum()) for s in squares)
    for ranks in itertools.product(*(range(len(s) + 1) for s in squares)):
        numbers = sum(r * c for r, c in zip(ranks, costs, strict=True))
        kept = sum(float(s[:r].sum()) for r, s in zip(ranks, squares, strict=True)) / total
        assert kept <= np.interp(numbers, [0, *curve.parameters], [0, *curve.energy_kept]) + 1e-6
    assert curve.parameters[-1] == sum(len(s) * c for s, c in zip(squares, costs, strict=True))
    assert curve.energy_kept[-1] == pytest.approx(1)
    assert [e.rank for e in curve.equal] == [1, 2, 4, 8]  # at 8 every matrix is whole
    two = curve.equal[1]
    assert two.parameters == 2 * sum(costs)
    assert two.energy_kept == pytest.approx(sum(float(s[:2].sum()) for s in squares) / total, rel=1e-5)
    (line, points, own) = found.plot().get_lines()
    assert len(line.get_xdata()) == len(curve.parameters)
    assert own.get_xydata().tolist() == [[sum(r.parameters for r in found.layers), found.energy_kept]]
    assert len(points.get_xdata()) == 4
    # Of a large matrix no more is looked for than the rank needs: the curve ends there, and says so.
    large = {"a.weight": torch.randn(600, 600, generator=torch.Generator().manual_seed(1))}
    more = {"a.weight": large["a.weight"] + 0.1 * torch.randn(600, 600, generator=torch.Generator().manual_seed(2))}
    part = deltaw.extract(large, more, tmp_path / "part", rank=4).curve
    assert part is not None
    assert not part.whole
    assert [e.rank for e in part.equal] == [1, 2, 4]


def test_the_command_leaves_the_picture(tmp_path: Path):
    base = wide_state(torch.float32)
    ft = merged(base, dict.fromkeys(base, 4), torch.float32)
    sides = [str(save_single(base, tmp_path / "base")), str(save_single(ft, tmp_path / "ft"))]
    done = CliRunner().invoke(main, ["extract", *sides, "--rank", "2", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert "energy.svg there shows" in done.output
    assert "<svg" in (tmp_path / "out" / "energy.svg").read_text(encoding="utf-8")
