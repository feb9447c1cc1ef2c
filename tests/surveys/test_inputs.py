"""What a survey looks at: paths, folders, patterns, lists, ids; and short names that no two share."""

import os
from pathlib import Path

import pytest

from deltaw.errors import CheckpointError, OptionError
from deltaw.surveys.inputs import members, short_names


def names(*given: object) -> list[str]:
    return [m.name for m in members([str(g) for g in given])[0]]


def test_names_are_as_short_as_they_can_be_and_unique():
    assert short_names(["runs/a", "runs/b/"]) == ["a", "b"]
    assert short_names(["x/a/final", "x/b/final", "c"]) == ["a/final", "b/final", "c"]
    assert short_names(["1/x/a", "2/x/a", "a"]) == ["1/x/a", "2/x/a", "a"]
    assert short_names(["org/one", "other/one"]) == ["org/one", "other/one"]
    assert short_names(["same", "same", "same"]) == ["same", "same (2)", "same (3)"]
    assert short_names(["loras/style.safetensors"]) == ["style"]
    cached = f"hub/models--org--name/snapshots/{'0' * 40}"
    assert short_names([cached, "other/name"]) == ["org/name", "other/name"]


def test_a_folder_a_pattern_and_a_list_are_what_they_hold(tiny, tmp_path: Path):
    for name in ("a10", "a2", "b"):
        tiny(name)
    folder = tmp_path / "adapters"
    assert names(folder) == ["a2", "a10", "b"]
    assert names(folder / "a*") == ["a2", "a10"]
    assert names(folder / "b", folder / "a2") == ["b", "a2"]
    (folder / "list.txt").write_text("# mine\nb\n\n a10 \norg/on-the-hub\n")
    expected = ["b", "a10", "on-the-hub"]
    assert names(folder / "list.txt") == names(f"@{folder / 'list.txt'}") == expected


def test_folders_in_folders_are_looked_into_but_not_adapters(tiny, tmp_path: Path):
    tiny("org/one")
    tiny("org/two/checkpoint-9")
    tiny("org/one/checkpoint-1")  # of a training whose end lies above it
    tiny("other/.hidden")
    (tmp_path / "adapters" / "logs").mkdir()
    assert names(tmp_path / "adapters") == ["one", "two/checkpoint-9"]


def test_what_is_given_twice_is_looked_at_once(tiny, tmp_path: Path):
    tiny("a")
    found, notes = members([tmp_path / "adapters", tmp_path / "adapters" / "a"])
    assert [m.name for m in found] == ["a"]
    assert notes == ("1 given more than once, looked at once",)


def test_a_list_does_not_lead_to_others(tmp_path: Path):
    for item in ("@a.txt", "a.txt"):
        (tmp_path / "a.txt").write_text(f"{item}\n")
        with pytest.raises(CheckpointError, match="lists another list"):
            members([tmp_path / "a.txt"])
    (tmp_path / "a.txt").write_text("# nothing\n")
    with pytest.raises(OptionError, match="no adapter was given"):
        members([tmp_path / "a.txt"])


def test_what_cannot_be_expanded_says_so(tmp_path: Path):
    with pytest.raises(CheckpointError, match="matches nothing"):
        members([tmp_path / "no*"])
    with pytest.raises(CheckpointError, match=r"the list .*none: cannot be read"):
        members([f"@{tmp_path / 'none'}"])
    os.mkfifo(tmp_path / "pipe")  # would be waited for
    with pytest.raises(CheckpointError, match="not a regular file"):
        members([f"@{tmp_path / 'pipe'}"])
    with pytest.raises(OptionError, match="empty"):
        members([" "])
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        members([tmp_path / "binary.txt"])
