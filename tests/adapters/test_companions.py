"""What lies beside an adapter: weights that were trained whole, and files that are not read."""

import json

import pytest
import torch
from safetensors.torch import save_file

import deltaw
from deltaw.errors import AdapterError
from deltaw.reports.findings import answer

Q, MM, NORM = "model.layers.0.self_attn.q_proj", "model.mm_projector.0.weight", "model.norm.weight"


@pytest.fixture
def state():
    g = torch.Generator().manual_seed(0)
    return {f"{Q}.weight": torch.randn(8, 6, generator=g), MM: torch.randn(6, 4, generator=g), NORM: torch.ones(6)}


@pytest.fixture
def adapter(tmp_path):
    g = torch.Generator().manual_seed(1)
    folder = tmp_path / "adapter"
    folder.mkdir()
    factors = {"A": torch.randn(2, 6, generator=g), "B": torch.randn(8, 2, generator=g)}
    tensors = {f"base_model.model.{Q}.lora_{x}.weight": t for x, t in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, factors["B"] @ factors["A"]


def test_what_llava_trained_whole_is_read_and_verified(state, adapter):
    folder, delta = adapter
    trained = state[MM] + 0.5
    torch.save({f"base_model.model.{MM}": trained}, folder / "non_lora_trainables.bin")
    result = deltaw.analyze(state, folder)
    assert {r["name"]: r["route"] for r in result.rows} == {f"{Q}.weight": "factored", MM: "dense"}
    row = next(r for r in result.rows if r["name"] == MM)
    assert row["fro_norm"] == pytest.approx(float((trained - state[MM]).double().norm()), rel=1e-7)
    merged = state | {f"{Q}.weight": state[f"{Q}.weight"] + delta}
    assert not deltaw.verify(state, folder, merged).passed  # it lacks what was trained beside
    assert deltaw.verify(state, folder, merged | {MM: trained}).passed


def test_a_weight_in_a_file_that_is_not_read_is_not_called_unchanged(state, adapter):
    folder, delta = adapter
    torch.save({MM: state[MM] + 0.5}, folder / "mm_projector.bin")
    result = deltaw.analyze(state, folder)
    assert result.summary.coverage.compared_numbers == 8 * 6 + 6
    why = next(s for s in result.skipped if s.name == MM)
    assert (why.reason, why.detail) == (
        "base_changed",
        "mm_projector.bin beside the adapter holds a weight of this name, and is not read",
    )
    merged = state | {f"{Q}.weight": state[f"{Q}.weight"] + delta}
    with pytest.raises(AdapterError, match=r"mm_projector\.bin beside the adapter"):
        deltaw.verify(state, folder, merged)


def test_a_whole_model_beside_is_no_part_of_the_adapter(state, adapter):
    folder, delta = adapter
    merged = state | {f"{Q}.weight": state[f"{Q}.weight"] + delta}
    save_file(merged, folder / "merged.safetensors")
    assert deltaw.analyze(state, folder).summary.coverage.share == 1
    assert deltaw.verify(state, folder, merged).passed


def test_a_tensor_in_both_files_is_refused(state, adapter):
    folder, _ = adapter
    torch.save({f"base_model.model.{Q}.lora_A.weight": torch.ones(2, 6)}, folder / "non_lora_trainables.bin")
    with pytest.raises(AdapterError, match=r"is in the adapter and in non_lora_trainables\.bin"):
        deltaw.analyze(state, folder)


@pytest.mark.parametrize(
    ("a", "b"),
    [("_A.weight", "_B.weight"), (".lora_A.default.default.weight", ".lora_B.default.default.weight")],
)
def test_names_of_other_versions(state, adapter, a, b):
    """An adapter called "lora" of an older peft, and one whose name was put in twice."""
    folder, _ = adapter
    tensors = {f"base_model.model.{Q}{a}": torch.ones(2, 6), f"base_model.model.{Q}{b}": torch.ones(8, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (row,) = deltaw.analyze(state, folder).rows
    assert row["fro_norm"] == pytest.approx(2 * (8 * 6) ** 0.5, rel=1e-12)


def test_magnitudes_that_bear_the_adapters_name_beside_factors_that_do_not(state, adapter):
    folder, _ = adapter
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "use_dora": True, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    A, B, m = torch.ones(2, 6), torch.ones(8, 2), torch.arange(1.0, 9.0)
    parts = {"lora_A.weight": A, "lora_B.weight": B, "lora_magnitude_vector.default.weight": m}
    save_file({f"base_model.model.{Q}.{k}": v for k, v in parts.items()}, folder / "adapter_model.safetensors")
    V = (state[f"{Q}.weight"] + B @ A).double()
    expected = m.double()[:, None] * V / V.norm(dim=1, keepdim=True) - state[f"{Q}.weight"].double()
    (row,) = deltaw.analyze(state, folder).rows
    assert row["fro_norm"] == pytest.approx(float(expected.norm()), rel=1e-7)


def test_two_adapters_in_one_file_are_refused(state, adapter):
    folder, _ = adapter
    tensors = {f"{Q}.lora_{x}{n}.weight": torch.ones(s) for x, s in (("A", (2, 6)), ("B", (8, 2))) for n in ("", ".b")}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="is there a second time; expected one adapter"):
        deltaw.analyze(state, folder)


def test_an_adapter_of_adapterhub_is_named(state, adapter):
    folder, _ = adapter
    (folder / "adapter_config.json").write_text(json.dumps({"config": {"architecture": "lora", "r": 8}}))
    with pytest.raises(AdapterError, match=r"AdapterHub.*merge_adapter"):
        deltaw.analyze(state, folder)


def test_lora_on_codes_that_are_not_read(state, adapter, tmp_path):
    """Its factors are measured; every column that needs W0 is empty."""
    folder, delta = adapter
    base = {
        f"{Q}.weight": torch.zeros(24, 1, dtype=torch.uint8),
        f"{Q}.weight.absmax": torch.ones(1),
        NORM: torch.ones(6),
    }
    save_file(base, tmp_path / "model.safetensors")
    (row,) = deltaw.analyze(tmp_path / "model.safetensors", folder).rows
    assert row["fro_norm"] == pytest.approx(float(delta.double().norm()), rel=1e-6)
    assert "relative_change" not in row


def test_the_reason_named_for_a_part_is_not_what_the_adapter_leaves_alone(state, adapter):
    """Untouched tensors are known to be unchanged; what is missing is the factor that could not be measured."""
    folder, _ = adapter
    other = {f"base_model.model.{Q}.lora_A.weight": torch.full((2, 6), torch.nan)}
    tensors = {f"base_model.model.{Q}.lora_B.weight": torch.ones(8, 2), **other}
    mm = MM.removesuffix(".weight")
    tensors |= {
        f"base_model.model.{mm}.lora_A.weight": torch.ones(2, 4),
        f"base_model.model.{mm}.lora_B.weight": torch.ones(6, 2),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    first = answer(deltaw.analyze(state | {f"n{i}.weight": torch.ones(2) for i in range(3)}, folder).summary)[0].text
    assert "could not be measured" in first
    assert "only in the base" not in first


def test_a_note_on_a_head_that_the_base_ties(state, adapter, tmp_path):
    folder, _ = adapter
    base = {"model.embed_tokens.weight": torch.ones(9, 6), f"{Q}.weight": state[f"{Q}.weight"]}
    save_file(base, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": True}))
    factors = {"lora_A.weight": torch.ones(2, 6), "lora_B.weight": torch.ones(9, 2)}
    save_file({f"base_model.model.lm_head.{k}": t for k, t in factors.items()}, folder / "adapter_model.safetensors")
    result = deltaw.analyze(tmp_path, folder)
    assert [r["name"] for r in result.rows] == ["lm_head.weight"]
    assert any("lm_head.weight is model.embed_tokens.weight in the base, which ties them" in n for n in result.notes)
