"""Imports point one way: down the list of README's architecture section."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the top; a layer may import from itself and from what stands below it.
LAYERS = [
    ["cli"],
    ["study"],
    ["reports"],
    ["comparison"],
    ["verification"],
    ["measurement"],
    ["alignment"],
    ["spectra"],
    ["delta"],
    ["adapters"],
    ["pairs"],
    ["checkpoints"],
    ["results"],
    ["tensors"],
    ["metrics"],
    ["documents"],
    ["files", "types"],
    ["errors"],
]
RANK = {name: i for i, names in enumerate(LAYERS) for name in names}
HEAVY = {"reports": {"torch"}, "metrics": {"torch", "pandas", "matplotlib", "safetensors"}}
SOURCES = [p for folder in ("deltaw", "cli", "reports") for p in sorted((ROOT / folder).rglob("*.py"))]


def layer(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] in {"cli", "reports"} else parts[1]


def imported(path: Path) -> list[tuple[str, bool]]:
    """Modules that a file imports, and whether only for type checking."""
    out = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and isinstance(test.test, ast.Name) and test.test.id == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "deltaw":
                names = [f"deltaw.{a.name}" for a in node.names]
        out.extend((name, id(node) in typing_only) for name in names)
    return out


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path):
    own = layer(path)
    if own in {"__init__", "__main__", "py"}:
        return
    assert own in RANK, f"{own} has no place in LAYERS"
    for name, typing_only in imported(path):
        top = name.split(".")
        assert top[0] not in HEAVY.get(own, set()), f"{own} imports {name}"
        if top[0] == "deltaw" and len(top) > 1 and top[1] in RANK and not typing_only:
            # `.report`, `.plot` and what a terminal and a notebook show of a result are the doors up to reports.
            if own in {"results", "comparison", "measurement"} and top[1] == "reports":
                continue
            assert RANK[top[1]] >= RANK[own], f"{path.relative_to(ROOT)} imports {name}, which stands above it"
