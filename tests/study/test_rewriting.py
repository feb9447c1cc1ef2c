"""The last step of a study: checkpoints that are written again are scored as the runs were."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from deltaw.errors import OptionError
from deltaw.study import StudyPlan, load_plan, runner
from deltaw.study.plan import Rewriting, Training

from .conftest import FULL, LORA, MORA6

TABLES = Path(__file__).parents[2] / "docs" / "study_tables.py"
ASKED = Rewriting(ranks=(1, 100), edits=("denoise", "without-intruders"))


@pytest.fixture(autouse=True)
def without_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "compare", lambda _: None)


def run(plan: StudyPlan, out: Path, cache: Path) -> pd.DataFrame:
    runner.run(plan, out, cache=cache, jobs=1, device="cpu")
    return pd.read_csv(out / "rewritten.csv")


def test_what_is_written_again_is_scored_as_the_run_was(plan: StudyPlan, tmp_path: Path) -> None:
    plan = dataclasses.replace(plan, arms=(FULL, LORA, MORA6), rewriting=ASKED)
    table = run(plan, tmp_path / "a", tmp_path / "cache")
    ways = {arm: set(rows["written"]) for arm, rows in table.groupby("arm")}
    extracted = {"as trained", "extract --rank 1", "extract --rank 100"}
    assert ways == {
        "full": extracted | {"edit --denoise", "edit --without-intruders"},
        "LoRA r=2": extracted,  # `edit` writes full checkpoints
        "MoRA type 6": extracted,
    }
    points = pd.read_csv(tmp_path / "a" / "points.csv")
    losses = ["target_loss", "source_loss", "learning", "retention"]
    for name, rows in table.groupby("run"):
        rows = rows.set_index("written")
        last = points[points["run"] == name].iloc[-1]
        assert rows.loc["as trained", losses].tolist() == pytest.approx(last[losses].tolist())
        # All directions, loaded and merged by peft: the run itself. One direction: something else.
        assert rows.loc["extract --rank 100", "relative_error"] < 1e-6
        assert rows.loc["extract --rank 100", losses].tolist() == pytest.approx(last[losses].tolist(), rel=1e-4)
        assert rows.loc["extract --rank 1", "relative_error"] > 0.1
        assert abs(rows.loc["extract --rank 1", "target_loss"] - last["target_loss"]) > 1e-6
    shown = subprocess.run(
        [sys.executable, TABLES, tmp_path / "a", "--rewritten"], check=True, capture_output=True, text=True
    ).stdout
    assert "| extract --rank 1 |" in shown
    assert re.search(r"\| \*\*code\*\*: full, as trained +\|", shown)

    # Interrupted or grown, it does what is missing only.
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "a" / "rewritten").iterdir()}
    lost = next(iter(stamps))
    (lost / "scores.json").unlink()
    lost.rmdir()
    again = run(plan, tmp_path / "a", tmp_path / "cache")
    pd.testing.assert_frame_equal(again, table)
    assert all(p == lost or p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    fewer = dataclasses.replace(plan, rewriting=dataclasses.replace(ASKED, arms=("full",)))
    assert set(run(fewer, tmp_path / "a", tmp_path / "cache")["arm"]) == {"full"}


def test_scores_are_in_the_precision_of_the_training(plan: StudyPlan, tmp_path: Path) -> None:
    """An edit that changes nothing leaves the checkpoint, and so its scores, as they are."""
    training = dataclasses.replace(plan.training, precision="bfloat16")
    asked = Rewriting(ranks=(), edits=("denoise",))
    plan = dataclasses.replace(plan, arms=(FULL,), targets=plan.targets[:1], training=training, rewriting=asked)
    own, edited = run(plan, tmp_path / "a", tmp_path / "cache").to_dict("records")
    assert edited["tensors"] == 0
    assert (edited["target_loss"], edited["source_loss"]) == (own["target_loss"], own["source_loss"])


def test_a_run_that_diverged_is_not_written_again(plan: StudyPlan, tmp_path: Path) -> None:
    wild = dataclasses.replace(FULL, learning_rates=(1e20,))
    plan = dataclasses.replace(plan, arms=(wild,), targets=plan.targets[:1], rewriting=ASKED)
    table = run(plan, tmp_path / "a", tmp_path / "cache")
    assert table["written"].tolist() == ["as trained"]
    assert table["target_loss"].isna().all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[rewriting]\nedits = ['drop']", "expected one of without-decay, denoise, without-intruders"),
        ("[rewriting]\nranks = [4, 0]", "0 is no rank"),
        ("[rewriting]\narms = ['lora']", r"\[rewriting\], arms: no arm is named lora; expected some of .*full"),
        ("[rewriting]\nrank = [4]", "unknown key 'rank'"),
    ],
)
def test_wrong_plans(text: str, message: str, tmp_path: Path) -> None:
    preset = (Path(runner.__file__).parent / "quick.toml").read_text(encoding="utf-8")
    (tmp_path / "plan.toml").write_text(re.sub(r"\n\[rewriting\]\n(\S.*\n)*", "\n", preset) + "\n" + text + "\n")
    with pytest.raises(OptionError, match=message):
        load_plan(tmp_path / "plan.toml")


def test_weights_that_are_not_kept_cannot_be_written_again(plan: StudyPlan) -> None:
    with pytest.raises(OptionError, match=r"set \[training\] checkpoints to all or last"):
        dataclasses.replace(plan, rewriting=ASKED, training=Training(checkpoints="none"))
