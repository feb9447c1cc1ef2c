"""`deltaw.edit`: each operation takes out what it names and nothing else; the layout is the fine-tune's own."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import deltaw
from deltaw.cli import main
from deltaw.edits import editing
from deltaw.errors import EditError, OptionError, ResultsError
from tests.conftest import FORMATS, State, changed, pico_state, save_lora, save_sharded, save_single


def load(folder: Path) -> State:
    out: State = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            out |= load_file(path)
        elif path.suffix == ".bin":
            out |= torch.load(path, weights_only=True)
    return out


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_and_everything_are_exact(tmp_path: Path, form: str, dtype: torch.dtype):
    base = pico_state(dtype=dtype)
    ft = changed(base, 1e-2)
    paths = FORMATS[form](base, tmp_path / "base"), FORMATS[form](ft, tmp_path / "ft")
    deltaw.edit(*paths, tmp_path / "one", scale=1)
    assert same(load(tmp_path / "one"), ft)
    deltaw.edit(*paths, tmp_path / "none", drop=".")
    assert same(load(tmp_path / "none"), base)
    files = {p.name for p in paths[1].iterdir()}
    assert {p.name for p in (tmp_path / "one").iterdir() if not p.name.startswith(".")} == files | {"edit.csv"}


def test_safetensors_keep_every_other_byte(tmp_path: Path):
    base = pico_state(dtype=torch.bfloat16)
    ft = save_sharded(changed(base, 1e-2), tmp_path / "ft")
    (ft / "config.json").write_text('{"model_type": "llama"}')
    (ft / "tokenizer.json").write_text("{}")
    deltaw.edit(save_single(base, tmp_path / "base"), ft, tmp_path / "out", scale=1)
    for path in ft.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_a_scale_is_that_of_the_update(tmp_path: Path, pico_pair: tuple[Path, Path]):
    base, ft = map(load, pico_pair)
    found = deltaw.edit(*pico_pair, tmp_path / "out", scale=0.25, drop="norm")
    out = load(tmp_path / "out")
    for name in ft:
        want = (
            base[name] if "norm" in name else (base[name].double() + 0.25 * (ft[name].double() - base[name].double()))
        )
        assert torch.equal(out[name], want.to(out[name].dtype)), name
    assert {r.operation for r in found.rows} == {"drop", "scale"}
    table = pd.read_csv(tmp_path / "out" / "edit.csv")
    assert list(table) == ["name", "part", "operation", "directions", "energy_removed", "norm_before", "norm_after"]
    assert table.loc[table["operation"] == "scale", "energy_removed"].to_numpy() == pytest.approx(1 - 1 / 16)


def orthogonal(n: int, r: int, g: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, r, generator=g, dtype=torch.float64))[0]


@pytest.mark.parametrize("rescale", [False, True])
def test_keep_rank(tmp_path: Path, rescale: bool):
    g = torch.Generator().manual_seed(0)
    base = {"a.weight": torch.randn(30, 20, generator=g)}
    ft = {"a.weight": base["a.weight"] + 0.1 * torch.randn(30, 20, generator=g)}
    deltaw.edit(base, ft, tmp_path / "out", keep_rank=4, rescale=rescale)
    was, now = ((s["a.weight"].double() - base["a.weight"].double()) for s in (ft, load(tmp_path / "out")))
    u, s, vh = torch.linalg.svd(was, full_matrices=False)
    want = (u[:, :4] * s[:4]) @ vh[:4]
    want = want * (s.norm() / s[:4].norm()) if rescale else want
    assert torch.allclose(now, want, atol=1e-6)


def test_denoise_leaves_the_merged_directions(tmp_path: Path):
    g = torch.Generator().manual_seed(0)
    W0 = (0.05 * torch.randn(128, 96, generator=g)).bfloat16()
    true = 0.01 * torch.randn(128, 3, generator=g, dtype=torch.float64) @ torch.randn(3, 96, generator=g).double()
    base, ft = {"a.weight": W0}, {"a.weight": (W0.double() + true).bfloat16()}
    found = deltaw.edit(base, ft, tmp_path / "out", denoise=True)
    assert [r.directions for r in found.rows] == [96 - 3]
    again = deltaw.edit(base, load(tmp_path / "out"), tmp_path / "again", denoise=True)
    once, twice = (load(tmp_path / folder)["a.weight"].double() for folder in ("out", "again"))
    assert [r.directions for r in again.rows] == [96 - 3]
    rounding = float(deltaw.analyze(base, ft).to_pandas()["rounding_noise"][0])
    assert float((once - twice).norm()) < rounding  # the same, up to the rounding of its storage


def decayed(c: float, dtype: torch.dtype) -> tuple[State, State]:
    g = torch.Generator().manual_seed(0)
    names = [f"layers.{i}.{n}.weight" for i in range(4) for n in ("up", "down")]
    base = {n: (0.05 * torch.randn(96, 80, generator=g)).to(dtype) for n in names}
    ft = {n: (w.double() * (1 - c)).to(dtype) for n, w in base.items()}
    return base, ft


def test_a_planted_decay_is_taken_out(tmp_path: Path):
    base, ft = decayed(0.02, torch.float32)
    g = torch.Generator().manual_seed(1)
    ft = {n: w + 1e-4 * torch.randn(w.shape, generator=g) for n, w in ft.items()}
    paths = save_single(base, tmp_path / "base"), save_single(ft, tmp_path / "ft")
    assert deltaw.analyze(*paths).summary.decay.value == pytest.approx(0.02, rel=0.02)
    found = deltaw.edit(*paths, tmp_path / "out", without_decay=True)
    assert found.decay == pytest.approx(0.02, rel=0.02)
    assert {r.name for r in found.rows} == set(base)
    after = deltaw.analyze(paths[0], tmp_path / "out")
    assert not after.summary.decay.visible
    frame = after.to_pandas()
    assert (frame["shrinkage_z"].abs() < 40).all()
    assert (frame["shrinkage"].abs() < 0.02 * 0.02).all()
    with pytest.raises(EditError, match="no common weight decay is visible"):
        deltaw.edit(paths[0], tmp_path / "out", tmp_path / "twice", without_decay=True)


def planted_intruder() -> tuple[State, State, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    n = 96
    u0, v0 = orthogonal(n, n, g), orthogonal(n, n, g)
    W0 = u0 @ torch.diag(torch.linspace(10, 1, n, dtype=torch.float64)) @ v0.T
    u, v = torch.randn(n, 1, generator=g).double(), torch.randn(n, 1, generator=g).double()
    spike = 30 * (u / u.norm()) @ (v / v.norm()).T
    small = 1e-3 * torch.randn(n, n, generator=g).double()
    return {"a.weight": W0}, {"a.weight": W0 + spike + small}, spike


def test_a_planted_intruder_is_taken_out_and_nothing_else(tmp_path: Path):
    base, ft, spike = planted_intruder()
    found = deltaw.edit(base, ft, tmp_path / "out", without_intruders=True)
    out = load(tmp_path / "out")
    assert [r.directions for r in found.rows] == [1]
    left = out["a.weight"] - base["a.weight"]
    assert torch.linalg.matrix_norm(left, 2) < 0.5 * torch.linalg.matrix_norm(spike, 2)
    u, s, vh = torch.linalg.svd(ft["a.weight"])
    assert torch.allclose(out["a.weight"], ft["a.weight"] - s[0] * torch.outer(u[:, 0], vh[0]), atol=1e-8)
    again = deltaw.edit(base, out, tmp_path / "again", without_intruders=True)
    assert not again.rows
    assert same(load(tmp_path / "again"), out)


def test_the_strength_is_what_is_kept(tmp_path: Path):
    base, ft, _ = planted_intruder()
    deltaw.edit(base, ft, tmp_path / "out", without_intruders=True, strength=0.5)
    u, s, vh = torch.linalg.svd(ft["a.weight"])
    want = ft["a.weight"] - 0.5 * s[0] * torch.outer(u[:, 0], vh[0])
    assert torch.allclose(load(tmp_path / "out")["a.weight"], want, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to be done"),
        ({"keep_rank": 0}, "keep_rank is 0"),
        ({"rescale": True, "scale": 1}, "rescale goes with keep_rank"),
        ({"strength": 0.5, "scale": 1}, "strength goes with without_intruders"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"drop": "("}, "--drop"),
    ],
)
def test_options_that_cannot_be_used(tmp_path: Path, pico_pair: tuple[Path, Path], options: dict, message: str):
    with pytest.raises(OptionError, match=message):
        deltaw.edit(*pico_pair, tmp_path / "out", **options)


def test_an_adapter_or_codes_are_refused_with_the_way_out(tmp_path: Path, pico_pair: tuple[Path, Path]):
    with pytest.raises(EditError, match=r"an adapter.*merge it first"):
        deltaw.edit(pico_pair[0], save_lora(tmp_path / "adapter"), tmp_path / "out", scale=0.5)
    name = "model.layers.0.mlp.up_proj.weight"
    state = pico_state() | {name: torch.ones(24, 16).to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(1)}
    (tmp_path / "fp8").mkdir()
    save_file(state, tmp_path / "fp8" / "model.safetensors")
    with pytest.raises(EditError, match="save it as bfloat16"):
        deltaw.edit(pico_pair[0], tmp_path / "fp8", tmp_path / "out", scale=0.5)


def test_an_existing_output_is_kept(tmp_path: Path, pico_pair: tuple[Path, Path]):
    deltaw.edit(*pico_pair, tmp_path / "out", scale=0.5)
    with pytest.raises(ResultsError, match="already"):
        deltaw.edit(*pico_pair, tmp_path / "out", scale=0.25)
    deltaw.edit(*pico_pair, tmp_path / "out", scale=1, force=True)
    assert same(load(tmp_path / "out"), load(pico_pair[1]))


def test_a_killed_run_goes_on(tmp_path: Path, pico_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    deltaw.edit(*pico_pair, tmp_path / "whole", keep_rank=2)
    done: list[str] = []
    edited = editing._edited

    def counted(stored, pairs, *args, **options):
        done.append(pairs[0].name)
        if len(done) == 5:
            raise KeyboardInterrupt
        return edited(stored, pairs, *args, **options)

    monkeypatch.setattr(editing, "_edited", counted)
    with pytest.raises(KeyboardInterrupt):
        deltaw.edit(*pico_pair, tmp_path / "out", keep_rank=2, jobs=1)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    deltaw.edit(*pico_pair, tmp_path / "out", keep_rank=2)
    assert same(load(tmp_path / "out"), load(tmp_path / "whole"))
    assert len(done) == len(set(done)) + 1


def test_one_expert_of_a_stack_is_dropped_with_its_tensor_and_others_stay(tmp_path: Path):
    g = torch.Generator().manual_seed(0)
    base = {"mlp.experts.down_proj": torch.randn(3, 8, 6, generator=g), "up.weight": torch.randn(8, 6, generator=g)}
    ft = changed(base, 0.1)
    deltaw.edit(base, ft, tmp_path / "out", drop="experts", scale=2)
    out = load(tmp_path / "out")
    assert torch.equal(out["mlp.experts.down_proj"], base["mlp.experts.down_proj"])
    assert torch.allclose(out["up.weight"], 2 * ft["up.weight"] - base["up.weight"], atol=1e-5)


def test_the_command(tmp_path: Path, pico_pair: tuple[Path, Path]):
    args = [*map(str, pico_pair), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["edit", *args, "--keep-rank", "2", "--scale", ".5"])
    assert result.exit_code == 0, result.output
    assert "--keep-rank: " in result.output
    assert "of their energy" in result.output
    assert CliRunner().invoke(main, ["edit", *args]).exit_code == 2
    assert CliRunner().invoke(main, ["edit", *args[:3], str(tmp_path / "o"), "--without-decay"]).exit_code == 1


@pytest.mark.parametrize("way", ["edit", "extract", "resize"])
@pytest.mark.parametrize("linked", [False, True])
def test_an_input_is_never_overwritten(tmp_path: Path, pico: State, way: str, linked: bool):
    """Not even with --force; nor where the files are links to elsewhere, as in the Hub's cache."""
    base, ft, adapter = tmp_path / "base", tmp_path / "ft", tmp_path / "adapter"
    save_single(pico, base)
    save_single(changed(pico), ft)
    save_lora(adapter)
    mine = adapter if way == "resize" else ft
    if linked:
        for file in list(mine.iterdir()):
            file.rename(tmp_path / f"blob-{file.name}")
            file.symlink_to(tmp_path / f"blob-{file.name}")
    before = {p: p.read_bytes() for p in mine.iterdir()}
    run = {
        "resize": lambda: deltaw.resize(adapter, adapter, rank=1, force=True),
        "edit": lambda: deltaw.edit(base, ft, ft, scale=0.5, force=True),
        "extract": lambda: deltaw.extract(base, ft, ft, rank=1, force=True),
    }
    with pytest.raises(ResultsError, match=r"holds an input .* which would be overwritten"):
        run[way]()
    assert {p: p.read_bytes() for p in mine.iterdir()} == before
