"""The command that repeats an analysis: it is read by the command line, and says what was said."""

import shlex
from pathlib import Path

import pytest

import deltaw
from deltaw.activations import Activations
from deltaw.activations.matching import MatrixInputs
from deltaw.cli.analyze import command as analyze
from deltaw.measurement.command import command
from deltaw.measurement.options import Options
from deltaw.pairs.selection import Selection
from deltaw.results.sources import FileStamp, Source

PARTS = Selection(include=(r"a\d", "b"), split=True)
STAMP = (FileStamp("model.safetensors", 1, 2),)
SIDE = Source("a b/model", files=STAMP)
HUB = Source("org/name@main", files=STAMP, revision="abc123")


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (Options(), []),
        (Options(mode="fast", tolerance=0.1), ["--mode", "fast", "--tolerance", "0.1"]),
        (
            Options(selection=Selection(include=(r"a\d", "b"), split=True)),
            ["--include", r"a\d", "--include", "b", "--split-fused"],
        ),
        (Options(alignment=True, top_k=3, cache=False), ["--alignment", "--top-k", "3", "--no-cache"]),
        (
            Options(data=tuple(MatrixInputs(Activations(Path(f), {})) for f in ("t.safetensors", "s.safetensors"))),
            ["--activations", "t.safetensors", "--activations", "s.safetensors"],
        ),
    ],
)
def test_it_is_what_the_command_line_reads(options: Options, flags: list[str]):
    words = shlex.split(command(SIDE, HUB, options))
    assert words == ["deltaw", "analyze", "a b/model", "org/name@abc123", *flags]
    parsed = analyze.make_context("analyze", words[2:]).params
    for name in ("mode", "include", "split_fused", "alignment", "activations", "top_k", "cache", "tolerance"):
        said = options.to_dict()[name]
        read = tuple(map(str, parsed[name])) if name == "activations" else parsed[name]
        assert read == (tuple(said) if isinstance(said, list) else said)


def test_an_adapter_alone_and_what_is_in_memory():
    assert command(None, SIDE, Options()) == "deltaw analyze --no-base 'a b/model'"
    assert command(Source("<dict>"), SIDE, Options()) == ""


def test_an_analysis_says_when_and_how(pico_pair: tuple[Path, Path], tmp_path: Path):
    result = deltaw.analyze(*pico_pair, exclude="lm_head")
    assert result.command == shlex.join(["deltaw", "analyze", *map(str, pico_pair), "--exclude", "lm_head"])
    assert result.date[:2] == "20"
    assert result.date.endswith("+00:00")
    assert deltaw.load(result.save(tmp_path / "out")).command == result.command
