"""The boundary of the command line: the version, near names, links, progress."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import deltaw
from deltaw.cli import main, progress
from deltaw.cli.screen import file_link
from deltaw.cli.summary import fitting
from deltaw.files import near_path
from deltaw.measurement.loop import Progress
from deltaw.study.runner import Stage


def error(*args: object, code: int) -> str:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == code, result.output
    return result.stderr.splitlines()[-1]


def test_the_module_is_the_command():
    run = [sys.executable, "-m", "deltaw", "--version"]
    shown = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["deltaw,", "version", deltaw.__version__]


def test_the_version_is_of_the_package():
    from importlib.metadata import version

    assert deltaw.__version__ == version("deltaw")
    assert "__version__" in deltaw.__all__


@pytest.mark.parametrize(
    ("args", "code", "hint"),
    [
        (["analize", "a", "b"], 2, "Did you mean 'analyze'?"),
        (["metrics", "rank90"], 2, "rank_90"),
        (["frobnicate"], 2, "There are analyze, inspect"),
    ],
)
def test_near_names(args: list[str], code: int, hint: str):
    assert hint in error(*args, code=code)


def test_misspelt_paths_suggest_the_near_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "llama-tuned").mkdir()
    (tmp_path / "llama-tuned" / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    tuned = tmp_path / "llama-tuned"
    assert near_path(tmp_path / "lama-tuned") == f" Did you mean {str(tuned)!r}?"
    assert near_path(tmp_path / "lama-tuned" / "weights") == f" Did you mean {str(tuned)!r}?"
    assert near_path(tuned / "wieghts") == f" Did you mean {str(tuned / 'weights')!r}?"
    assert near_path(Path("lama-tuned")) == " Did you mean 'llama-tuned'?"
    assert near_path(tmp_path / "something-else-entirely") == ""
    assert near_path(Path("/nowhere/at/all")) == ""
    assert f"Did you mean {str(tuned)!r}?" in error("analyze", tmp_path / "lama-tuned", tuned, code=1)
    assert f"Did you mean {str(tuned)!r}?" in error("report", tmp_path / "lama-tuned", code=1)


def test_an_adapter_given_as_base_says_so(tmp_path: Path, pico_pair: tuple[Path, Path]):
    import json

    import torch
    from safetensors.torch import save_file

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/base"}))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": torch.ones(2, 16), f"{module}.lora_B.weight": torch.ones(16, 2)}
    save_file(factors, adapter / "adapter_model.safetensors")
    for command in ("analyze", "inspect"):
        line = error(command, adapter, pico_pair[1], code=1)
        assert "an adapter, trained on org/base, where the base is expected" in line
    assert "where the base is expected" in error("verify", adapter, adapter, pico_pair[1], code=1)
    # A full checkpoint with an adapter beside it is still a base.
    os.link(pico_pair[0] / "model.safetensors", adapter / "model.safetensors")
    assert CliRunner().invoke(main, ["inspect", str(adapter), str(pico_pair[1])]).exit_code == 0


def test_a_path_is_a_link_on_a_terminal_and_plain_text_elsewhere(tmp_path: Path):
    from rich.console import Console

    path = tmp_path / "a report.html"
    shown = io.StringIO()
    Console(file=shown, force_terminal=True, width=300).print(file_link(path))
    assert path.as_uri() in shown.getvalue()
    plain = io.StringIO()
    Console(file=plain, width=300).print(file_link(path))
    assert plain.getvalue().strip() == str(path)


def test_the_last_columns_are_left_out_where_the_terminal_is_narrow():
    heads, rows = ["kind", "a\nlonger", "b"], [["attention", "1", "22"]]
    assert fitting(heads, rows, 80) == [0, 1, 2]
    assert fitting(heads, rows, 9 + 3 + 6 + 2) == [0, 1]
    assert fitting(heads, rows, 9 + 2) == [0]


def test_progress_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines = progress.Lines()
    lines(Progress(1, 100, 1.0, 100.0, "a"))
    assert capsys.readouterr().err == ""  # a short run says nothing
    now[0] += 20
    lines(Progress(50, 100, 25.0, 100.0, "b"))
    assert capsys.readouterr().err == "deltaw: measuring, 50/100 matrices, 20 s, about 60 s left\n"
    lines.verified(3, 8, "c")
    assert capsys.readouterr().err == "deltaw: verifying, 3/8 tensors\n"  # another stage is named at once
    lines.studied(Stage("trained full-s0", 1, 4))
    lines.studied(Stage("trained full-s1", 2, 4))
    assert capsys.readouterr().err == "deltaw: trained full-s0, 1/4\n"


def test_the_bar_begins_anew_with_a_stage():
    from rich.console import Console
    from rich.progress import Progress as Rich

    with Rich(console=Console(file=io.StringIO())) as rich:
        bar = progress.Bar(rich)
        bar.studied(Stage("base", 3, 4))
        bar.studied(Stage("trained a", 1, 9))
        task = rich.tasks[0]
        assert (task.description, task.completed, task.total) == ("trained a", 1, 9)
