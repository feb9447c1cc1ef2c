from collections.abc import Callable
from pathlib import Path

import pytest

import deltaw
from deltaw.comparison.manifest import read_manifest
from deltaw.documents.toml import lines_of
from deltaw.errors import ManifestError

Write = Callable[[str], Path]


def complaint(path: Path) -> str:
    with pytest.raises(ManifestError) as e:
        read_manifest(path)
    return str(e.value)


def test_a_whole_manifest(manifest: Write, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "runs" / "a").mkdir(parents=True)
    m = read_manifest(
        manifest(
            """
title = "Code"
base = "base"
reference = "LoRA r=16"
[[runs]]
name = "a"
checkpoint = "runs/a"
group = "LoRA r=16"
method = "LoRA"
seed = 0
tokens = 1_000_000
[runs.hyperparameters]
weight_decay = 0.1
targets = ["q", "v"]
[runs.scores]
learning = 0.263
retention = 0.545
diversity = 12
[[runs]]
name = "b"
tokens = 2e9
[runs.scores]
learning = 1
"""
        )
    )
    a, b = m.runs
    assert (m.title, m.reference, m.base) == ("Code", "LoRA r=16", str((tmp_path / "base").resolve()))
    assert (a.group, a.method, a.seed, a.tokens) == ("LoRA r=16", "lora", 0, 1_000_000)
    assert a.checkpoint == str((tmp_path / "runs" / "a").resolve())
    assert a.hyperparameters == {"weight_decay": 0.1, "targets": ("q", "v")}
    assert {k: v.value for k, v in a.scores.items()} == {"learning": 0.263, "retention": 0.545, "diversity": 12.0}
    assert (b.group, b.tokens, b.checkpoint) == ("b", 2_000_000_000, None)
    assert "2 groups have a single run" in m.warnings[0]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('titel = "x"\n[[runs]]\nname = "a"\nscores = {learning = 1}', 1, ["unknown key 'titel'", "'title'"]),
        ('[[runs]]\nname = "a"\nchekpoint = "x"\n', 3, ["run 'a'", "unknown key 'chekpoint'", "'checkpoint'"]),
        ('[[runs]]\nname = "a"\n[runs.scores]\nlearnin = 1', 4, ["learnin", "Did you mean 'learning'"]),
        ('[[runs]]\nname = "a"\n[runs.scores]\nlearning = nan', 4, ["learning is nan", "not measured"]),
        ('[[runs]]\nname = "a"\n[runs.scores]\nlearning = inf', 4, ["learning is inf"]),
        ('[[runs]]\nname = "a"\n[runs.scores]\nlearning = "1"', 4, ["a text", "expected a number"]),
        ('[[runs]]\nname = "a"\n[runs.scores]\nlearning = true', 4, ["true or false", "expected a number"]),
        ('[[runs]]\nname = "a"\nscores = 3', 3, ["expected a table"]),
        ('[[runs]]\nname = 3\n[runs.scores]\nlearning = 1', 2, ["name is 3", "text in quotes"]),
        ('[[runs]]\n[runs.scores]\nlearning = 1', 1, ["name is missing"]),
        ('[[runs]]\nname = " "\n[runs.scores]\nlearning = 1', 2, ["name is empty"]),
        ('[[runs]]\nname = "a\\nb"\n[runs.scores]\nlearning = 1', 2, ["remove the line break"]),
        ('[[runs]]\nname = "a"\nseed = 1.5\n[runs.scores]\nlearning = 1', 3, ["seed is 1.5", "whole number"]),
        ('[[runs]]\nname = "a"\ntokens = -5\n[runs.scores]\nlearning = 1', 3, ["tokens is -5"]),
        ('[[runs]]\nname = "a"\ntokens = true\n[runs.scores]\nlearning = 1', 3, ["true or false"]),
        ('[[runs]]\nname = "a"\n[runs.hyperparameters]\nx = {y = 1}\n[runs.scores]\nlearning = 1', 4, ["is a table"]),
        ('[[runs]]\nname = "a"\n', 2, ["nothing to compare"]),
        ('[[runs]]\nname = "a"\nresults = "nowhere"', 3, ["'nowhere' does not exist", "looked for"]),
        ('base = "b/c/d"\n[[runs]]\nname = "a"\n[runs.scores]\nlearning = 1', 1, ["not exist", "form of a Hub id"]),
        ('[[runs]]\nname = "a"\ncheckpoint = "org/name"', 1, ["no base", "'a'"]),
        ('reference = "fll"\n[[runs]]\nname = "full"\n[runs.scores]\nlearning = 1', 1, ["'fll'", "'full'"]),
        ('[[runs]]\nname = "a"\n[runs.lm_eval]\nlearning = ["x:acc"]', 3, ["file is missing"]),
        ('[[runs]]\nname = "a"\n[runs.lm_eval]\nfile = "no.json"\nlearning = ["x:acc"]', 4, ["'no.json' does not"]),
        ('runs = 3', 1, ['"[[runs]]"']),
        ('title = "x"', 1, ["no runs"]),
        ('runs = []', 1, ["no runs"]),
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_line(manifest: Write, text: str, line: int, words: list[str]) -> None:
    path = manifest(text)
    message = complaint(path)
    assert message.splitlines()[0].startswith(f"{path}:{line}: ")
    for word in words:
        assert word in message
    assert len(message.splitlines()) == 1


