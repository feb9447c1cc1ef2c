"""`deltaw compare --init` on trees of a Trainer: what it finds and marks, and that its manifest runs unchanged."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner, Result

import deltaw
from deltaw.cli import main
from deltaw.comparison.manifest import draft, read_manifest
from deltaw.errors import ManifestError
from deltaw.study import arms

from .conftest import FULL, LORA, trainer_of


def trained(base: Path, out: Path, arm: Any, seed: int, **options: Any) -> None:
    """A run as people have them: a Trainer's output directory, saved as it saves itself."""
    with arms.quiet():
        transformers.set_seed(seed)
        trainer = trainer_of(arms.prepare(arms.open_base(base), arm), out, seed=seed, **options)
        trainer.train()
        trainer.save_model()
        trainer.save_state()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Two seeds of LoRA that count their tokens, and a full fine-tune that does not, evaluated."""
    root = tmp_path_factory.mktemp("tree")
    for seed in (0, 1):
        trained(base, root / f"lora-s{seed}", LORA, seed, include_num_input_tokens_seen="all")
        for config in (root / f"lora-s{seed}").rglob("adapter_config.json"):
            text = json.loads(config.read_text())
            config.write_text(json.dumps(text | {"base_model_name_or_path": str(base)}))
    trained(base, root / "full", FULL, 0)
    (root / "full" / "evals").mkdir()
    results = {"results": {"hellaswag": {"acc,none": 0.5}}, "model_name": str(root / "full")}
    (root / "full" / "evals" / "results_2026-01-01T00-00-00.000000.json").write_text(json.dumps(results))
    return root


def init(*args: object) -> Result:
    return CliRunner().invoke(main, ["compare", "--init", *map(str, args)])


def test_a_tree_of_the_trainer_s(tree: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs.toml"
    done = init(tree, "--out", out)
    assert done.exit_code == 0, done.output
    written = tomllib.loads(out.read_text())
    assert (tmp_path / written["base"]).resolve() == base.resolve()
    runs = {r["name"]: r for r in written["runs"]}
    # The last checkpoint has the bytes of the result above it, and is no run of its own.
    assert set(runs) == {f"{n}{at}" for n in ("lora-s0", "lora-s1", "full") for at in ("", "/checkpoint-2")}
    for seed in (0, 1):
        run = runs[f"lora-s{seed}"]
        assert (run["group"], run["method"], run["seed"]) == ("lora", "lora", seed)
        assert run["tokens"] == 4 * 2 * 32
        assert runs[f"lora-s{seed}/checkpoint-2"]["tokens"] == 2 * 2 * 32
        assert run["hyperparameters"]["rank"] == 2
        expected = {"learning_rate": 1e-2, "weight_decay": 0.0, "train_batch_size": 2, "max_steps": 4}
        assert expected.items() <= run["hyperparameters"].items(), "from training_args.bin"
        assert run["hyperparameters"]["optimizer"].startswith("adamw_torch")
        assert "num_epochs" not in run["hyperparameters"], "max_steps wins over it"
    assert runs["full"]["method"] == "full"
    assert "tokens" not in runs["full"]
    assert [runs[n]["hyperparameters"]["step"] for n in ("full/checkpoint-2", "full")] == [2, 4], "no replicates"
    text = out.read_text()
    assert "# tokens = 0  # not found" in text
    assert "# Choose the scores from hellaswag:acc,none\n# [runs.lm_eval]" in text
    assert "not found" in done.output
    assert "6 runs" in done.output


def test_the_manifest_runs_unchanged(tree: Path, tmp_path: Path) -> None:
    draft([tree], tmp_path / "runs.toml")
    comparison = deltaw.compare(tmp_path / "runs.toml", include=["q_proj"], jobs=1)
    frame = comparison.runs()
    assert len(frame) == 6
    assert frame["n_layers"].gt(0).all()
    assert set(comparison.contrasts()["metric"]) >= {"relative_change"}


def test_nothing_is_overwritten_and_nothing_is_found(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs.toml"
    out.write_text("mine")
    done = init(tree, "--out", out)
    assert done.exit_code == 1
    assert "exists already, and is not overwritten" in done.output
    assert out.read_text() == "mine"
    (tmp_path / "empty").mkdir()
    for folder, words in (("empty", "no runs there"), ("none", "no such directory")):
        with pytest.raises(ManifestError, match=words):
            draft([tmp_path / folder], tmp_path / "other.toml")
    assert not (tmp_path / "other.toml").exists()


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch attacked",)


def test_settings_that_cannot_be_read_are_marked(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that attacks is not run; one that holds something else, or is cut off, says nothing of the training."""
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save(Attack(), "attack.bin")
    torch.save([1, 2], "list.bin")
    Path("cut.bin").write_bytes((tree / "lora-s0" / "training_args.bin").read_bytes()[:400])
    words = {"attack": "system", "list": "no object with attributes", "cut": "not a complete PyTorch file"}
    for name, word in words.items():
        folder = tmp_path / name / "run"
        folder.mkdir(parents=True)
        shutil.copy(tree / "lora-s0" / "adapter_config.json", folder)
        shutil.copy(f"{name}.bin", folder / "training_args.bin")
        found = draft([tmp_path / name], f"{name}.toml")
        assert [line for line in found.missing if line.startswith("settings: not found") and word in line]
        assert "learning_rate" not in Path(f"{name}.toml").read_text()
    assert not Path("attacked").exists()


def test_names_do_not_leave_their_comments(tree: Path, tmp_path: Path) -> None:
    config = (tree / "lora-s0" / "adapter_config.json").read_text()
    results = {"results": {'x\n[[runs]]\nname = "y"': {"acc,none": 0.5}}, "model_name": "m"}
    for name, base in (("a", "org/base"), ("b", "org/base"), ('c\n[[runs]]\nname = "d"', "org/other")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        text = json.dumps(json.loads(config) | {"base_model_name_or_path": base})
        (folder / "adapter_config.json").write_text(text)
        (folder / "results_a.json").write_text(json.dumps(results))
    draft([tmp_path / "runs"], tmp_path / "runs.toml")
    assert [r["name"] for r in tomllib.loads((tmp_path / "runs.toml").read_text())["runs"]] == ["a", "b"]


def test_a_run_of_another_base_is_left_out(tree: Path, tmp_path: Path) -> None:
    config = json.loads((tree / "lora-s0" / "adapter_config.json").read_text())
    for name, base in (("a", "org/base"), ("b", "org/base"), ("c", "org/other")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        text = json.dumps(config | {"base_model_name_or_path": base})
        (tmp_path / "runs" / name / "adapter_config.json").write_text(text)
    found = draft([tmp_path / "runs"], tmp_path / "runs.toml")
    assert found.runs == 2
    text = (tmp_path / "runs.toml").read_text()
    assert 'base = "org/base"' in text
    assert "# Left out: c is of another base, 'org/other'" in text
    assert read_manifest(tmp_path / "runs.toml").base == "org/base"
