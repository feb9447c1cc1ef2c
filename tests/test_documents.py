"""Documents of others are bounded when they are read and typed when they are asked."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaw.documents import Document, compile_pattern, parse_object, read_object, read_table, shown
from deltaw.errors import AdapterError, CheckpointError, DeltaWError, OptionError, ResultsError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def test_values_are_what_was_asked_for():
    d = parse_object(
        '{"a": "x", "b": 3, "c": 0.5, "d": true, "e": ["x", "y"], "f": {"g": 2}, "n": null}', "config.json"
    )
    assert (d.text("a"), d.whole("b"), d.number("c"), d.number("b"), d.flag("d")) == ("x", 3, 0.5, 3.0, True)
    assert d.texts("e") == ("x", "y")
    assert d.texts("a") == ("x",)
    assert d.numbers("f") == {"g": 2.0}
    assert d.inner("f").whole("g") == 2
    assert d.text("n", "default") == "default"  # null is as good as nothing
    assert "n" not in d
    assert not d.inner("missing")


@pytest.mark.parametrize(
    ("method", "key", "expected"),
    [
        ("whole", "text", "'text' is \"x\"; expected a whole number"),
        ("whole", "flag", "'flag' is true; expected a whole number"),
        ("whole", "none", "'none' is missing; expected a whole number"),
        ("whole", "large", "'large' is 1180591620717411303424; expected a whole number"),
        ("number", "inf", "'inf' is Infinity; expected a number"),
        ("text", "list", "'list' is [1]; expected a text"),
        ("texts", "list", "'list' is [1]; expected a text, or a list of texts"),
        ("flag", "text", "'text' is \"x\"; expected true or false"),
        ("inner", "list", "'list' is [1]; expected an object"),
        ("inners", "list", "'list' is [1]; expected a list of objects"),
        ("numbers", "inner", "d.json: inner: 'a' is \"b\"; expected a number"),
    ],
)
def test_another_type_is_one_line(method: str, key: str, expected: str):
    values = {"text": "x", "flag": True, "large": 2**70, "inf": float("inf"), "list": [1], "inner": {"a": "b"}}
    with pytest.raises(AdapterError) as e:
        getattr(Document(values, "d.json", AdapterError), method)(key)
    assert expected in str(e.value)
    assert str(e.value).startswith("d.json")


@given(JSON)
def test_nothing_but_a_deltaw_error_comes_out(value: object):
    d = Document({"k": value}, "x")
    for method in ("text", "whole", "number", "flag", "texts", "numbers", "inner", "inners"):
        said = ""
        try:
            getattr(d, method)("k")
        except DeltaWError as e:
            said = str(e)
        assert len(said) < 400
        assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[1]", "holds [1]; expected an object"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"", "not valid JSON"),
    ],
    ids=["list", "cut", "deep", "digits", "bytes", "empty"],
)
def test_what_is_no_object_is_one_line(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json") as e:
        read_object(path)
    assert reason in str(e.value)


def test_what_is_no_file_or_too_large_is_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_text(json.dumps({"a": "x" * 100}))
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_object(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="expected at most 50"):
        read_object(tmp_path / "large", largest=50)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_object(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_object(tmp_path / "nul\0")


def test_a_table_that_is_none_is_one_line(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.csv")  # would be waited for
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "binary.csv").write_bytes(b"a,b\n\xff,1\n")
    for name in ("pipe", "folder", "empty", "binary", "missing"):
        with pytest.raises(ResultsError, match=r"^[^\n]*(regular|there|read)[^\n]*again$"):
            read_table(tmp_path / f"{name}.csv")
    (tmp_path / "whole.csv").write_text("a,b\n1e400,\n")
    assert read_table(tmp_path / "whole.csv").to_dict("list") == {"a": ["1e400"], "b": [""]}


def test_a_pattern_has_a_limited_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deltaw.documents.patterns.MATCHING", 0.05)
    pattern = compile_pattern("^((a|aa)+)+[0-9]$", "adapter_config.json: rank_pattern", error=AdapterError)
    with pytest.raises(AdapterError, match=r"rank_pattern: the regular expression .* takes over 0.05 s"):
        pattern.search("a" * 60)  # without a limit it would be years
    assert compile_pattern("q_proj", "--include").search("a.q_proj.weight")
    assert not compile_pattern("q_proj", "--include").fullmatch("a.q_proj.weight")
    assert compile_pattern(r"^model\.(.*)", "--rename").sub(r"\1", "model.a.b") == "a.b"


@pytest.mark.parametrize("text", ["[", "(", "a{99999999999999999999}", "*"])
def test_a_malformed_pattern_is_one_line(text: str):
    with pytest.raises(OptionError, match="--include"):
        compile_pattern(text, "--include", error=OptionError)


def test_a_foreign_value_is_cut():
    assert len(shown("x" * 10**6)) == 60
    assert shown({1, 2}) == "a set"
