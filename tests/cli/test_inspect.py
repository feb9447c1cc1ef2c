"""The table of `deltaw inspect`: alike tensors in one line, aligned, within the terminal, for thousands too."""

import json
from pathlib import Path
from typing import Any

import pytest
import rich.cells
import torch
from click.testing import CliRunner

from deltaw.checkpoints.memory import MemoryHandle
from deltaw.cli import main
from deltaw.cli.inspect import HEADS, table
from deltaw.measurement import unit_costs
from deltaw.reports.grouping import grouped
from deltaw.types import Pair
from tests.conftest import changed, save_single


def pair(name: str, **other: Any) -> dict[str, Any]:
    about = {"part": "", "rows": 6, "cols": 5, "base_dtype": "float32", "ft_dtype": "bfloat16", "kind": "mlp"}
    return {"name": name, "route": "dense", **about, **other}


def titles(*pairs: dict[str, Any]) -> list[str]:
    return [g.title for g in grouped(pairs)]


def test_alike_tensors_share_a_line():
    found = titles(*(pair(f"model.layers.{i}.{m}.weight") for i in range(12) for m in ("q_proj", "k_proj")))
    assert found == ["model.layers.{0..11}.q_proj.weight ×12", "model.layers.{0..11}.k_proj.weight ×12"]


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ([3], "l.3.w"),
        ([0, 1], "l.{0..1}.w ×2"),
        ([0, 2, 5], "l.{0, 2, 5}.w ×3"),
        ([*range(5), 9], "l.{0..9, 6 of them}.w ×6"),
    ],
)
def test_ranges_of_numbers(numbers: list[int], shown: str):
    assert titles(*(pair(f"l.{n}.w") for n in numbers)) == [shown]


def test_experts_and_parts_are_ranges_too():
    experts = [pair(f"layers.{i}.experts.{e}.up.weight") for i in range(3) for e in range(4)]
    assert titles(*experts) == ["layers.{0..2}.experts.{0..3}.up.weight ×12"]
    parts = [pair(f"layers.{i}.mlp.up", part=f"expert {e} gate") for i in range(2) for e in range(4)]
    assert titles(*parts) == ["layers.{0..1}.mlp.up [expert {0..3} gate] ×8"]


def test_what_differs_is_not_put_together():
    assert len(titles(pair("l.0.w"), pair("l.1.w", rows=7))) == 2
    assert len(titles(pair("l.0.w"), pair("l.1.w", ft_dtype="float32"))) == 2
    assert titles(pair("w1"), pair("w2")) == ["w1", "w2"]  # a number inside a word is a name
    assert titles(pair("{0}.1"), pair("{0}.2")) == ["{0}.{1..2} ×2"]


def rows(*names: str, stored: tuple[str, ...] = ("float32", "bfloat16")) -> list[tuple[str, ...]]:
    return [(n, "6 × 5", stored[i % len(stored)], "mlp", "dense") for i, n in enumerate(names)]


def test_the_lines_are_aligned():
    lines = table(rows("a", "long.name [q]", "层"), 120)
    assert lines[1].split("  ")[0] == HEADS[0]
    assert len({len(line.split("6 × 5")[0].encode("gb2312")) for line in lines[3:-1]}) == 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_line_fits_the_terminal(width: int):
    lines = table(rows("model.layers.{0..31}.self_attn.q_proj.weight ×32", "x" * 300), width)
    assert max(map(len, lines)) <= width
    assert any("…" in line for line in lines)


def test_the_kind_goes_before_a_name_is_cut():
    name = "n" * 50
    assert any(name in line for line in table(rows(name), 70))
    assert "kind" not in table(rows(name), 70)[1]
    assert "kind" in table(rows(name), 120)[1]


def test_thousands_are_measured_once_for_a_column_and_once_for_a_line(monkeypatch: pytest.MonkeyPatch):
    """A table that lays itself out takes seconds for thousands."""
    pairs = [pair(f"model.layers.{i}.mlp.up_proj.weight") for i in range(5000)]
    assert len(grouped(pairs)) == 1
    measured: list[str] = []
    real = rich.cells.cell_len
    monkeypatch.setattr(rich.cells, "cell_len", lambda text: (measured.append(text), real(text))[1])
    assert len(table(rows(*(p["name"] for p in pairs)), 160)) == 5004
    assert len(measured) <= 2 * len(HEADS) * 5001


def test_verbose_gives_each_its_own_line(pico_pair: tuple[Path, Path]):
    short = CliRunner().invoke(main, ["inspect", *map(str, pico_pair)]).stdout
    assert "model.layers.{0..1}.mlp.down_proj.weight ×2" in short
    each = CliRunner().invoke(main, ["inspect", "-v", *map(str, pico_pair)]).stdout
    assert "model.layers.1.mlp.down_proj.weight" in each
    assert "×2" not in each


def test_what_it_costs_here_is_expected_from_what_was_timed(
    tmp_path: Path, pico: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base, ft = save_single(pico, tmp_path / "base"), save_single(changed(pico), tmp_path / "ft")
    done = CliRunner().invoke(main, ["inspect", str(base), str(ft), "--json", "--mode", "fast", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    expected = json.loads(done.stdout)["expected"]
    stored = sum(w.numel() * w.element_size() for w in pico.values())
    assert (expected["mode"], expected["device"], expected["bytes"]) == ("fast", "cpu", 2 * stored)
    assert 0 < expected["seconds"] < 60
    assert 0 < expected["memory"] < 100e6

    def refuse(*args: object) -> None:
        raise AssertionError("timed again")

    monkeypatch.setattr(unit_costs, "measured", refuse)
    again = CliRunner().invoke(main, ["inspect", str(base), str(ft), "--json", "--mode", "fast", "--device", "cpu"])
    assert json.loads(again.stdout)["expected"]["seconds"] == expected["seconds"]
    shown = CliRunner().invoke(main, ["inspect", str(base), str(ft), "--mode", "fast", "--device", "cpu"])
    assert "expected (fast, cpu, " in shown.stdout
    (kept,) = (tmp_path / "cache" / "deltaw" / "unit-costs").iterdir()
    for damaged in ('{"device": "cpu", "devices": 1, "squares": {"x": 1}}', "[]", '{"device": "cpu"}'):
        kept.write_text(damaged)
        assert unit_costs._kept(kept) is None


def test_costs_follow_size_rank_and_route():
    costs = unit_costs.UnitCosts(
        "cpu", 1, {32: 0.003, 1024: 0.1, 2048: 0.8}, {32: 0.0001, 1024: 0.02}, {16: 6e-3, 64: 2e-2}
    )

    def seconds(m: int, n: int) -> float:
        return costs.seconds(Pair("w", None, MemoryHandle("w", torch.empty(m, n, device="meta"))))

    assert seconds(2048, 2048) == pytest.approx(0.8)
    assert seconds(4096, 4096) == pytest.approx(6.4)  # by the last power: k³
    assert seconds(1024, 3072) == seconds(3072, 1024) == pytest.approx(0.1 + 2 * 0.02)
    assert seconds(4096, 2048) == pytest.approx(0.8 * 1.2)
    assert seconds(4, 4) == 0.003
    assert costs.seconds(Pair("w", None, MemoryHandle("w", torch.empty(1000, device="meta")))) == 0.003
    small, large = (costs.seconds(Pair("w", None, unit_costs._Thin(rank))) for rank in (16, 64))
    assert (small, large) == (pytest.approx(6e-3), pytest.approx(2e-2))
