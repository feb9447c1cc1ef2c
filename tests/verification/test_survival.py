"""Does an update survive quantisation: predicted as the reference libraries would have it, and found in real merges."""

import json
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from gguf.constants import GGMLQuantizationType as Kind
from safetensors.torch import save_file

import deltaw
from deltaw.checkpoints import open_checkpoint
from deltaw.cli import main
from deltaw.cli.verify import FORMATS
from deltaw.errors import AdapterError, OptionError
from deltaw.tensors.quantisers import QUANTISERS
from tests.checkpoints.converted import write

G = torch.Generator().manual_seed(17)
NAME = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
K = "base_model.model.model.layers.0.self_attn.q_proj."
M, N = 256, 384


def rnd(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G)


def by_compressed_tensors(w: torch.Tensor, form: str) -> torch.Tensor:
    if form == "fp8":
        args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="channel")
        scale, zero = calculate_qparams(w.amin(-1, keepdim=True), w.amax(-1, keepdim=True), args)
    else:
        group = int(form.removeprefix("int4-g"))
        args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=group)
        groups = w.reshape(len(w), -1, group)
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    return fake_quantize(w, scale, zero, args)


def by_library(w: torch.Tensor, form: str) -> torch.Tensor:
    """W as the reference library quantises it."""
    w = w.float().contiguous()
    if form == "nf4":
        return bnb.dequantize_4bit(*bnb.quantize_4bit(w, quant_type="nf4", blocksize=64))
    if form in {"q4_0", "q8_0", "mxfp4"}:
        kind = Kind[form.upper()]
        return torch.from_numpy(gguf.dequantize(gguf.quantize(w.numpy(), kind), kind))
    return by_compressed_tensors(w, form)


