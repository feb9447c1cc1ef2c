"""`deltaw analyze` and `inspect` end to end: files, columns, exit codes, one clear line for each bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

import deltaw
from deltaw.cli import main
from tests.conftest import FORMATS, State, changed, pico_state, save_single

CONTRACT = [
    "name",
    "stack",
    "layer",
    "module",
    "kind",
    "part",
    "rows",
    "cols",
    "ndim",
    "base_dtype",
    "ft_dtype",
    "route",
    "method",
    "seconds",
    "fro_norm",
    "base_fro_norm",
    "relative_change",
    "spectral_norm",
    "nuclear_norm",
    "max_abs",
    "unchanged_fraction",
    "max_over_rms",
    "stable_rank",
    "effective_rank",
    "effective_rank_energy",
    "participation_ratio",
    "rank_50",
    "rank_90",
    "rank_95",
    "rank_99",
    "numerical_rank",
    "rank_90_null",
    "rank_90_ratio",
    "energy_at_1",
    "energy_at_4",
    "energy_at_8",
    "energy_at_16",
    "energy_at_32",
    "energy_at_64",
    "energy_at_128",
    "energy_at_256",
    "rounding_noise",
    "noise_edge",
    "signal_rank",
    "signal_energy",
    "effective_rank_denoised",
    "resolution",
    "shrinkage",
    "shrinkage_z",
    "cosine_to_base",
    "norm_growth",
    "effective_rank_residual",
    "rank_90_residual",
    "magnitude_change",
    "direction_change",
    "decay_rows_fraction",
    "decay_estimate",
    "adapter_type",
    "adapter_rank",
    "adapter_scaling",
    "factor_balance",
    "intruders",
    "intruders_right",
    "intruder_energy",
    "amplification",
    "base_overlap_left",
    "base_overlap_right",
    "spectral_shift",
    "rotation",
    "update_ratio",
    "sign_flips",
]


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def fails(*args: object, code: int = 1) -> str:
    """The one line that a bad input gets."""
    result = run(*args, code=code)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    if code == 1:
        assert len(lines) == 1, lines
    return lines[-1]


def numbers(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns="seconds")


def test_what_a_run_leaves(pico_pair: tuple[Path, Path], tmp_path: Path):
    out = tmp_path / "out"
    result = run("analyze", *pico_pair, "--out", out)
    assert {p.name for p in out.iterdir()} >= {
        "layers.csv", "layers.parquet", "spectra.safetensors", "analysis.json", "report.html", "figures"
    }  # fmt: skip
    assert not [p for p in out.iterdir() if p.name.endswith(".tmp") or "journal" in p.name]
    assert any((out / "figures").glob("*.svg"))
    assert any((out / "figures").glob("*.png"))
    frame = pd.read_csv(out / "layers.csv")
    assert set(CONTRACT) <= set(frame.columns)
    assert [c for c in frame.columns if c in CONTRACT] == CONTRACT
    assert len(frame) == 21
    assert set(frame["route"]) == {"dense", "unchanged", "vector"}
    assert "report.html" in result.stdout
    about = json.loads((out / "analysis.json").read_text())
    assert set(about) >= {
        "schema_version",
        "versions",
        "base",
        "ft",
        "options",
        "device",
        "seconds",
        "skipped",
        "summary",
    }
    spectra = load_file(out / "spectra.safetensors")
    matrices = frame[frame["ndim"] == 2]
    assert set(spectra) == set(matrices["name"])
    for name, sigma in spectra.items():
        assert sigma.dtype == np.float64
        row = matrices.set_index("name").loc[name]
        assert sigma.shape == (min(row["rows"], row["cols"]),)
        assert np.all(np.diff(sigma) <= 0)


def test_numbers_in_csv_round_trip(pico_pair: tuple[Path, Path], tmp_path: Path):
    run("analyze", *pico_pair, "--out", tmp_path / "o", "--no-report", "--format", "csv,parquet,json")
    with (tmp_path / "o" / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    parquet = pd.read_parquet(tmp_path / "o" / "layers.parquet")
    as_json = pd.DataFrame(json.loads((tmp_path / "o" / "layers.json").read_text()))
    for name in parquet.select_dtypes("number"):
        texts = np.array([float(row[name] or "nan") for row in rows])
        assert np.array_equal(texts, parquet[name].to_numpy(float), equal_nan=True), name
        assert np.array_equal(as_json[name].to_numpy(float), parquet[name].to_numpy(float), equal_nan=True), name


def test_loading_gives_the_same_back(pico_pair: tuple[Path, Path], tmp_path: Path):
    result = deltaw.analyze(*pico_pair, out=tmp_path / "a")
    for formats in (("parquet",), ("csv",), ("json",)):
        saved = result.save(tmp_path / formats[0], formats)
        loaded = deltaw.load(saved)
        pd.testing.assert_frame_equal(loaded.to_pandas(), result.to_pandas(), check_exact=True)
        assert loaded.skipped == list(result.skipped)
        assert loaded.spectra.keys() == result.spectra.keys()
        for key, spectrum in result.spectra.items():
            assert np.array_equal(loaded.spectra[key].values, spectrum.values)
        assert loaded.to_dict() == result.to_dict()


def test_json_is_one_document(pico_pair: tuple[Path, Path], tmp_path: Path):
    result = run("analyze", *pico_pair, "--out", tmp_path / "o", "--json", "--no-report")
    about = json.loads(result.stdout)
    assert len(about["layers"]) == 21
    about = json.loads(run("inspect", *pico_pair, "--json").stdout)
    assert len(about["pairs"]) == 21
    assert about["skipped"] == []


def test_vectors_have_no_ranks_and_unchanged_is_zero(pico_pair: tuple[Path, Path]):
    frame = deltaw.analyze(*pico_pair).to_pandas().set_index("name")
    vector = frame.loc["model.norm.weight"]
    assert vector["route"] == "vector"
    assert vector["fro_norm"] > 0
    assert vector["spectral_norm"] == vector["nuclear_norm"] == vector["fro_norm"]  # an n×1 matrix has one σ
    assert np.isfinite(vector["shrinkage"])
    assert vector[["rank_90", "effective_rank", "energy_at_1", "rounding_noise"]].isna().all()
    frozen = frame.loc["lm_head.weight"]
    assert frozen["route"] == "unchanged"
    assert (
        frozen[["fro_norm", "relative_change", "rank_90", "effective_rank", "stable_rank", "spectral_norm"]] == 0
    ).all()
    assert frozen[["energy_at_1", "energy_at_256"]].isna().all()
    assert frozen["unchanged_fraction"] == 1


@pytest.mark.parametrize("form", [f for f in FORMATS if f != "safetensors"])
def test_every_form_gives_the_same_rows(form: str, pico: State, tmp_path: Path):
    ft = changed(pico)
    expected = deltaw.analyze(save_single(pico, tmp_path / "b"), save_single(ft, tmp_path / "f")).to_pandas()
    got = deltaw.analyze(FORMATS[form](pico, tmp_path / "b2"), FORMATS[form](ft, tmp_path / "f2")).to_pandas()
    pd.testing.assert_frame_equal(numbers(got), numbers(expected), check_exact=True)
    in_memory = deltaw.analyze(pico, ft).to_pandas()
    pd.testing.assert_frame_equal(numbers(in_memory), numbers(expected), check_exact=True)


@pytest.mark.parametrize("side", ["base", "ft"])
def test_a_prefix_on_one_side_gives_the_same_rows(side: str, pico: State):
    ft = changed(pico)
    expected = deltaw.analyze(pico, ft).to_pandas()
    wrapped = {f"module.{k}": v for k, v in (pico if side == "base" else ft).items()}
    got = deltaw.analyze(*((wrapped, ft) if side == "base" else (pico, wrapped))).to_pandas()
    if side == "ft":
        got["name"] = got["name"].str.removeprefix("module.")
    pd.testing.assert_frame_equal(numbers(got), numbers(expected), check_exact=True)


def test_split_fused_experts_and_resized(tmp_path: Path):
    base = {
        "model.layers.0.self_attn.qkv_proj.weight": torch.randn(48, 16),
        "model.layers.0.mlp.gate_up_proj.weight": torch.randn(48, 16),
        "model.layers.0.mlp.experts.down_proj": torch.randn(3, 16, 8),
        "model.embed_tokens.weight": torch.randn(40, 16),
    }
    ft = changed(base, 1e-2)
    ft["model.embed_tokens.weight"] = torch.cat([ft["model.embed_tokens.weight"], torch.ones(3, 16)])
    for split in (False, True):
        result = deltaw.analyze(base, ft, split_fused=split)
        frame = result.to_pandas()
        parts = frame.groupby("name")["part"].apply(list).to_dict()
        assert parts["model.layers.0.mlp.experts.down_proj"] == ["expert 0", "expert 1", "expert 2"]
        assert parts["model.layers.0.self_attn.qkv_proj.weight"] == (["q", "k", "v"] if split else [""])
        assert parts["model.layers.0.mlp.gate_up_proj.weight"] == (["gate", "up"] if split else [""])
    for name, part, want in (
        ("model.layers.0.self_attn.qkv_proj.weight", "k", slice(16, 32)),
        ("model.layers.0.mlp.gate_up_proj.weight", "up", slice(24, 48)),
    ):
        delta = (ft[name].double() - base[name].double())[want]
        sigma = result.spectrum(name, part).values
        np.testing.assert_allclose(sigma, np.linalg.svd(delta.numpy(), compute_uv=False), rtol=1e-9)
    name = "model.layers.0.mlp.experts.down_proj"
    delta = (ft[name].double() - base[name].double())[1].numpy()
    np.testing.assert_allclose(
        result.spectrum(name, "expert 1").values, np.linalg.svd(delta, compute_uv=False), rtol=1e-9
    )
    assert frame.set_index("name").loc["model.embed_tokens.weight", "rows"] == 40
    assert any("43" in note for note in result.notes)


def test_a_failed_tensor_is_exit_3_and_the_rest_is_there(pico: State, tmp_path: Path):
    ft = changed(pico)
    ft["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    ft["model.norm.weight"][0] = float("inf")
    base, other = save_single(pico, tmp_path / "b"), save_single(ft, tmp_path / "f")
    result = run("analyze", base, other, "--out", tmp_path / "o", "--no-report", code=3)
    assert "model.layers.0.mlp.up_proj.weight" in result.stderr
    assert "1 NaN" in result.stderr
    loaded = deltaw.load(tmp_path / "o")
    assert len(loaded.rows) == 19
    assert {s.name for s in loaded.failed} == {"model.layers.0.mlp.up_proj.weight", "model.norm.weight"}


def test_bad_inputs(pico_pair: tuple[Path, Path], pico: State, tmp_path: Path):
    base, ft = pico_pair
    out = ("--out", tmp_path / "o")
    assert "nope" in fails("analyze", tmp_path / "nope", ft, *out)
    (tmp_path / "empty").mkdir()
    assert "no checkpoint there" in fails("analyze", base, tmp_path / "empty", *out)
    short = tmp_path / "short.safetensors"
    short.write_bytes((ft / "model.safetensors").read_bytes()[:-5])
    assert "not a complete safetensors" in fails("analyze", base, short, *out)
    other = save_single({"x": torch.ones(2, 2)}, tmp_path / "other")
    assert "no tensor in common" in fails("analyze", base, other, *out)
    assert "Hub id" in fails("analyze", "nobody/nothing", ft, *out)
    assert not (tmp_path / "o").exists()


def test_usage_errors(pico_pair: tuple[Path, Path], tmp_path: Path):
    for args in (
        ("analyze",),
        ("analyze", *pico_pair, "--mode", "wild"),
        ("analyze", *pico_pair, "--device", "toaster"),
        ("analyze", *pico_pair, "--include", "("),
        ("analyze", *pico_pair, "--format", "xls"),
        ("analyze", *pico_pair, "--memory", "much"),
        ("analyze", *pico_pair, "--jobs", "0"),
        ("analyze", "--no-base", *pico_pair),
        ("analize",),
    ):
        fails(*args, code=2)


def test_results_of_other_inputs_are_not_overwritten(pico_pair: tuple[Path, Path], pico: State, tmp_path: Path):
    base, ft = pico_pair
    out = tmp_path / "o"
    run("analyze", base, ft, "--out", out, "--no-report")
    run("analyze", base, ft, "--out", out, "--no-report")
    before = (out / "layers.csv").read_bytes()
    other = save_single(changed(pico, 1e-2), tmp_path / "other")
    assert "--force" in fails("analyze", base, other, "--out", out, "--no-report")
    assert (out / "layers.csv").read_bytes() == before
    run("analyze", base, other, "--out", out, "--no-report", "--force")
    assert (out / "layers.csv").read_bytes() != before
    (tmp_path / "file").write_text("")
    assert "is a file" in fails("analyze", base, ft, "--out", tmp_path / "file")


def test_default_out(pico_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    run("analyze", *pico_pair, "--no-report")
    assert (tmp_path / "deltaw-results" / "ft" / "layers.csv").exists()
    run("analyze", pico_pair[1] / "model.safetensors", pico_pair[0] / "model.safetensors", "--no-report")
    assert (tmp_path / "deltaw-results" / "base" / "layers.csv").exists()


def test_quiet_says_nothing(pico_pair: tuple[Path, Path], tmp_path: Path):
    result = run("analyze", *pico_pair, "--out", tmp_path / "o", "--no-report", "-q")
    assert result.output == ""


def test_report_again(pico_pair: tuple[Path, Path], tmp_path: Path):
    out = tmp_path / "o"
    run("analyze", *pico_pair, "--out", out, "--no-report")
    assert not (out / "report.html").exists()
    run("report", out)
    assert (out / "report.html").stat().st_size > 10_000
    assert "analysis.json" in fails("report", tmp_path)


def test_metrics_lists_every_column():
    listed = {m["name"] for m in json.loads(run("metrics", "--format", "json").stdout)}
    described = set(CONTRACT[14:]) - {"adapter_type", "adapter_rank", "adapter_scaling"}
    assert described <= listed
    assert "rank_90" in run("metrics", "rank_90").stdout
    assert run("metrics", "fro_norm").stdout.split()[:3] == ["Size", "fro_norm", "[1]"]
    assert "Did you mean" in fails("metrics", "rank_9", code=2)


def test_interrupted_and_resumed(pico: State, tmp_path: Path):
    """Ctrl-C in the middle keeps what is done; the next run goes on and ends with the same table."""
    torch.manual_seed(0)
    base = {f"layers.{i}.w.weight": torch.randn(400, 400) for i in range(40)}
    folders = save_single(base, tmp_path / "b"), save_single(changed(base), tmp_path / "f")
    out = tmp_path / "o"
    command = [sys.executable, "-c", "from deltaw.cli import main; main()", "analyze", *map(str, folders)]
    command += ["--out", str(out), "--no-report", "--jobs", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    journal = out / ".deltaw-journal.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") > 4):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "run the same command again" in stderr
    assert "Traceback" not in stderr
    kept = journal.read_bytes().count(b"\n") - 1
    assert 0 < kept < 40
    result = deltaw.analyze(*folders, out=out, jobs=1)
    resumed = result.to_pandas()
    assert not journal.exists()
    whole = deltaw.analyze(*folders, jobs=1).to_pandas()
    pd.testing.assert_frame_equal(numbers(resumed), numbers(whole), check_exact=True)


def test_start_up_stays_light():
    """`import deltaw` and `--help` must not load what takes long to load."""
    code = (
        "import sys; import deltaw; from deltaw.cli import main; main(['--help'], standalone_mode=False); "
        "print([m for m in ('torch', 'pandas', 'scipy', 'matplotlib', 'seaborn', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "[]"


def test_fast_mode_always_has_the_intervals(pico: State):
    """Small matrices are solved exactly: their intervals are the numbers themselves."""
    frame = deltaw.analyze(pico, changed(pico), mode="fast").to_pandas()
    matrices = frame[frame["ndim"] == 2]
    for metric in ("effective_rank", "rank_90", "rank_90_ratio", "nuclear_norm", "energy_at_16", "signal_rank"):
        assert (matrices[f"{metric}_low"] == matrices[metric]).all()
        assert (matrices[f"{metric}_high"] == matrices[metric]).all()
    assert frame[frame["ndim"] == 1]["effective_rank_low"].isna().all()


def test_fused_matrices_that_cannot_be_split_are_reported():
    base = {"h.0.attention.query_key_value.weight": torch.randn(48, 16), "w.weight": torch.randn(4, 4)}
    result = deltaw.analyze(base, changed(base), split_fused=True)
    assert len(result.rows) == 2
    assert any("query_key_value" in note for note in result.notes)


def test_the_order_of_layers_does_not_matter(tmp_path: Path):
    state = pico_state()
    shuffled = dict(sorted(state.items(), reverse=True))
    ft = changed(state)
    a = deltaw.analyze(state, ft).to_pandas()
    b = deltaw.analyze(shuffled, {k: ft[k] for k in shuffled}).to_pandas()
    pd.testing.assert_frame_equal(numbers(a), numbers(b), check_exact=True)


def test_format_names_all_tables_that_are_written(tmp_path: Path, pico: State):
    base, ft = save_single(pico, tmp_path / "base"), save_single(changed(pico), tmp_path / "ft")
    out = tmp_path / "out"
    for formats, tables in (("json", ["layers.json"]), ("csv", ["layers.csv"])):
        arguments = ["analyze", str(base), str(ft), "--out", str(out), "--no-report", "--format", formats]
        assert CliRunner().invoke(main, arguments).exit_code == 0
        assert sorted(p.name for p in out.glob("layers.*")) == tables
