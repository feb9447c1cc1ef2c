"""The tutorials and recipes do what they say: every block of a page is run, in order, in an empty folder.

A block of `sh` or `python` is run; a block of `text` right after it is what it prints (`...` stands for anything).
What a page needs and does not show stands in a comment: `<!-- run before: python`, code, `-->`. A comment
`<!-- run: OLD => NEW -->` replaces a text in the blocks after it, for what a test machine does not have.
"""

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(path for folder in ("tutorials", "recipes") for path in (DOCS / folder).glob("*.md"))
PAGES.append(DOCS / "act.md")
PAGES.append(DOCS / "quantised.md")
PAGES.append(DOCS / "training.md")
PAGES.append(DOCS / "ci.md")
BLOCK = re.compile(
    r"^```(?P<language>\w+)\n(?P<code>.*?)^```$"
    r"|^<!-- run before: (?P<hidden>\w+)\n(?P<setup>.*?)^-->$"
    r"|^<!-- run: (?P<old>.+?) => (?P<new>.*?) -->$",
    re.MULTILINE | re.DOTALL,
)
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def shell(code: str) -> str:
    """What a block of shell commands prints; the first that fails ends it."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python(code: str, names: dict[str, object], page: Path) -> str:
    """What a block of Python prints; its names stay for the next one."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(page), "exec"), names)
    return printed.getvalue()


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ):  # a page may set variables
        yield


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
@pytest.mark.usefixtures("empty_folder")
def test_a_page_runs(page: Path):
    names: dict[str, object] = {"__name__": "page"}
    replaced: list[tuple[str, str]] = []
    printed, ran = None, 0
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["old"]:
            replaced.append((block["old"], block["new"]))
            continue
        language, code = block["language"] or block["hidden"], block["code"] or block["setup"]
        for old, new in replaced:
            code = code.replace(old, new)
        if language == "text":
            assert printed is not None, f"{page.name}: output without a block that prints it"
            assert doctest.OutputChecker().check_output(code, printed, SAME), (
                f"{page.name} says\n{code}\nbut\n{printed}"
            )
            printed = None
        elif language in {"sh", "python"}:
            printed = shell(code) if language == "sh" else python(code, names, page)
            ran += 1
    assert ran, f"{page.name}: nothing to run"