def save(folder: Path, state: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    return folder


def lora(folder: Path, base: torch.Tensor, size: float, rank: int = 8) -> tuple[Path, torch.Tensor]:
    A, B = rnd(rank, base.shape[1]), rnd(base.shape[0], rank)
    B *= size * base.norm() / (B @ A).norm()
    folder.mkdir(parents=True)
    save_file({f"{K}lora_A.weight": A, f"{K}lora_B.weight": B}, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder, B.double() @ A.double()


def survival(before: torch.Tensor, after: torch.Tensor, delta: torch.Tensor) -> float:
    return float(((after.double() - before.double()) * delta).sum() / delta.square().sum())


def test_the_command_knows_every_format():
    assert tuple(QUANTISERS) == FORMATS


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("heavy", [False, True])
def test_a_quantiser_is_its_library(form: str, heavy: bool):
    w = 0.02 * rnd(64, 256) * (torch.exp(rnd(64, 1)) if heavy else 1)
    w[3] = 0
    w[5, :64] = 0
    w[8:16] = w[8:16].bfloat16().float()  # some numbers lie half way between two codes
    assert torch.equal(QUANTISERS[form](w), by_library(w, form))


@pytest.mark.parametrize("form", ["int4-g32", "int4-g128", "nf4", "fp8", "mxfp4"])
def test_partial_blocks(form: str):
    """The last block of a row (nf4: of the matrix) is quantised as if zeros stood behind it."""
    quantiser = QUANTISERS[form]
    w = rnd(5, 100)
    wide = torch.nn.functional.pad(w.reshape(1, -1) if quantiser.flat else w, (0, 28 if not quantiser.flat else 12))
    want = quantiser(wide)[:, : 500 if quantiser.flat else 100].reshape(5, 100)
    torch.testing.assert_close(quantiser(w), want, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("on_grid", [False, True])
@pytest.mark.parametrize("size", [0.003, 0.03])
def test_what_is_predicted_is_what_quantising_does(form: str, on_grid: bool, size: float, tmp_path: Path):
    w0 = 0.02 * rnd(M, N)
    w0 = by_library(w0, form) if on_grid else w0.bfloat16().float()
    base = save(tmp_path / "base", {NAME: w0, NORM: torch.ones(N)})
    adapter, delta = lora(tmp_path / "adapter", w0, size)
    found = deltaw.predict(str(base), str(adapter), form)
    before, after = by_library(w0, form), by_library((w0.double() + delta).float(), form)
    (own,) = found.tensors
    want = survival(before, after, delta)
    assert own.survival == pytest.approx(want, rel=0.02)
    assert found.survival == own.survival
    moved = (after.double() - before.double() - want * delta).norm() / delta.norm()
    assert own.noise == pytest.approx(float(moved), rel=0.02)
    assert own.update_norm == pytest.approx(float(delta.norm()), rel=1e-5)


def test_a_base_on_the_grid_keeps_little_of_a_small_update(tmp_path: Path):
    w0 = 0.02 * rnd(512, 512)
    adapter, _ = lora(tmp_path / "adapter", w0, 0.01)
    plain, on_grid = save(tmp_path / "p", {NAME: w0}), save(tmp_path / "g", {NAME: by_library(w0, "int4-g32")})
    free = deltaw.predict(str(plain), str(adapter), "int4-g32").survival
    stuck = deltaw.predict(str(on_grid), str(adapter), "int4-g32").survival
    assert free is not None
    assert stuck is not None
    assert free == pytest.approx(1, abs=0.1)
    assert stuck < 0.2  # what quantising twice moves by itself is in it: the scales of some groups change


def test_the_whole_of_several_tensors_and_what_is_left_out(tmp_path: Path):
    other = NAME.replace("q_proj", "v_proj")
    state = {NAME: 0.02 * rnd(M, N), other: 0.02 * rnd(64, 40)}
    base = save(tmp_path / "base", state)
    adapter, _ = lora(tmp_path / "adapter", state[NAME], 0.01)
    factors = {
        **{f"{K}lora_{x}.weight": t for x, t in (("A", rnd(8, N)), ("B", 0.001 * rnd(M, 8)))},
        **{f"{K}lora_{x}.weight".replace("q_", "v_"): t for x, t in (("A", rnd(8, 40)), ("B", 0.001 * rnd(64, 8)))},
    }
    save_file(factors, adapter / "adapter_model.safetensors")
    found = deltaw.predict(str(base), str(adapter), "int4-g32")
    total = sum(t.update_norm**2 for t in found.tensors)
    weighed = sum((t.survival or 0) * t.update_norm**2 for t in found.tensors) / total
    assert found.survival == pytest.approx(weighed)
    left = deltaw.predict(str(base), str(adapter), "q8_0")
    assert [t.name for t in left.tensors] == [NAME]
    assert [s.name for s in left.skipped] == [other]
    assert "40 weights are no whole blocks of 32" in left.skipped[0].detail


def test_the_command_predicts(tmp_path: Path):
    w0 = 0.02 * rnd(M, N)
    base = save(tmp_path / "base", {NAME: w0})
    adapter, _ = lora(tmp_path / "adapter", w0, 0.01)
    args = ["verify", str(base), str(adapter)]
    shown = CliRunner().invoke(main, [*args, "--predict", "nf4"])
    assert shown.exit_code == 0
    assert "of the update of one tensor survives NF4 in blocks of 64" in shown.stdout
    document = json.loads(CliRunner().invoke(main, [*args, "--predict", "nf4", "--json"]).stdout)
    assert document["tensors"][0]["name"] == NAME
    assert CliRunner().invoke(main, args).exit_code == 2
    assert CliRunner().invoke(main, [*args, str(base), "--predict", "nf4"]).exit_code == 2
    assert CliRunner().invoke(main, [*args, "--predict", "int5"]).exit_code == 2
    with pytest.raises(OptionError, match="int4-g32"):
        deltaw.predict(str(base), str(adapter), "int4")


def test_an_adapter_that_changes_no_matrix_has_nothing_to_predict(tmp_path: Path):
    base = save(tmp_path / "base", {NAME: rnd(64, 64), NORM: torch.ones(64)})
    adapter, _ = lora(tmp_path / "adapter", rnd(64, 64), 0.01)
    save_file({"base_model.model.model.norm.weight": torch.zeros(64)}, adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="changes no matrix"):
        deltaw.predict(str(base), str(adapter), "nf4")


def stored(w: torch.Tensor, form: str, folder: Path) -> Path:
    """A merged checkpoint in a quantised format, written by its library."""
    if form.startswith("q"):
        tensors = {"blk.0.attn_q.weight": w.float().numpy(), "output_norm.weight": np.ones(N, dtype=np.float32)}
        return write(folder / "m.gguf", tensors, "qwen2", Kind[form.upper()], block_count=1)
    at = NAME.removesuffix("weight")
    state: dict[str, torch.Tensor] = {NORM: torch.ones(N)}
    if form == "nf4":
        q, about = bnb.quantize_4bit(w.float().contiguous(), quant_type="nf4", compress_statistics=True)
        state |= {NAME: q} | {f"{NAME}.{k}": v for k, v in about.as_dict(packed=True).items()}
        return save(folder, state, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    if form == "fp8":
        scale = w.float().abs().amax(-1, keepdim=True) / 448
        state |= {NAME: (w / scale).to(torch.float8_e4m3fn), f"{NAME}_scale": scale}
        return save(folder, state, {"quantization_config": {"quant_method": "fbgemm_fp8"}})
    args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
    groups = w.float().reshape(M, -1, 32)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    codes = quantize(w.float(), scale, zero, args, dtype=torch.int8)
    state |= {f"{at}weight_packed": pack_to_int32(codes, 4), f"{at}weight_scale": scale}
    state |= {f"{at}weight_shape": torch.tensor([M, N])}
    about = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4}}}}
    return save(folder, state, {"quantization_config": about})