def test_all_problems_come_at_once_in_order(manifest: Write) -> None:
    message = complaint(
        manifest('[[runs]]\nname = "a"\nseed = "x"\n[runs.scores]\nlearning = nan\n[[runs]]\nname = "a"\nfoo = 1\n')
    )
    lines = [int(m.split(":")[1]) for m in message.splitlines()]
    assert lines == [3, 5, 7, 8]
    assert "run 'a' is there already (line 2)" in message


def test_a_run_without_a_name_is_called_by_its_number(manifest: Write) -> None:
    text = '[[runs]]\nname = {}\nseed = 1.5\nresults = "no"\n[runs.scores]\nlearning = 1'
    for name in ("3", '""'):
        messages = [m.split(": ", 1)[1] for m in complaint(manifest(text.format(name))).splitlines()]
        assert [m.split(":")[0].split(" is ")[0] for m in messages[:2]] == ["run 1", "run 1"]
        assert messages[2].startswith("run 1: results 'no' does not exist")


def test_toml_that_is_none(manifest: Write, tmp_path: Path) -> None:
    assert "line 1, column 4" in complaint(manifest("a =="))
    assert "cannot be read" in complaint(tmp_path / "no.toml")
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in complaint(path)
    assert "not valid TOML" in complaint(manifest("a = " + "[" * 5000))


