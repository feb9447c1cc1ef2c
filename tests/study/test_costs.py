from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner

from deltaw.cli.program import main
from deltaw.study import StudyPlan, estimate
from deltaw.study.arms import open_base
from deltaw.study.costs import in_words

from .conftest import SPEC


def test_the_counts_are_the_plans(plan: StudyPlan) -> None:
    found = estimate(plan, device="cpu", jobs=2)
    assert (found.runs, found.points) == (6, 12)
    assert found.run_tokens == 4 * 2 * 384
    assert found.total_tokens == 10 * 4 * 384 + 6 * found.run_tokens
    attention, mlp = 4 * 16 * 16, 3 * 16 * 24
    assert found.parameters == 2 * 400 * 16 + 2 * (attention + mlp + 2 * 16) + 16
    assert found.trainable["full"] == found.parameters
    assert found.trainable["LoRA r=2"] == 2 * (4 * 2 * 32 + 3 * 2 * 40)
    assert found.trainable["MoRA type 6"] == 2 * (4 * 8**2 + 3 * 8**2)  # r̂ = √64 and √80, made even
    assert all(seconds > 0 for name, seconds in found.seconds.items() if name != "data")
    assert found.memory > 4 * found.parameters
    text = in_words(plan, found)
    assert f"{found.parameters:,} parameters" in text
    assert all(a.name in text for a in plan.arms)


def test_a_given_base_is_not_trained(plan: StudyPlan, base: Path) -> None:
    given = dataclasses.replace(plan, base=dataclasses.replace(SPEC, model=str(base)))
    found = estimate(given, device="cpu", jobs=1)
    assert (found.base_tokens, found.seconds["base"]) == (0, 0)
    assert found.parameters == sum(p.numel() for p in open_base(base).parameters())


@pytest.fixture
def plan_file(tmp_path: Path, texts: dict[str, str]) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(
        f"""
title = "Mine"
[base]
hidden = 16
layers = 1
heads = 2
intermediate = 24
vocabulary = 300
[source]
name = "s"
corpus = "files"
files = ["{texts["prose"]}"]
[training]
length = 32
[scores]
tokens = 64
prompts = 0
[[targets]]
name = "c"
corpus = "files"
files = ["{texts["code"]}"]
[[arms]]
name = "full"
method = "full"
learning_rates = [1e-3]
"""
    )
    return path


def test_dry_run_trains_nothing(tmp_path: Path, plan_file: Path) -> None:
    done = CliRunner().invoke(main, ["study", "--dry-run", "--plan", str(plan_file), "--seeds", "3"])
    assert done.exit_code == 0, done.output
    assert "runs        3: 1 arm, 1 target, 3 seeds" in done.stdout
    assert list(tmp_path.iterdir()) == [plan_file]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--out is missing"),
        (["--plan", "absent.toml", "--dry-run"], 2, "absent.toml: cannot be read"),
        (["--preset", "huge"], 2, "huge"),
        (["--dry-run", "--base", "/absent/model"], 1, "/absent/model: not a causal language model"),
        (["--out", "x", "--device", "tpu"], 2, "device 'tpu' cannot be used"),
    ],
)
def test_what_a_user_gets_wrong(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["study", *arguments])
    assert done.exit_code == code
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
