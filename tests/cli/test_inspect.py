"""The table of `deltaw inspect`: aligned, one line for each matrix, quick for thousands."""

import time
from typing import Any

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


def test_thousands_take_no_second():
    pairs = [pair(f"model.layers.{i}.mlp.up_proj.weight") for i in range(5000)]
    started = time.process_time()
    assert len(table(pairs)) == 5004
    assert time.process_time() - started < 1