def test_a_cycle_of_links(manifest: Write, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    assert "cycle of links" in complaint(manifest('base = "one"\n[[runs]]\nname = "a"\ncheckpoint = "two"\n'))


def test_the_base_itself_and_a_copy_are_no_runs(manifest: Write, tmp_path: Path) -> None:
    for name in ("base", "x"):
        (tmp_path / name).mkdir()
    run = '[[runs]]\nname = "{}"\ngroup = "g"\ncheckpoint = "{}"\n'
    text = 'base = "base"\n' + run.format("a", "x") + run.format("b", "./x") + run.format("c", "base")
    message = complaint(manifest(text))
    assert "run 'b': the same checkpoint as run 'a'" in message
    assert "run 'c': its checkpoint is the base itself" in message


def test_a_missing_path_is_not_taken_for_a_hub_id(manifest: Write, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "base").mkdir()
    text = 'base = "base"\n[[runs]]\nname = "a"\ncheckpoint = "{}"\n'
    assert "does not exist" in complaint(manifest(text.format("runs/a")))
    assert read_manifest(manifest(text.format("org/a@main"))).runs[0].checkpoint == "org/a@main"


def test_names_are_kept_as_they_are(manifest: Write) -> None:
    name = '<script>alert(1)</script> "quoted" ünï 🙂'
    escaped = name.replace('"', '\\"')
    m = read_manifest(manifest(f'[[runs]]\nname = "{escaped}"\n[runs.scores]\nlearning = 1'))
    assert m.runs[0].name == name


def test_lines_of_keys() -> None:
    text = '''a = 1
b = [
  "x = 1",
]
c = """
[[runs]]
d = 2
"""
[[runs]]  # first
name = "x"
scores.learning = 1
[runs."odd key"]
"e" = 1
[[runs]]
[runs.scores]
f = {g = 1}
'''
    lines = lines_of(text)
    assert lines["a",] == 1
    assert lines["c",] == 5
    assert ("d",) not in lines
    assert lines["runs", 0] == 9
    assert lines["runs", 0, "scores", "learning"] == 11
    assert lines["runs", 0, "odd key", "e"] == 13
    assert lines["runs", 1, "scores", "f"] == 16


def test_mapping_and_directories(analysis: Callable[..., deltaw.Analysis], saved: Callable[..., Path]) -> None:
    with pytest.raises(ManifestError, match="no runs"):
        deltaw.compare({})
    with pytest.raises(ManifestError, match="is neither an Analysis"):
        deltaw.compare({"a": 3})  # type: ignore[dict-item]
    a = saved("a")
    with pytest.raises(ManifestError, match="given twice"):
        deltaw.compare([a, a])
    with pytest.raises(ManifestError, match="cannot be compared"):
        deltaw.compare(3)  # type: ignore[arg-type]
    seeds = [saved(f"full-s{i}", seed=i) for i in range(2)]
    c = deltaw.compare([*seeds, a])
    assert c.groups == ["full", "a"]
    assert list(c.runs()["seed"])[:2] == [0, 1]


def test_one_run_has_nothing_to_contrast_but_a_table(analysis: Callable[..., deltaw.Analysis]) -> None:
    c = deltaw.compare({"only": analysis()})
    assert len(c.runs()) == 1
    assert len(c.contrasts()) == 0
    assert "single run" in c.warnings[0]


def test_runs_of_another_base(analysis: Callable[..., deltaw.Analysis], saved: Callable[..., Path]) -> None:
    other = analysis(base="other")
    rows = [dict(r) | {"base_fro_norm": r["base_fro_norm"] * 1.01} for r in other.rows]
    with pytest.raises(
        ManifestError, match=r"run 'b' has another base \(other\) than run 'a' \(base\): model\.layers\.0"
    ):
        deltaw.compare({"a": analysis(), "b": deltaw.Analysis(rows, base=other.base)})
    shape = [dict(r) | {"rows": 8} for r in other.rows]
    with pytest.raises(ManifestError, match="is 8 × 256"):
        deltaw.compare({"a": analysis(), "b": deltaw.Analysis(shape)})
    unknown = [{k: v for k, v in r.items() if k != "base_fro_norm"} for r in other.rows]
    c = deltaw.compare({"a": analysis(), "b": deltaw.Analysis(unknown)})
    assert any("without its base" in w for w in c.warnings)


OLD = '[[runs]]\nname = "a"\n[runs.scores]\nlearning = 0.2\nforgetting = 0.6\n'


def test_the_old_name_of_retention(manifest: Callable[[str], Path]) -> None:
    found = read_manifest(manifest(OLD))
    assert found.runs[0].scores["retention"].value == 0.6
    assert "forgetting" not in found.runs[0].scores
    assert any("'forgetting' were read as 'retention'" in w for w in found.warnings)
    with pytest.raises(ManifestError, match=r"runs.toml:5: run 'a': scores has retention and its old name"):
        read_manifest(manifest(OLD + "retention = 0.7\n"))


def test_the_old_name_of_retention_in_a_file_of_scores(manifest: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"results": {"hellaswag": {"acc,none": 0.7, "acc_stderr,none": 0.01}}}')
    text = '[[runs]]\nname = "a"\n[runs.lm_eval]\nfile = "r.json"\nforgetting = ["hellaswag:acc"]\n'
    assert read_manifest(manifest(text)).runs[0].scores["retention"].value == 0.7
    with pytest.raises(ManifestError, match="old name forgetting; keep retention"):
        read_manifest(manifest(text + 'retention = ["hellaswag:acc"]\n'))