@pytest.mark.parametrize("form", ["int4-g32", "fp8", "nf4", "q4_0", "q8_0"])
@pytest.mark.parametrize("on_grid", [False, True])
def test_quantised_merges_of_the_libraries(form: str, on_grid: bool, tmp_path: Path):
    """Right ones pass and say what survived; without the update, with it twice, or with another, they differ."""
    w0 = (0.02 * rnd(M, N)).bfloat16().float()
    base = save(tmp_path / "base", {NAME: w0, NORM: torch.ones(N)})
    if on_grid:
        base = stored(w0, form, tmp_path / "quantised")
        w0 = open_checkpoint(base).tensors[NAME].read()
    adapter, delta = lora(tmp_path / "adapter", w0, 0.05)
    merged = w0.double() + delta
    right = stored(merged, form, tmp_path / "right")
    found = deltaw.verify(str(base), str(adapter), str(right))
    assert found.passed, found.lines()
    before = w0 if on_grid else by_library(w0, form)
    want = survival(before, open_checkpoint(right).tensors[NAME].read(), delta)
    assert found.survival == pytest.approx(want, rel=0.02 if on_grid else 0.05)
    assert "of the update survived its quantisation" in found.lines()[-1]
    wrong = {"twice": merged + delta, "other": w0.double() + delta.flip(0)}
    if not (on_grid and form == "q8_0"):
        wrong["unmerged"] = w0.double()
    for what, w in wrong.items():
        path = stored(w, form, tmp_path / what)
        assert not deltaw.verify(str(base), str(adapter), str(path)).passed, what


def test_plain_merges_say_nothing_of_survival(tmp_path: Path):
    w0 = 0.02 * rnd(M, N)
    base = save(tmp_path / "base", {NAME: w0})
    adapter, delta = lora(tmp_path / "adapter", w0, 0.05)
    found = deltaw.verify(str(base), str(adapter), str(save(tmp_path / "m", {NAME: (w0 + delta).float()})))
    assert found.survival is None
    assert "survived" not in found.lines()[-1]
