"""The documentation says what the code is: generated parts are current, links lead somewhere, commands exist."""

import importlib.util
import re
from pathlib import Path

import pytest

from deltaw.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert spec is not None
assert spec.loader is not None
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


@pytest.mark.parametrize("path", generate.documents(), ids=lambda p: p.name)
def test_generated_parts_are_current(path: Path):
    text = path.read_text(encoding="utf-8")
    assert generate.generated(text) == text, "run `python docs/generate.py`"


def test_the_readme_holds_both_tables():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for word in ("`rank_90_ratio`", "`intruders`", "| LORA |", "`decay_estimate`"):
        assert word in text


@pytest.mark.parametrize("path", generate.documents(), ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_commands_in_the_documents_exist():
    for path in generate.documents():
        for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for name in re.findall(r"^deltaw ([a-z]+)", block, re.MULTILINE):
                assert name in COMMANDS, f"{path.name}: deltaw {name}"


def test_the_architecture_names_every_module():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "deltaw").iterdir():
        if path.name.startswith(("_", ".")) or path.name == "py.typed":
            continue
        name = f"deltaw/{path.name}/" if path.is_dir() else path.name
        assert name in text, f"README's architecture section does not name {name}"
