"""The table of `deltaw inspect`: aligned, one line for each matrix, every cell measured no more than twice."""

from typing import Any

import pytest
import rich.cells

from deltaw.cli.inspect import table


def pair(name: str, **other: Any) -> dict[str, Any]:
    about = {"part": "", "rows": 6, "cols": 5, "base_dtype": "float32", "ft_dtype": "bfloat16", "kind": "mlp"}
    return {"name": name, "route": "dense", **about, **other}


def test_one_aligned_line_for_each():
    lines = table([pair("a"), pair("long.name", part="q"), pair("b\nc"), pair("层", route="vector"), pair("x" * 300)])
    body = lines[3:-1]
    assert [line.split("   ")[0].strip() for line in body] == ["a", "long.name [q]", "b c", "层", "x" * 300]
    assert len({line.index("float32") for line in body[:3]}) == 1
    assert body[0].split()[1:4] == ["6", "×", "5"]
    assert "×" not in body[3]


def test_every_cell_is_measured_twice_at_most(monkeypatch: pytest.MonkeyPatch):
    """For its column's width, and for its own padding; a table that lays itself out takes seconds for thousands."""
    measured: list[str] = []
    real = rich.cells.cell_len
    monkeypatch.setattr(rich.cells, "cell_len", lambda text: (measured.append(text), real(text))[1])
    assert len(table([pair(f"model.layers.{i}.mlp.up_proj.weight") for i in range(1000)])) == 1004
    assert len(measured) <= 2 * 6 * 1001
