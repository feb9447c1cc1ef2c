from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

from deltaw.errors import OptionError
from deltaw.study.domains import FAMILIES, FileCorpus, PackageCorpus, ProblemCorpus, Text, definitions, docstrings

LONG = "Returns the smallest whole number whose square is at least the argument, for every argument above zero."
SOURCE = f'''
"""{LONG} (module)"""
import math  # a comment


def root(x):
    """{LONG}

    Indented as in its source.
    """
    # another comment
    lower = math.floor(math.sqrt(x)) - 1
    return next(n for n in range(max(lower, 0), lower + 4) if n * n >= x)


class Only:
    """{LONG} (class)"""


def short():
    """Too short."""
'''


def test_docstrings_are_the_prose_of_a_module() -> None:
    found = docstrings(ast.parse(SOURCE))
    assert found == [f"{LONG} (module)", f"{LONG}\n\nIndented as in its source.", f"{LONG} (class)"]


def test_code_has_neither_docstrings_nor_comments() -> None:
    found = definitions(ast.parse(SOURCE))
    assert len(found) == 1  # the other two are too short to learn from
    assert "comment" not in found[0]
    assert "Returns" not in found[0]
    scope: dict[str, object] = {"math": __import__("math")}
    exec(found[0], scope)
    assert scope["root"](17) == 5  # type: ignore[operator]


def test_a_function_of_only_a_docstring_stays_valid() -> None:
    source = f'def {"f" * 90}():\n    """{LONG}"""\n'
    (found,) = definitions(ast.parse(source))
    ast.parse(found)


def test_package_corpus_names_files_and_leaves_out_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "somewhere_small"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text(SOURCE)
    (package / "tests" / "test_x.py").write_text(SOURCE)
    (package / "broken.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    corpus = PackageCorpus("docstrings", ("somewhere_small", "not_installed_anywhere"))
    assert corpus.origins() == ["somewhere_small/__init__.py", "somewhere_small/broken.py"]
    assert len(corpus.read("somewhere_small/__init__.py")) == 3
    assert corpus.read("somewhere_small/broken.py") == []
    sys.modules.pop("somewhere_small", None)


def test_problems_end_in_their_answer() -> None:
    corpus = ProblemCorpus(3)
    origins = corpus.origins()
    assert set(FAMILIES) < set(origins)
    assert sum(o.startswith("gsm_symbolic/") for o in origins) > 50
    for origin in (*origins[:5], *FAMILIES):
        for p in corpus.read(origin):
            assert p.text.endswith(f"#### {p.answer}")
            assert p.text.count("####") == 1
            assert p.prompt.startswith("Question: ")
            assert p.prompt.endswith("\nAnswer: ")


def test_problems_follow_from_the_seed() -> None:
    first, again, other = (ProblemCorpus(2, seed=s).read("gsm_symbolic/0") for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_files_of_text_and_json_lines(tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("one\n\n  two\n  lines\n\n\n\nthree")
    lines.write_text(
        json.dumps({"text": "four"}) + "\n\n" + json.dumps({"prompt": "p", "completion": "c", "answer": "c"})
    )
    corpus = FileCorpus([text, lines])
    found = [d for o in corpus.origins() for d in corpus.read(o)]
    expected = ["one", "two\nlines", "three", "four"]
    assert found == [*(Text(t) for t in expected), Text("c", "p", "c")]


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', '{"prompt": "p"}', "3"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(OptionError, match=r"x\.jsonl, line 2"):
        FileCorpus([path])


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe\xff")
    for name in ("x.bin", "absent.txt"):
        with pytest.raises(OptionError, match=name):
            FileCorpus([tmp_path / name])
