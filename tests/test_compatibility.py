"""The table of docs/compatibility.md: each row names a test that is there."""

import ast
from pathlib import Path

import pytest

from tests.compatibility import CASES, pinned, table
from tests.pairs.families import FAMILIES

HERE = Path(__file__).parent


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.what)
def test_every_row_is_a_test(case):
    file, _, name = case.test.partition("::")
    tree = ast.parse((HERE / f"{file}.py").read_text(encoding="utf-8"))
    assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    assert case.becomes in {"read", "joined", "bridged", "chosen", "skipped", "noted", "refused"}


def test_every_family_and_version_is_named():
    text = table()
    assert all(f"| `{name}` | `{family.model}` |" in text for name, family in FAMILIES.items())
    assert set(pinned()) == {"torch", "transformers", "peft", "safetensors"}
