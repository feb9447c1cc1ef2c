"""Imports point one way, down the table of README's architecture section, and no two files import each other."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"deltaw": "deltaw", "cli": "deltaw.cli", "reports": "deltaw.reports"}
HEAVY = {"reports": {"torch"}, "metrics": {"torch", "pandas", "matplotlib", "safetensors"}}
PUBLIC = ("deltaw", "deltaw.__main__")  # the public API and its command, above everything
# Doors up to reports: `.report`, `.plot`, and what a terminal and a notebook show of a result.
DOORS = {
    "deltaw.results.analysis",
    "deltaw.comparison.comparison",
    "deltaw.surveys.result",
    "deltaw.edits.extracted",
    "deltaw.measurement.inspection",
    "deltaw.monitoring.monitor",
    "deltaw.verification",
}


def table() -> list[list[str]]:
    """The layers of the README's table, from the top; each row may name several."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Architecture")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \|", text, flags=re.MULTILINE)
    return [[re.sub(r"^deltaw/|/$|\.py$", "", path) for path in re.findall(r"`([^`]+)`", row)] for row in rows]


LAYERS = table()
RANK = {name: i for i, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    """Every module by its name, as it is imported."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return found


MODULES = modules()


def imported(path: Path) -> set[str]:
    """What a file imports when it runs, inside functions too; not what it imports for its types only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and isinstance(test.test, ast.Name) and test.test.id == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    out: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            out.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = (f"{node.module}.{a.name}" for a in node.names)
            out.update(name if name in MODULES else node.module or "" for name in names)
    return out


GRAPH = {name: imported(path) for name, path in MODULES.items()}


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_the_table_names_every_layer_once():
    named = [name for names in LAYERS for name in names]
    assert len(named) == len(set(named))
    assert {layer(module) for module in MODULES if module not in PUBLIC} <= set(named)
    places = [
        place for name in named for place in (ROOT / "deltaw" / name, ROOT / "deltaw" / f"{name}.py", ROOT / name)
    ]
    assert {place.stem for place in places if place.exists()} == set(named)


@pytest.mark.parametrize("module", [m for m in MODULES if m not in PUBLIC])
def test_imports_point_down(module):
    own = layer(module)
    for name in GRAPH[module]:
        assert name.split(".")[0] not in HEAVY.get(own, set()), f"{module} imports {name}"
        if name in MODULES and name != "deltaw":
            door = module in DOORS and layer(name) == "reports"
            assert door or RANK[layer(name)] >= RANK[own], f"{module} imports {name}, which stands above it"


def test_no_two_files_import_each_other():
    graph = {module: {name for name in names if name in MODULES} - {module} for module, names in GRAPH.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail(" → ".join(e.args[1]))


def test_a_cycle_and_an_import_upwards_are_found(tmp_path):
    """The checks see imports inside functions, and do not see those for types."""
    path = tmp_path / "a.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import deltaw.cli\n"
        "def f():\n    from deltaw.results import analysis\n    import deltaw.types\n"
    )
    assert imported(path) == {"typing", "deltaw.results.analysis", "deltaw.types"}
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
