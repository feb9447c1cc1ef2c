"""A real comparison: a tiny Llama trained here with every arm, then analysed, contrasted and compared with itself."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import deltaw

pytest.importorskip("transformers")
pytest.importorskip("peft")

STEPS, BATCH, LENGTH, VOCAB = 12, 8, 24, 64
ARMS: dict[str, dict[str, Any]] = {
    "full": {"lr": 3e-3},
    "full + decay": {"lr": 3e-3, "weight_decay": 5.0},
    "full + dropout": {"lr": 3e-3, "attention_dropout": 0.1},
    "LoRA r=4": {"lr": 2e-2, "rank": 4},
    "LoRA r=16": {"lr": 2e-2, "rank": 16},
}


def language(kind: int, n: int, generator: torch.Generator) -> torch.Tensor:
    """Sequences of a noisy counter: kind 0 counts up by one, kind 1 by three."""
    start = torch.randint(0, VOCAB, (n, 1), generator=generator)
    steps = torch.arange(LENGTH) * (1, 3)[kind]
    tokens = (start + steps) % VOCAB
    noise = torch.rand(n, LENGTH, generator=generator) < 0.05
    return torch.where(noise, torch.randint(0, VOCAB, (n, LENGTH), generator=generator), tokens)


def train(model: Any, kind: int, steps: int, lr: float, seed: int, weight_decay: float = 0.0) -> None:
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=weight_decay)
    model.train()
    for _ in range(steps):
        batch = language(kind, BATCH, g)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


@torch.no_grad()
def score(model: Any, kind: int) -> float:
    batch = language(kind, 32, torch.Generator().manual_seed(99))
    return -float(model(input_ids=batch, labels=batch).loss)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    llama = LlamaConfig(vocab_size=VOCAB, max_position_embeddings=LENGTH, **shape)
    base = LlamaForCausalLM(llama)
    train(base, 0, 60, 5e-3, 1)
    base.save_pretrained(folder / "base")
    lines = ['title = "Counting"', 'base = "base"']
    for group, arm in ARMS.items():
        for seed in range(2):
            model: Any = copy.deepcopy(base)
            if "attention_dropout" in arm:
                for block in model.model.layers:
                    block.self_attn.attention_dropout = arm["attention_dropout"]
            if "rank" in arm:
                targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
                torch.manual_seed(seed)
                config = LoraConfig(r=arm["rank"], lora_alpha=2 * arm["rank"], target_modules=targets)
                with warnings.catch_warnings():  # peft uses names that transformers will remove
                    warnings.simplefilter("ignore", FutureWarning)
                    model = get_peft_model(model, config)
            for tokens in (1, 2):
                train(model, 1, STEPS, arm["lr"], 10 * seed + tokens, arm.get("weight_decay", 0.0))
                name = f"{group.replace(' ', '-').replace('=', '')}-s{seed}-t{tokens}"
                model.save_pretrained(folder / name)
                lines += [
                    *("[[runs]]", f'name = "{name}"', f'group = "{group}"', f'checkpoint = "{name}"'),
                    f'method = "{"lora" if "rank" in arm else "full"}"',
                    *(f"seed = {seed}", f"tokens = {tokens * STEPS * BATCH * LENGTH}", "[runs.hyperparameters]"),
                    *(f"{k} = {v}" for k, v in arm.items()),
                    *("[runs.scores]", f"learning = {score(model, 1)}", f"retention = {score(model, 0)}"),
                ]
    (folder / "runs.toml").write_text("\n".join(lines), encoding="utf-8")
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def comparison(trained: Path) -> deltaw.Comparison:
    return deltaw.compare(trained / "runs.toml", out=trained / "out", jobs=1)


def test_every_table_is_filled(comparison: deltaw.Comparison) -> None:
    runs = comparison.runs()
    assert len(runs) == 20
    assert comparison.reference == "full"
    assert list(runs.groupby("group")["represents"].sum()) == [2] * 5
    for group, frame in runs.groupby("group"):
        by_tokens = frame.groupby("tokens")["learning"].mean()
        assert by_tokens.is_monotonic_increasing, group
    contrasts = comparison.contrasts()
    assert len(set(zip(contrasts["group_a"], contrasts["group_b"], strict=True))) == 10
    assert (contrasts["n_seeds_a"] == 2).all()
    known = contrasts[
        contrasts[["median_ratio", "median_difference"]].notna().any(axis=1)
    ]  # the others are zero on both sides
    assert (known["interval_covers"] == "seeds and layers").all()
    assert len(known) > 0.9 * len(contrasts)
    fingerprints = comparison.fingerprints().set_index("group")
    filled = ["relative_change", "rank_90", "signal_rank", "energy_at_16", "direction_change", "learning"]
    assert fingerprints[filled].notna().all().all()
    assert set(comparison.trajectories()["group"]) == set(ARMS)
    assert len(comparison.fronts()) >= 20


def test_what_is_known_of_the_arms_is_seen(comparison: deltaw.Comparison) -> None:
    f = comparison.fingerprints().set_index("group")
    assert f.loc["LoRA r=4", "rank_90"] <= 4
    assert f.loc["LoRA r=16", "rank_90"] <= 16 < f.loc["full", "rank_90"] + 8
    assert f.loc["LoRA r=4", "rank_90_effect"] < 0.5  # its interval is wide: two seeds
    decay = 1 - (1 - 3e-3 * 5.0) ** (2 * STEPS)
    assert f.loc["full + decay", "shrinkage"] - f.loc["full", "shrinkage"] == pytest.approx(decay, rel=0.15)
    claims = comparison.claims().set_index("claim")
    assert claims["verdict"].isin(["agrees", "disagrees", "cannot tell"]).all()
    assert (claims["says"].str.len() > 20).all()
    assert claims.loc["lora-regularises-more", "basis"] == "intervals"


def test_similarity_of_updates(comparison: deltaw.Comparison) -> None:
    s = comparison.similarity()
    assert comparison.similarity_note == ""
    every = s[s["kind"] == "all"]
    assert len(every) == 45
    lora = every[every["group_a"].str.startswith("LoRA") & every["group_b"].str.startswith("LoRA")]
    full = every[~every["group_a"].str.startswith("LoRA") & ~every["group_b"].str.startswith("LoRA")]
    assert lora["changed_overlap"].isna().all()
    assert (every["cosine"].abs() <= 1 + 1e-9).all()
    assert (full["phi_left"] > full["phi_left_null"]).all()
    assert set(s["kind"]) >= {"attention", "mlp", "all"}
    assert (lora["n_matrices"] == 28).all()


def test_similarity_is_the_definition(trained: Path, comparison: deltaw.Comparison) -> None:
    """One pair of runs, from the weights themselves."""
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM

    base = load_file(trained / "base" / "model.safetensors")
    dense = load_file(trained / "full-s0-t2" / "model.safetensors")
    model = LlamaForCausalLM.from_pretrained(trained / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        merged = PeftModel.from_pretrained(model, trained / "LoRA-r4-s0-t2").merge_and_unload().state_dict()
    cosines, phis = [], []
    for name in (n for n in base if ".mlp." in n):
        x, y = (dense[name].double() - base[name].double()), (merged[name].double() - base[name].double())
        cosines.append(float((x * y).sum() / (x.norm() * y.norm())))
        u, v = (torch.linalg.svd(t).U[:, :4] for t in (x, y))
        phis.append(float((u.T @ v).square().sum() / 4))
    s = comparison.similarity()
    row = s[(s["kind"] == "mlp") & (s["run_a"] == "full-s0-t2") & (s["run_b"] == "LoRA-r4-s0-t2")].iloc[0]
    assert row["cosine"] == pytest.approx(np.mean(cosines), abs=1e-4)
    assert row["phi_left"] == pytest.approx(np.mean(phis), abs=1e-3)
    assert row["cosine_null"] == pytest.approx(1 / np.sqrt(32 * 64))


def test_analyses_are_reused_by_content(
    trained: Path, comparison: deltaw.Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deltaw.measurement.run

    analysed: list[str] = []
    real = deltaw.measurement.run.analyze

    def counting(base: Any, ft: Any, **options: Any) -> deltaw.Analysis:
        analysed.append(Path(ft).name)
        return real(base, ft, **options)

    monkeypatch.setattr(deltaw.measurement.run, "analyze", counting)
    (trained / "full-s0-t1" / "model.safetensors").touch()  # another time, the same content
    again = deltaw.compare(trained / "runs.toml", out=trained / "out", jobs=2)
    assert analysed == []
    pd.testing.assert_frame_equal(again.contrasts(), comparison.contrasts())
    from safetensors.torch import load_file, save_file

    path = trained / "full-s0-t1" / "model.safetensors"
    state = load_file(path)
    save_file({k: v * 1.001 for k, v in state.items()}, path, metadata={"format": "pt"})
    deltaw.compare(trained / "runs.toml", out=trained / "out", jobs=1)
    assert analysed == ["full-s0-t1"]
    save_file(state, path, metadata={"format": "pt"})
    deltaw.compare(trained / "runs.toml", out=trained / "out", jobs=1, include=["mlp"])
    assert len(analysed) == 21  # other options are other numbers


def test_a_checkpoint_of_another_base(trained: Path, manifest: Callable[[str], Path]) -> None:
    from safetensors.torch import save_file

    other = trained / "other"
    other.mkdir(exist_ok=True)
    save_file({"transformer.h.0.attn.weight": torch.zeros(4, 4)}, other / "model.safetensors")
    text = f'base = "{trained / "base"}"\n[[runs]]\nname = "a"\ncheckpoint = "{other}"\n'
    with pytest.raises(deltaw.DeltaWError, match=r"runs\.toml:2: run 'a': "):
        deltaw.compare(manifest(text))


def test_adapters_of_different_bases(trained: Path, manifest: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    text = f'base = "{trained / "base"}"\n'
    for i, base in enumerate(("meta/one", "meta/two")):
        folder = tmp_path / f"adapter{i}"
        shutil.copytree(trained / "LoRA-r4-s0-t2", folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        text += f'[[runs]]\nname = "a{i}"\ncheckpoint = "adapter{i}"\n'
    with pytest.raises(deltaw.DeltaWError, match=r"run 'a1' is an adapter of meta/two, run 'a0' of meta/one"):
        deltaw.compare(manifest(text))
