"""A terminal is shown foreign text as escapes, and any stream can be printed on."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from deltaw.cli import main
from deltaw.cli.printable import LONGEST, one_line, printable
from deltaw.cli.progress import reporting
from deltaw.cli.screen import Screen, bullet, file_link
from tests.conftest import changed, save_single

HOSTILE = "a\x1b[31mred\x1b]0;title\x07\u202egnp\u2066\x9b2J\u200f\ud800\r"
PROGRAM = [sys.executable, "-m", "deltaw"]


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_nothing_that_steers_a_terminal_is_left(text: str):
    shown = printable(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert not any(0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069 for c in shown)
    shown.encode()  # no lone surrogates


@pytest.mark.parametrize("text", ["model.layers.0.weight", "größe 漢字 Δ‖W‖", "two\nlines\tand a tab"])
def test_ordinary_text_stays_as_it_is(text: str):
    assert printable(text) == text


def test_a_message_is_one_line_of_bounded_length():
    assert one_line("a\nb\x1b c") == "a b\\x1b c"
    assert len(one_line("x" * 10**6)) < LONGEST + 50


def test_tables_and_links_escape_too():
    out = io.StringIO()
    screen = Screen(file=out, width=200)
    table = Table()
    table.add_column("name")
    table.add_row(HOSTILE)
    screen.print(table)
    screen.print(HOSTILE, markup=False)
    screen.print(file_link(Path(HOSTILE.replace("\ud800", ""))))
    assert printable(out.getvalue()) == out.getvalue()
    assert "\\x1b" in out.getvalue()


def test_progress_and_the_log_beside_it_escape_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    with reporting(quiet=False) as show:
        logging.getLogger("deltaw").warning("%s", HOSTILE)
        show.say(f"[red]{HOSTILE}")
        show.move(f"reading {HOSTILE}", 1, 2, "1/2")
    for steering in ("\x1b[31mred", "\x1b]0;", "\x9b", "\u202e", "\u2066"):
        assert steering not in out.getvalue()
    assert out.getvalue().count("\\x1b[31mred") >= 2
    assert "[red]" in out.getvalue()


def test_what_click_repeats_is_escaped():
    done = CliRunner().invoke(main, ["inspect", "a", "b", HOSTILE])  # as a shell makes it of inspect *
    assert done.exit_code == 2
    assert "\\x1b[31mred" in done.stderr
    assert printable(done.stderr) == done.stderr


@pytest.fixture
def hostile_pair(tmp_path: Path) -> list[str]:
    state = {HOSTILE.replace("\ud800", ""): torch.eye(3), "only\u202e.weight": torch.eye(2)}
    ft = changed(state)
    ft["left\x1b[2J"] = ft.pop("only\u202e.weight")
    return [str(save_single(state, tmp_path / "base\x1b")), str(save_single(ft, tmp_path / "ft"))]


@pytest.mark.parametrize("command", ["inspect", "analyze", "verify"])
def test_names_of_a_checkpoint_steer_no_terminal(command: str, hostile_pair: list[str], tmp_path: Path):
    base, ft = hostile_pair
    extra = {"analyze": ["--out", str(tmp_path / "o"), "--no-report"], "verify": [ft]}.get(command, [])
    done = subprocess.run([*PROGRAM, command, base, ft, *extra], capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode()
    assert said
    assert printable(said) == said
    assert "Traceback" not in said


def test_names_in_a_printed_report_steer_no_terminal(hostile_pair: list[str], tmp_path: Path):
    done = CliRunner().invoke(main, ["analyze", *hostile_pair, "--out", str(tmp_path / "o"), "-q", "--no-report"])
    assert done.exit_code == 0, done.output
    for form in ("markdown", "latex", "card"):
        said = CliRunner().invoke(main, ["report", str(tmp_path / "o"), f"--{form}"]).output
        assert said
        assert printable(said) == said


def test_any_stream_can_be_printed_on(hostile_pair: list[str]):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([*PROGRAM, "inspect", *hostile_pair], capture_output=True, check=False, env=environment)
    assert done.returncode == 0
    assert b"\\u2500" in done.stdout  # a line that ASCII has no sign for
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        command = f"exec {sys.executable} -m deltaw metrics {closed}"
        assert subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode == 0, closed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_one_line():
    command = f"exec {sys.executable} -m deltaw metrics >/dev/full"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().strip() == "Error: the output cannot be written: No space left on device"


@pytest.mark.parametrize("width", [20, 33, 80])
def test_a_sentence_breaks_between_words_and_keeps_units(width: int):
    out = io.StringIO()
    sentence = (
        "a rank-16 adapter could keep 58 % of it; 90 % takes ranks 1–2 in model.layers.0.self_attn.q_proj.weight."
    )
    bullet(Screen(file=out, width=width), sentence)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("• a")
    assert all(line.startswith("  ") for line in lines[1:])
    assert " ".join(line[2:] for line in lines) == sentence
    assert not any(line.rstrip().endswith(("58", "90", "rank-")) for line in lines)
    assert all(len(line) <= width or " " not in line[2:] for line in lines)
