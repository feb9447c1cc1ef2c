"""Updates that are no product of factors join by their sketches: planted MoRA of two tasks, and one of them merged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import deltaw
from benchmarks.many_adapters import adjusted_rand
from deltaw.adapters.mora import repeated, rotated, width
from tests.surveys.conftest import TINY, cosine

RANK = 2


def update(M: torch.Tensor, rows: int, cols: int, kind: int) -> torch.Tensor:
    """ΔW of a MoRA."""
    return rotated(M, rows, cols) if kind == 6 else repeated(M, rows, cols, kind)


def test_planted_mora_is_grouped_and_a_merged_copy_is_found(tiny_base: Path, tmp_path: Path):
    """Three seeds of each task share .8 of M; α is no part of MoRA, so that a copy's size is its own."""
    planted: dict[str, dict[str, torch.Tensor]] = {}
    for i in range(6):
        task, kind = i // 3, (1, 6)[i // 3]
        common, own = torch.Generator().manual_seed(task), torch.Generator().manual_seed(100 + i)
        name, tensors = f"task-{task}-seed-{i % 3}", {}
        planted[name] = {}
        for module, (m, n) in TINY.matrices().items():
            r = width(m, n, RANK, kind)
            M = 0.8 * torch.randn(r, r, generator=common) + 0.6 * torch.randn(r, r, generator=own)
            tensors[f"base_model.model.{module}.lora_A.weight"] = 0.01 * M
            planted[name][f"{module}.weight"] = update(0.01 * M.double(), m, n, kind)
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True)
        save_file(tensors, folder / "adapter_model.safetensors")
        about = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "use_mora": True, "mora_type": kind}
        (folder / "adapter_config.json").write_text(json.dumps(about))
    base = load_file(tiny_base / "model.safetensors")
    merged = {n: (w.double() + planted["task-1-seed-0"][n]).float() for n, w in base.items()}
    planted["merged"] = {n: w.double() - base[n].double() for n, w in merged.items()}
    (tmp_path / "adapters" / "merged").mkdir()
    save_file(merged, tmp_path / "adapters" / "merged" / "model.safetensors")

    survey = deltaw.survey(tiny_base, tmp_path / "adapters")
    frame, pairs = survey.adapters().set_index("name"), survey.pairs()
    assert set(frame["method"]) == {"mora", "full"}
    truth = np.array([int(name.startswith(("task-1", "merged"))) for name in frame.index])
    assert adjusted_rand(truth, frame["cluster"].to_numpy(dtype=np.int64)) == 1
    assert frame["nearest"]["merged"] == "task-1-seed-0"
    assert frame["flags"].to_dict() == {n: "duplicate" if n in {"merged", "task-1-seed-0"} else "" for n in frame.index}
    assert not pairs["exact"].any()
    true = np.array([cosine(planted[a], planted[b]) for a, b in zip(pairs["a"], pairs["b"], strict=True)])
    within = (pairs["cosine_low"] - 1e-4 <= true) & (true <= pairs["cosine_high"] + 1e-4)  # sketches are kept as halves
    assert within.mean() >= 0.9
    assert ((pairs["cosine_high"] - pairs["cosine_low"]) < 0.6).all()
    for name, deltas in planted.items():
        size = float(torch.cat([d.flatten() for d in deltas.values()]).norm())
        assert abs(frame["fro_norm"][name] / size - 1) < 1e-5
