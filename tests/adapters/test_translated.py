"""Adapters of MLX and llama.cpp: the ΔW of their own arithmetic, as rows of a real analysis."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import deltaw
from deltaw.adapters import is_adapter, open_adapter
from deltaw.checkpoints import open_checkpoint
from deltaw.errors import AdapterError
from tests.checkpoints.converted import permute, write

G = torch.Generator().manual_seed(11)
Q, K, EMBED = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.embed_tokens"
CONFIG = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
SHAPES = {Q: (64, 64), K: (32, 64), EMBED: (96, 64), "model.norm": (64,)}


def rnd(*shape: int) -> torch.Tensor:
    return 0.05 * torch.randn(*shape, generator=G)


@pytest.fixture
def base(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    state = {f"{n}.weight": rnd(*s) for n, s in SHAPES.items()}
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder, state


def mlx(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    about = {"fine_tune_type": "lora", "num_layers": 8, "lora_parameters": {"rank": 4, "scale": 20.0}, **config}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def deltas(base: Path, ft: Path) -> dict[str, float]:
    return {str(r["name"]): float(r["fro_norm"]) for r in deltaw.analyze(str(base), str(ft)).rows}


def merged_by(base: Path, ft: Path, delta: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> bool:
    """Whether `verify` finds W0 + ΔW in a merge that was made here."""
    folder = base.parent / f"merged-{ft.name}"
    folder.mkdir()
    out = {n: w + delta[n].float() if n in delta else w for n, w in state.items()}
    save_file({n: w.contiguous() for n, w in out.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return deltaw.verify(str(base), str(ft), str(folder)).passed


def test_mlx_lora(base: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path):
    folder, state = base
    a, b, e, f = rnd(64, 4), rnd(4, 64), rnd(96, 4), rnd(4, 64)
    ft = mlx(tmp_path / "ft", {f"{Q}.lora_a": a, f"{Q}.lora_b": b, f"{EMBED}.lora_a": e, f"{EMBED}.lora_b": f})
    assert is_adapter(ft)
    want = {f"{Q}.weight": 20 * (a @ b).T, f"{EMBED}.weight": 20 * e @ f}
    found = deltas(folder, ft)
    for name, delta in want.items():
        assert found[name] == pytest.approx(float(delta.norm()), rel=1e-5)
    assert merged_by(folder, ft, want, state)
    assert deltas(folder, ft / "adapters.safetensors") == found


def test_mlx_dora(base: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path):
    folder, state = base
    a, b, m = rnd(64, 4), rnd(4, 64), rnd(64).abs() + 0.4
    ft = mlx(tmp_path / "ft", {f"{Q}.lora_a": a, f"{Q}.lora_b": b, f"{Q}.m": m}, fine_tune_type="dora")
    w0 = state[f"{Q}.weight"].double()
    v = w0 + 20 * (a.double() @ b.double()).T
    delta = m.double()[:, None] * v / v.norm(dim=1, keepdim=True) - w0
    assert deltas(folder, ft)[f"{Q}.weight"] == pytest.approx(float(delta.norm()), rel=1e-5)


def test_mlx_ranks_that_differ_and_whole_weights(base: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path):
    folder, state = base
    a, b, c, d = rnd(64, 4), rnd(4, 64), rnd(64, 2), rnd(2, 32)
    norm = state["model.norm.weight"] + 0.5
    tensors = {f"{Q}.lora_a": a, f"{Q}.lora_b": b, f"{K}.lora_a": c, f"{K}.lora_b": d, "model.norm.weight": norm}
    found = deltas(folder, mlx(tmp_path / "ft", tensors))
    assert found[f"{Q}.weight"] == pytest.approx(20 * float((a @ b).norm()), rel=1e-5)
    assert found[f"{K}.weight"] == pytest.approx(20 * float((c @ d).norm()), rel=1e-5)
    assert found["model.norm.weight"] == pytest.approx(4.0, rel=1e-5)


def test_mlx_experts_on_a_stack(tmp_path: Path):
    at = "model.layers.0.mlp"
    stack = rnd(4, 48, 32)
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({f"{at}.experts.{e}.up_proj.weight": stack[e].clone() for e in range(4)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", "num_experts": 4}))
    a, b = rnd(4, 4, 32), rnd(4, 48, 4)
    ft = mlx(tmp_path / "ft", {f"{at}.switch_mlp.up_proj.lora_a": a, f"{at}.switch_mlp.up_proj.lora_b": b})
    found = deltas(folder, ft)
    for e in range(4):
        assert found[f"{at}.experts.{e}.up_proj.weight"] == pytest.approx(20 * float((b[e] @ a[e]).norm()), rel=1e-5)


def test_mlx_without_its_scale_is_refused(tmp_path: Path):
    tensors = {f"{Q}.lora_a": rnd(64, 4), f"{Q}.lora_b": rnd(4, 64)}
    with pytest.raises(AdapterError, match=r"lora_parameters\.scale"):
        open_adapter(mlx(tmp_path / "a", tensors, lora_parameters={"rank": 4}))
    folder = mlx(tmp_path / "b", tensors)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        open_adapter(folder)
    with pytest.raises(AdapterError, match="lora_a only"):
        open_adapter(mlx(tmp_path / "c", {f"{Q}.lora_a": rnd(64, 4)}))
    with pytest.raises(AdapterError, match="do not multiply"):
        open_adapter(mlx(tmp_path / "d", {f"{Q}.lora_a": rnd(64, 4), f"{Q}.lora_b": rnd(3, 64)}))


def lora_file(path: Path, tensors: dict[str, torch.Tensor], alpha: float, arch: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, t in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(t.numpy(), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def factors(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What the converter stores of factors of rank 4 with α 8, and their ΔW."""
    A, B, C, D, E, F = rnd(4, 64), rnd(64, 4), rnd(4, 64), rnd(32, 4), rnd(96, 4), rnd(64, 4)
    stored = {
        "blk.0.attn_q.weight.lora_a": A,
        "blk.0.attn_q.weight.lora_b": torch.from_numpy(permute(B.numpy(), 4)),
        "blk.0.attn_k.weight.lora_a": C,
        "blk.0.attn_k.weight.lora_b": torch.from_numpy(permute(D.numpy(), 2)),
        "token_embd.weight.lora_a": E,
        "token_embd.weight.lora_b": F,
    }
    return stored, {f"{Q}.weight": 2 * B @ A, f"{K}.weight": 2 * D @ C, f"{EMBED}.weight": 2 * E @ F.T}


