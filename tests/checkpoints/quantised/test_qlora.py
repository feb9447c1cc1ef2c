"""QLoRA from end to end: a base that bitsandbytes quantised, an adapter of peft, and peft's own merge, in nf4 again."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import deltaw

Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def qlora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder with `base`, `adapter`, `merged` and `other` (another adapter, merged); and the base's own reading."""
    bnb = pytest.importorskip("bitsandbytes")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("qlora")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=64, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "plain")
    four_bits = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )

    def base() -> torch.nn.Module:
        found: torch.nn.Module = transformers.LlamaForCausalLM.from_pretrained(
            folder / "plain", quantization_config=four_bits, device_map="cpu"
        )
        return found

    model = base()
    model.save_pretrained(folder / "base")
    read = {}
    for module in (Q, DOWN):
        weight = model.get_submodule(module).weight
        weight.quant_state.dtype = torch.float32
        read[f"{module}.weight"] = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    for name, seed in (("merged", 1), ("other", 2)):
        torch.manual_seed(seed)
        tuned = peft.get_peft_model(base(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
        for key, parameter in tuned.named_parameters():
            if "lora_B" in key:
                parameter.data = 0.02 * torch.randn_like(parameter)
        if name == "merged":
            tuned.save_pretrained(folder / "adapter")
        tuned.merge_and_unload().save_pretrained(folder / name)
    return folder, read


@pytest.mark.filterwarnings("ignore")  # of the libraries that make the files
def test_the_adapter_is_measured_against_the_base_that_it_was_trained_on(
    qlora: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
):
    folder, read = qlora
    found = deltaw.analyze(str(folder / "base"), str(folder / "adapter"), alignment=True)
    assert sorted(str(r["name"]) for r in found.rows) == sorted(read)
    save_file(read, tmp_path / "dense.safetensors")
    dense = deltaw.analyze(str(tmp_path / "dense.safetensors"), str(folder / "adapter"), alignment=True)
    for row, plain in zip(found.rows, dense.rows, strict=True):
        name = str(row["name"])
        assert row["base_dtype"] == "nf4"
        assert row["base_fro_norm"] == pytest.approx(float(read[name].double().norm()), rel=1e-6)
        assert row["adapter_rank"] == row["rank_99"] == 4
        columns = [c for c in plain if c.startswith(("base_overlap", "intruder", "update_ratio", "relative_change"))]
        assert len(columns) > 6
        assert [row[c] for c in columns] == pytest.approx([plain[c] for c in columns], rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_its_merge_is_verified_and_another_is_not(qlora: tuple[Path, dict[str, torch.Tensor]]):
    folder, read = qlora
    base, adapter = str(folder / "base"), str(folder / "adapter")
    found = deltaw.verify(base, adapter, str(folder / "merged"))
    assert found.passed
    assert not deltaw.verify(base, adapter, str(folder / "other")).passed
    left = {t.name: t.survival for t in found.tensors if t.touched}
    assert sorted(left) == sorted(read)
    updates = {r["name"]: r["fro_norm"] for r in deltaw.analyze(base, adapter).rows}
    rows = {r["name"]: r for r in deltaw.analyze(base, str(folder / "merged")).rows}
    for name, survival in left.items():
        row = rows[name]
        assert row["ft_dtype"] == "nf4"
        assert survival == pytest.approx(1, abs=0.05)
        rounding = math.sqrt(row["fro_norm"] ** 2 + (1 - 2 * survival) * updates[name] ** 2)  # ‖W − W0 − ΔW‖
        # Of both sides' grids; training started on the base's, so that the merge alone was rounded.
        assert 0.97 <= row["rounding_noise"] / math.sqrt(2) / rounding <= 1.2
