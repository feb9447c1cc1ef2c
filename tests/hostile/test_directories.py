"""Where results go: nothing is written or removed outside of it, and a run that was killed finds its own again."""

import os
import resource
from pathlib import Path

import pytest
import torch

import deltaw
from deltaw.comparison import tables
from deltaw.measurement.journal import NAME
from tests.fuzz.cases import put
from tests.hostile.conftest import both, drawn, run, tensors

pytestmark = pytest.mark.usefixtures("folder")
ANALYZE = "analyze a.safetensors b.safetensors --out o -q"


@pytest.fixture
def outside() -> Path:
    both(lambda name, i: tensors(f"{name}.safetensors", w=drawn(8, 6, seed=i)))
    put(Path("runs.toml"), b'base = "a.safetensors"\n[[runs]]\nname = "r"\ncheckpoint = "b.safetensors"\n')
    for name in ("x.svg", "layers.csv", "journal", ".x.svg.1.2.tmp"):
        put(Path("outside") / name, b"keep")
    Path("o").mkdir()
    return Path("outside").absolute()


def unharmed(outside: Path) -> bool:
    return {p.name: p.read_bytes() for p in outside.iterdir()} == dict.fromkeys(
        ("x.svg", "layers.csv", "journal", ".x.svg.1.2.tmp"), b"keep"
    )


def test_a_link_to_a_folder_of_figures_is_not_followed(outside: Path):
    Path("o/figures").symlink_to(outside)
    code, _, said = run(ANALYZE)
    assert (code, "links inside of results are not followed" in said) == (1, True)
    assert Path("o/layers.csv").exists()  # the numbers are there
    assert unharmed(outside)


@pytest.mark.parametrize("link", ["o/layers.csv", f"o/{NAME}", "o/report.html"])
def test_a_link_is_replaced_and_its_target_stays(outside: Path, link: str):
    Path(link).symlink_to(outside / "layers.csv")
    for _ in range(2):
        assert run(f"{ANALYZE} --no-report --force")[0] == 0
    assert unharmed(outside)


@pytest.mark.parametrize("link", ["o/analyses", "o/figures"])
def test_a_comparison_follows_no_link(outside: Path, link: str):
    Path(link).symlink_to(outside)
    code, _, said = run("compare runs.toml --out o -q")
    assert (code, "links inside of results are not followed" in said) == (1, True)
    assert unharmed(outside)


@pytest.mark.parametrize("written", range(4))
def test_a_comparison_that_was_killed_goes_on_in_its_directory(
    outside: Path, monkeypatch: pytest.MonkeyPatch, written: int
):
    write, count = tables._write_csv, []

    def killed(frame: object, path: Path) -> None:
        if len(count) == written:
            raise KeyboardInterrupt
        count.append(path)
        write(frame, path)

    comparison = deltaw.compare("runs.toml", out="o")
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_write_csv", killed)
        with pytest.raises(KeyboardInterrupt):
            comparison.save("o", report=False)
    assert run("compare runs.toml --out o -q --no-report")[::2] == (0, "")
    assert unharmed(outside)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("analyze a.safetensors b.safetensors --out", 2),
        ("report", 2),
        ("compare", 2),
        ("inspect a.safetensors", 1),
        ("study --out", 2),
    ],
)
def test_an_empty_path_is_not_the_working_directory(outside: Path, command: str, code: int):
    from click.testing import CliRunner

    from deltaw.cli import main

    done = CliRunner().invoke(main, [*command.split(), ""])
    assert done.exit_code == code
    assert "empty" in done.stderr or "is not a path" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "edit a.pt b.pt --scale .5",
        "edit a.safetensors b.safetensors --scale .5",
        "extract a.pt b.pt --rank 2",
        "compare runs.toml --no-report",
        "survey a.safetensors b.safetensors --no-report",
        "analyze a.safetensors b.safetensors --no-report --alignment",
    ],
)
def test_a_full_disk_is_told_and_what_was_there_stays(outside: Path, command: str):
    both(lambda name, i: torch.save({"layer.weight": drawn(8, 6, seed=i)}, f"{name}.pt"))
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, allowed[1]))  # every write fails, as on a full disk
    try:
        code, _, said = run(f"{command} --out o -q")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert (code, "written" in said) == (1, True), said
    assert not list(Path("o").rglob("*.tmp"))
    assert run(f"{command} --out o -q")[0] == 0
    assert unharmed(outside)


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a" * 300, "a/" * 3000, "loop", "a\x00b", "\udcff"])
def test_paths_that_lead_nowhere(outside: Path, path: str):
    Path("loop").symlink_to("loop")
    with pytest.raises(deltaw.DeltaWError) as caught:
        deltaw.inspect("a.safetensors", path)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_utf8_is_read_and_told(outside: Path):
    try:
        os.mkdir(b"ft\xff")  # noqa: PTH102  (a name of bytes)
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    for name in (b"model.safetensors", b"beside\xfe.bin"):
        with open(b"ft\xff/" + name, "wb") as file, open("b.safetensors", "rb") as given:  # noqa: PTH123
            file.write(given.read())
    found = deltaw.analyze("a.safetensors", os.fsdecode(b"ft\xff"), out="o", jobs=1)
    assert found.ft.path == "ft\\udcff"
    assert deltaw.load("o").ft == found.ft
    found.report("o/report.html")


def test_no_permission_is_no_damage(outside: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    torch.save({"w": torch.ones(2, 2)}, "a.pt")
    monkeypatch.setattr(Path, "open", refuse)
    for name in ("a.safetensors", "a.pt"):
        code, _, said = run(f"inspect {name} {name}")
        assert (code, "no permission" in said or "Permission denied" in said) == (1, True), said
        assert "download" not in said
