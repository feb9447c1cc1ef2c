"""Parts of an analysis: divided by work, measured apart, and joined to what one run gives."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import deltaw
from deltaw.checkpoints import open_checkpoint
from deltaw.cli import main
from deltaw.errors import OptionError, ResultsError
from deltaw.measurement.cost import work
from deltaw.measurement.dividing import units_of
from deltaw.pairs.plan import plan
from deltaw.results.shares import Share
from tests.conftest import changed, pico_state, save_single


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with experts, its full fine-tune, an adapter, and the base in FP8."""
    folder = tmp_path_factory.mktemp("parts")
    g = torch.Generator().manual_seed(5)
    state = pico_state(layers=3) | {"model.layers.0.mlp.experts.down_proj": torch.randn(4, 16, 8, generator=g)}
    state["model.layers.1.mlp.wide.weight"] = torch.randn(300, 280, generator=g)
    state["model.layers.2.mlp.large.weight"] = torch.randn(1024, 1024, generator=g)  # fast mode estimates it
    save_single(state, folder / "base")
    save_single(changed(state), folder / "full")
    factors = {}
    for name, w in state.items():
        if "self_attn" in name:
            at = f"base_model.model.{name.removesuffix('.weight')}"
            factors |= {f"{at}.lora_A.weight": torch.randn(2, w.shape[1], generator=g)}
            factors |= {f"{at}.lora_B.weight": torch.randn(w.shape[0], 2, generator=g)}
    save_single(factors, folder / "adapter")
    (folder / "adapter" / "model.safetensors").rename(folder / "adapter" / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(about))
    coded = {}
    for name, w in state.items():
        eight = w.ndim == 2 and ("self_attn" in name or "large" in name)
        coded[name] = w.to(torch.float8_e4m3fn) if eight else w
        if eight:
            coded[f"{name}_scale_inv"] = torch.ones(-(-w.shape[0] // 128), -(-w.shape[1] // 128))
    save_single(coded, folder / "fp8")
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (folder / "fp8" / "config.json").write_text(json.dumps(config))
    return folder


def measured(inputs: Path, ft: str, out: Path, count: int, mode: str = "exact") -> list[Path]:
    folders = []
    for i in range(1, count + 1):
        folders.append(out / f"part-{i}")
        deltaw.analyze(inputs / "base", inputs / ft, out=folders[-1], mode=mode, jobs=1, part=f"{i}/{count}")
    return folders


def said(path: Path) -> dict[str, object]:
    about = json.loads((path / "analysis.json").read_text())
    return {k: v for k, v in about.items() if k not in {"seconds", "date"}}


@pytest.mark.parametrize(
    ("ft", "mode", "count"),
    [
        *(("full", "exact", 1), ("full", "exact", 7), ("full", "fast", 2), ("full", "fast", 16)),
        *(("adapter", "fast", 1), ("adapter", "exact", 2), ("adapter", "fast", 7), ("adapter", "exact", 16)),
        *(("fp8", "fast", 1), ("fp8", "exact", 2), ("fp8", "fast", 7), ("fp8", "exact", 16)),
    ],
)
def test_what_is_gathered_is_what_one_run_gives(inputs: Path, tmp_path: Path, ft: str, mode: str, count: int):
    whole = deltaw.analyze(inputs / "base", inputs / ft, out=tmp_path / "whole", mode=mode, jobs=1)
    folders = measured(inputs, ft, tmp_path, count, mode)
    found = deltaw.gather(folders[::-1], out=tmp_path / "all")
    assert ("estimate" in {row["method"] for row in whole.rows}) == (mode == "fast" and ft != "adapter")
    frames = [pd.read_csv(tmp_path / name / "layers.csv").drop(columns="seconds") for name in ("whole", "all")]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    spectra = [(tmp_path / name / "spectra.safetensors").read_bytes() for name in ("whole", "all")]
    assert spectra[0] == spectra[1]
    assert said(tmp_path / "whole") == said(tmp_path / "all")
    assert found.summary.coverage == whole.summary.coverage
    assert {len(deltaw.load(f).rows) for f in folders} != {0}


def test_shares_are_of_equal_work(inputs: Path):
    pairs = plan(open_checkpoint(inputs / "base"), open_checkpoint(inputs / "full")).pairs
    units = [[p] for p in pairs if p.shape[1] <= 24]
    shares = [units_of(Share(i, 4), units) for i in range(1, 5)]
    assert sorted(p.key for share in shares for unit in share for p in unit) == sorted(p[0].key for p in units)
    loads = [sum(map(work, share)) for share in shares]
    assert max(loads) - min(loads) <= max(map(work, units))


def test_a_part_that_fails_is_told_of_the_whole(inputs: Path, tmp_path: Path):
    """One expert of four is not finite: its numbers, and no others, are missing from the coverage."""
    state = {n: h.read() for n, h in open_checkpoint(inputs / "full").tensors.items()}
    state["model.layers.0.mlp.experts.down_proj"][2, 0, 0] = math.nan
    ft = save_single(state, tmp_path / "ft")
    whole = deltaw.analyze(inputs / "base", ft, jobs=1)
    folders = []
    for i in (1, 2, 3):
        folders.append(tmp_path / str(i))
        deltaw.analyze(inputs / "base", ft, jobs=1, out=folders[-1], part=f"{i}/3")
    found = deltaw.gather(folders)
    assert [s.name for s in found.failed] == [s.name for s in whole.failed]
    coverage = found.summary.coverage
    assert coverage == whole.summary.coverage
    assert coverage.numbers - coverage.compared_numbers == 16 * 8


def test_what_does_not_belong_together_is_named(inputs: Path, tmp_path: Path):
    a, b, c = measured(inputs, "full", tmp_path / "x", 3)
    with pytest.raises(ResultsError, match=r"^part 2 of 3 missing; run analyze --part 2/3"):
        deltaw.gather([a, c])
    with pytest.raises(ResultsError, match=r"part 1/3 is given 2 times"):
        deltaw.gather([a, b, c, a])
    other = measured(inputs, "adapter", tmp_path / "y", 3)
    with pytest.raises(ResultsError, match="in its fine-tuned side"):
        deltaw.gather([a, other[1], c])
    fast = measured(inputs, "full", tmp_path / "z", 3, mode="fast")
    with pytest.raises(ResultsError, match="in its options"):
        deltaw.gather([a, fast[1], c])
    with pytest.raises(ResultsError, match="in its number of parts"):
        deltaw.gather([a, *measured(inputs, "full", tmp_path / "w", 2)])
    with pytest.raises(ResultsError, match="is one of the parts"):
        deltaw.gather([a, b, c], out=b)
    with pytest.raises(OptionError, match="no directories"):
        deltaw.gather([])
    deltaw.analyze(inputs / "base", inputs / "full", out=tmp_path / "whole")
    with pytest.raises(ResultsError, match="is not a part"):
        deltaw.gather([tmp_path / "whole"])
    with pytest.raises(ResultsError, match="holds part 1/3 of this analysis"):
        deltaw.analyze(inputs / "base", inputs / "full", out=a, part="2/3")
    with pytest.raises(ResultsError, match="holds all of this analysis"):
        deltaw.analyze(inputs / "base", inputs / "full", out=tmp_path / "whole", part="2/3")


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_what_is_no_part(part: str):
    with pytest.raises(OptionError, match="expected I/N"):
        Share.parse(part)


def test_an_empty_part_and_the_commands(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """More parts than matrices: some are empty, end with 0, and the whole is complete."""
    monkeypatch.chdir(tmp_path)
    save_single({"a.weight": torch.ones(4, 4)}, tmp_path / "b")
    save_single({"a.weight": torch.eye(4)}, tmp_path / "f")
    for i in (1, 2):
        done = CliRunner().invoke(main, ["analyze", "b", "f", "--part", f"{i}/2", "--no-report", "-q"])
        assert done.exit_code == 0, done.output
    folders = [f"deltaw-results/f-part-{i}-of-2" for i in (1, 2)]
    assert sorted(len(deltaw.load(f).rows) for f in folders) == [0, 1]
    done = CliRunner().invoke(main, ["gather", *folders, "--out", "all", "--no-report", "--json"])
    assert done.exit_code == 0
    shown = json.loads(done.stdout)
    assert (len(shown["layers"]), shown["share"], shown["command"]) == (1, None, "deltaw analyze b f")
    assert CliRunner().invoke(main, ["gather", folders[0], "--out", "x"]).exit_code == 1
    assert CliRunner().invoke(main, ["analyze", "b", "f", "--part", "3/2"]).exit_code == 2