def test_gguf_lora(base: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path):
    folder, state = base
    stored, want = factors(state)
    ft = lora_file(tmp_path / "lora.gguf", stored, 8.0)
    assert is_adapter(ft)
    found = deltas(folder, ft)
    for name, delta in want.items():
        assert found[name] == pytest.approx(float(delta.norm()), rel=1e-5)
    assert merged_by(folder, ft, want, state), "the rows of q and k are in the base's order"
    alone = deltaw.analyze(None, str(ft)).rows
    assert {str(r["name"]): pytest.approx(r["fro_norm"]) for r in alone} == {n: found[n] for n in want}
    unscaled = deltas(folder, lora_file(tmp_path / "unscaled.gguf", stored, 0.0))
    assert unscaled[f"{Q}.weight"] == pytest.approx(found[f"{Q}.weight"] / 2, rel=1e-6)


def test_gguf_lora_on_a_gguf_base(base: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path):
    _, state = base
    stored, want = factors(state)
    tensors = {
        "token_embd.weight": state[f"{EMBED}.weight"].numpy(),
        "output_norm.weight": state["model.norm.weight"].numpy(),
        "blk.0.attn_q.weight": permute(state[f"{Q}.weight"].numpy(), 4),
        "blk.0.attn_k.weight": permute(state[f"{K}.weight"].numpy(), 2),
    }
    about = {"block_count": 1, "embedding_length": 64, "head_count": 4, "head_count_kv": 2}
    q8 = write(tmp_path / "q8.gguf", tensors, "llama", gguf.GGMLQuantizationType.Q8_0, **about)
    ft = lora_file(tmp_path / "lora.gguf", stored, 8.0)
    rows = {r["name"]: r for r in deltaw.analyze(str(q8), str(ft)).rows}
    for name, delta in want.items():
        own = rows[name]
        assert own["base_dtype"] == "q8_0"
        assert own["fro_norm"] == pytest.approx(float(delta.norm()), rel=1e-5)
        w0 = open_checkpoint(q8).tensors[name].read()
        assert own["cosine_to_base"] == pytest.approx(float((w0 * delta).sum() / w0.norm() / delta.norm()), abs=1e-5)


def test_gguf_loras_that_are_refused(base: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path):
    folder, state = base
    stored, _ = factors(state)
    with pytest.raises(AdapterError, match="'falcon'"):
        open_adapter(lora_file(tmp_path / "a.gguf", stored, 8.0, "falcon"))
    half = {n: t for n, t in stored.items() if not n.endswith("attn_q.weight.lora_b")}
    with pytest.raises(AdapterError, match="lora_a only"):
        open_adapter(lora_file(tmp_path / "b.gguf", half, 8.0))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(AdapterError, match="num_attention_heads"):
        deltaw.analyze(str(folder), str(lora_file(tmp_path / "c.gguf", stored, 8.0)))
