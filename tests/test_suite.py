"""What holds of the tests themselves."""

import ast
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.rglob("*.py"))
# `monotonic` is free: it bounds how long a test waits for something that has to come.
CLOCKS = {"time", "perf_counter", "perf_counter_ns", "process_time", "process_time_ns", "thread_time", "timeit"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(FILES[0].parents[1])))
def test_no_verdict_depends_on_a_clock(path: Path):
    """A busy machine is no failure: work is counted, and speed is measured in benchmarks/."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assert):
            read = {
                n.func.attr for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
            }
            assert not read & CLOCKS, f"{path.name}:{node.lineno} asserts something of a clock"
