"""`deltaw.resize`: the best of a rank from factors alone, sums, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import deltaw
from deltaw.cli import main
from deltaw.errors import DeltaWError, EditError, OptionError
from tests.conftest import save_lora

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def update(folder: Path, module: str = Q) -> torch.Tensor:
    """s·B·A of one module by hand."""
    state = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    A, B = state[f"{module}.lora_A.weight"].double(), state[f"{module}.lora_B.weight"].double()
    s = config["lora_alpha"] / (A.shape[0] ** 0.5 if config.get("use_rslora") else A.shape[0])
    return s * B.flatten(1) @ A.flatten(1)


def another(folder: Path, r: int = 3, seed: int = 7, **config: object) -> Path:
    folder.mkdir()
    g = torch.Generator().manual_seed(seed)
    factors = {
        f"{Q}.lora_A.weight": torch.randn(r, 16, generator=g),
        f"{Q}.lora_B.weight": torch.randn(16, r, generator=g),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": r, "lora_alpha": 1, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_it_is_the_best_of_its_rank(tmp_path: Path, rank: int):
    was = update(another(tmp_path / "a"))
    (row,) = deltaw.resize(tmp_path / "a", tmp_path / "out", rank=rank).layers
    s = torch.linalg.svdvals(was)
    left = torch.linalg.vector_norm(update(tmp_path / "out") - was) / torch.linalg.vector_norm(was)
    assert row.rank == rank
    assert row.signal_rank == 3
    assert row.relative_error == pytest.approx(float(left), rel=1e-6, abs=1e-9)
    assert row.energy_kept == pytest.approx(float((s[:rank] ** 2).sum() / (s**2).sum()), rel=1e-12)


def test_a_weighted_sum(tmp_path: Path):
    a, b = another(tmp_path / "a"), another(tmp_path / "b", r=2, seed=8, use_rslora=True)
    found = deltaw.resize([a, b], tmp_path / "out", weights=[0.5, -2], above_noise=True)
    want = 0.5 * update(a) - 2 * update(b)
    assert [row.rank for row in found.layers] == [5]
    assert torch.allclose(update(tmp_path / "out"), want, atol=1e-5)
    assert found.layers[0].relative_error < 1e-6


@pytest.mark.parametrize("weights", [[0.5], [0.5, 0.5, 0.5], [float("nan"), 1]])
def test_weights_that_do_not_fit(tmp_path: Path, weights: list[float]):
    with pytest.raises(OptionError, match="weights"):
        deltaw.resize([another(tmp_path / "a"), another(tmp_path / "b")], tmp_path / "out", weights=weights, rank=2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "with use_dora"),
        ({"lora_bias": True}, "with lora_bias"),
        ({"init_lora_weights": "pissa"}, "pissa changed the base"),
    ],
)
def test_what_is_more_than_its_factors_is_refused(tmp_path: Path, config: dict, message: str):
    with pytest.raises(EditError, match=message):
        deltaw.resize(another(tmp_path / "a", **config), tmp_path / "out", rank=2)


def test_other_methods_are_refused_with_the_way_out(tmp_path: Path):
    (tmp_path / "a").mkdir()
    save_file({"base_model.model.q.hada_w1_a": torch.ones(4, 2)}, tmp_path / "a" / "adapter_model.safetensors")
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({"peft_type": "LOHA", "r": 2}))
    with pytest.raises(DeltaWError, match=r"not LoRA .*use: deltaw extract BASE"):
        deltaw.resize(tmp_path / "a", tmp_path / "out", rank=2)


def test_adapters_of_different_models_are_refused(tmp_path: Path):
    other = save_lora(tmp_path / "b")
    state = load_file(other / "adapter_model.safetensors")
    state[f"{Q}.lora_A.weight"] = torch.ones(2, 20)
    save_file(state, other / "adapter_model.safetensors")
    with pytest.raises(EditError, match="of different models"):
        deltaw.resize([another(tmp_path / "a"), other], tmp_path / "out", rank=2)


def test_what_is_stored_whole_is_kept_by_one_and_never_summed(tmp_path: Path):
    a = another(tmp_path / "a", modules_to_save=["norm"])
    state = load_file(a / "adapter_model.safetensors") | {"base_model.model.model.norm.weight": torch.ones(16)}
    save_file(state, a / "adapter_model.safetensors")
    deltaw.resize(a, tmp_path / "one", rank=2)
    kept = load_file(tmp_path / "one" / "adapter_model.safetensors")
    assert torch.equal(kept["base_model.model.model.norm.weight"], torch.ones(16))
    with pytest.raises(EditError, match="cannot be summed or scaled without the base"):
        deltaw.resize([a, another(tmp_path / "b")], tmp_path / "two", rank=2)


def test_convolutions_embeddings_and_stacks_keep_their_layout(tmp_path: Path):
    """Written again at their full rank they are the same updates."""
    g = torch.Generator().manual_seed(0)
    at = "base_model.model."
    state = {
        f"{at}conv.lora_A.weight": torch.randn(2, 3, 3, 3, generator=g),
        f"{at}conv.lora_B.weight": torch.randn(5, 2, 1, 1, generator=g),
        f"{at}emb.lora_embedding_A": torch.randn(2, 20, generator=g),
        f"{at}emb.lora_embedding_B": torch.randn(6, 2, generator=g),
        f"{at}mlp.experts.base_layer.lora_A.weight": torch.randn(8, 6, generator=g),
        f"{at}mlp.experts.base_layer.lora_B.weight": torch.randn(10, 8, generator=g),
        f"{at}mlp.experts.lora_A.weight": torch.randn(8, 5, generator=g),
        f"{at}mlp.experts.lora_B.weight": torch.randn(6, 8, generator=g),
    }
    (tmp_path / "a").mkdir()
    save_file(state, tmp_path / "a" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["conv", "emb"]}
    config["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    found = deltaw.resize(tmp_path / "a", tmp_path / "out", rank=2)
    again = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in state.items()}
    assert len(found.layers) == 2 + 4 + 4
    assert all(row.relative_error < 1e-6 for row in found.layers)
    for name in ("mlp.experts", "mlp.experts.base_layer"):
        A, B = (
            (s[f"{at}{name}.lora_A.weight"] for s in (state, again)),
            (s[f"{at}{name}.lora_B.weight"] for s in (state, again)),
        )
        was, now = (b.reshape(len(b), 2, 4).permute(2, 0, 1) @ a.reshape(4, 2, -1) for a, b in zip(A, B, strict=True))
        assert torch.allclose(was, now, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_matrix_that_fails_is_listed_and_told_by_the_exit_code(tmp_path: Path, value: float):
    folder = another(tmp_path / "a")
    state = load_file(folder / "adapter_model.safetensors")
    bad = Q.replace("q_proj", "k_proj")
    state |= {name.replace(Q, bad): t.clone() for name, t in state.items()}
    state[f"{bad}.lora_A.weight"][0, 0] = value
    save_file(state, folder / "adapter_model.safetensors")
    result = CliRunner().invoke(main, ["resize", str(folder), "--out", str(tmp_path / "out"), "--rank", "2"])
    assert result.exit_code == 3, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: model.layers.0.self_attn.k_proj.weight: not finite")
    assert {n.rpartition(".lora")[0] for n in load_file(tmp_path / "out" / "adapter_model.safetensors")} == {Q}


@pytest.mark.parametrize(
    "command",
    [["extract", "a", "b", "--rank", "1"], ["resize", "a", "--rank", "1"], ["edit", "a", "b", "--scale", "1"]],
)
@pytest.mark.parametrize("out", ["", " ", "\udcff"])
def test_a_path_that_is_none_is_refused(command: list[str], out: str):
    result = CliRunner().invoke(main, [*command, "--out", out])
    assert result.exit_code == 2
    assert "the path is empty" in result.stderr or "is not UTF-8" in result.stderr
