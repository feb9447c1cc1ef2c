"""`deltaw activations`: a transformers model, text files, one file; and what cannot be used is one line."""

import re
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import deltaw
from deltaw.activations import open_activations
from deltaw.activations.text import blocks, text_files
from deltaw.cli import main
from deltaw.errors import ActivationsError
from deltaw.study.domains import Text
from deltaw.study.tokens import train_tokenizer

PROSE = "One thing flows: a pair becomes a difference, becomes a spectrum, becomes a row. " * 8
CODE = "def norm(x):\n    return sum(v * v for v in x) ** 0.5\n" * 12


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer([Text(PROSE), Text(CODE)], 280)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    made = transformers.LlamaForCausalLM(config)
    for name in ("base", "ft"):
        made.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for p in made.parameters():
                p.add_(0.01 * torch.randn_like(p))
    (folder / "prose.txt").write_text(PROSE)
    (folder / "code.txt").write_text(CODE)
    return folder


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_both_domains_end_to_end(model, tmp_path):
    for name in ("code", "prose"):
        done = run("activations", model / "base", "--text", model / f"{name}.txt", "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
        assert re.search(r"The inputs of 16 matrices on [\d,]+ tokens of 1 text file", done.stdout)
    out = tmp_path / "out"
    files = ("--activations", tmp_path / "code", "--activations", tmp_path / "prose")
    done = run("analyze", model / "base", model / "ft", *files, "--out", out, "--no-report")
    assert done.exit_code == 0, done.output
    result = deltaw.load(out)
    layers = result.to_pandas()
    matrices = layers[layers["route"] == "dense"]
    assert len(matrices) == 16
    assert (matrices["selectivity"] > 0).all()
    assert list(result.options["activations"]) == [str(tmp_path / "code"), str(tmp_path / "prose")]
    assert "--activations" in result.command
    again = deltaw.analyze(model / "base", model / "ft", activations=(tmp_path / "code", tmp_path / "prose"))
    assert again.to_pandas()["selectivity"].equals(layers["selectivity"])


def test_what_is_read_of_the_text(model, tmp_path):
    texts = (model / "prose.txt", model / "code.txt")
    out = tmp_path / "a"
    done = run("activations", model / "base", "--text", *texts, "--tokens", 100, "--length", 8, "--out", out)
    assert done.exit_code == 0, done.output
    found = open_activations(out)
    assert found.inputs.startswith("100 tokens of ")
    assert found.inputs.endswith("not all of them")
    assert found.matrices["model.embed_tokens.weight"].count == 100
    refused = run("activations", model / "base", "--text", texts[0], "--out", out)
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert run("activations", model / "base", "--text", texts[0], "--out", out, "--force", "-q").stdout == ""


class Words:
    """A tokenizer of one token a word."""

    eos_token_id = 0

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [len(w) for w in text.split()]}


def test_texts_end_with_their_token_and_are_cut_to_blocks(tmp_path):
    (tmp_path / "a.txt").write_text("a bb ccc")
    (tmp_path / "b.txt").write_text("dddd")
    found = blocks(Words(), text_files([tmp_path]), 4, 100)
    assert found.blocks == [[1, 2, 3, 0], [4, 0]]
    assert (found.tokens, found.files, found.complete) == (6, 2, True)
    assert [b["input_ids"].tolist() for b in found.batches(8)] == [[[1, 2, 3, 0]], [[4, 0]]]
    cut = blocks(Words(), text_files([tmp_path]), 4, 3)
    assert (cut.tokens, cut.files, cut.complete) == (3, 1, False)


def test_files_folders_and_patterns(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("d/1.txt", "d/2.md", "x.txt"):
        (tmp_path / name).write_text("text")
    names = [
        p.relative_to(tmp_path).as_posix()
        for p in text_files([tmp_path / "d", tmp_path / "*.txt", tmp_path / "d/1.txt"])
    ]
    assert names == ["d/1.txt", "d/2.md", "x.txt"]
    with pytest.raises(ActivationsError, match="no such file"):
        text_files([tmp_path / "*.rst"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("MODEL/base", "--text", "MODEL/none.txt"), 1, "none.txt: no such file"),
        (("MODEL/none", "--text", "MODEL/code.txt"), 1, "none: "),
        (("MODEL/code.txt", "--text", "MODEL/code.txt"), 1, "is a file; expected the directory"),
        (("MODEL", "--text", "MODEL/code.txt"), 1, "has no config.json"),
        (("MODEL/base",), 2, "Missing option '--text'"),
        (("MODEL/base", "--text", "MODEL/code.txt", "--tokens", "0"), 2, "--tokens"),
    ],
)
def test_bad_input_is_one_line(model, tmp_path, arguments, code, message):
    done = run("activations", *(a.replace("MODEL", str(model)) for a in arguments), "--out", tmp_path / "a")
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_transformers_it_says_what_is_missing(model, tmp_path, monkeypatch):
    from importlib.machinery import PathFinder

    monkeypatch.setattr(PathFinder, "find_spec", without(PathFinder.find_spec))
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    done = run("activations", model / "base", "--text", model / "code.txt", "--out", tmp_path / "a")
    assert done.exit_code == 1
    assert "needs transformers, which is not installed; run: pip install" in done.stderr


def without(find):
    return lambda name, *rest, **more: None if name.partition(".")[0] == "transformers" else find(name, *rest, **more)
