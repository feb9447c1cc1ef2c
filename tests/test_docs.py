"""The documentation says what the code is: generated parts are current, links lead somewhere, commands exist."""

import hashlib
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from click.testing import CliRunner

import deltaw
from deltaw.cli.program import COMMANDS, main
from tests.conftest import save_lora

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    """A file of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate, hooks = script("generate"), script("hooks")
DOCUMENTS = pytest.mark.parametrize("path", generate.documents(), ids=lambda p: str(p.relative_to(ROOT)))
PAGES = [p for p in generate.documents() if p.is_relative_to(ROOT / "docs") and p.name != "README.md"]


@DOCUMENTS
def test_generated_parts_are_current(path: Path):
    text = path.read_text(encoding="utf-8")
    assert generate.generated(text) == text, "run `python docs/generate.py`"
    assert set(re.findall(r"<!-- /(\w+) -->", text)) <= set(generate.PARTS)


def test_each_table_has_one_place():
    holders = {
        name: [p.name for p in generate.documents() if f"<!-- /{name} -->" in p.read_text()] for name in generate.PARTS
    }
    assert holders == {name: [f"{name}.md"] for name in generate.PARTS}


def test_the_readme_is_read_in_one_go():
    assert len(README.splitlines()) <= 150


@DOCUMENTS
def test_links_lead_somewhere(path: Path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_index_names_every_page(page: Path):
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    name = page.relative_to(ROOT / "docs").as_posix()
    assert f"]({name})" in index, f"docs/README.md is the list of pages: add `* [Title]({name})` to it"


@DOCUMENTS
def test_commands_in_the_documents_exist(path: Path):
    for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for name in re.findall(r"^deltaw ([a-z]+)", block, re.MULTILINE):
            assert name in COMMANDS, f"{path.name}: deltaw {name}"


def test_the_site_has_every_command_and_every_public_name():
    reference = ROOT / "docs" / "reference"
    commands = hooks.on_page_markdown((reference / "commands.md").read_text(encoding="utf-8"))
    assert re.findall(r"^## deltaw (\w+)$", commands, re.MULTILINE) == list(COMMANDS)
    assert commands.count("Usage: deltaw ") == len(COMMANDS)
    python = hooks.on_page_markdown((reference / "python.md").read_text(encoding="utf-8"))
    for name in set(deltaw.__all__) - {"metrics", "study"}:
        assert f"::: deltaw.{name}\n" in python


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_what_the_page_says(shell: str):
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert f"{shell}_source" in page
    done = CliRunner().invoke(main, prog_name="deltaw", env={"_DELTAW_COMPLETE": f"{shell}_source"})
    assert f"_DELTAW_COMPLETE={shell}_complete" in done.output


def test_every_column_is_documented(pico_pair: tuple[Path, Path], tmp_path: Path):
    documented = {
        name
        for page in ("results.md", "metrics.md")
        for cells in re.findall(r"^\| (`[^|]+`) \|", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", cells)
    }
    base, tuned = pico_pair
    for ft in (tuned, save_lora(tmp_path / "lora")):
        columns = deltaw.analyze(base, ft, alignment=True, cache=False).to_pandas().columns
        assert set(columns) - documented == set()


def test_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
    sections = re.findall(
        r"^## \[([\d.]+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sections[0] == (version.removesuffix(".dev0"), "Unreleased" if version.endswith(".dev0") else sections[0][1])
    assert all(re.fullmatch(r"\d{4}-\d{2}-\d{2}", date) for _, date in sections[1:])


def test_what_was_released_is_not_rewritten():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = hashlib.sha256(changelog[changelog.index("## [0.1.0]") :].encode()).hexdigest()
    assert released[:16] == "d2f781c7d847de66", "what is new belongs into the section at the top"


def test_the_citation_is_complete():
    """The keys that the Citation File Format 1.2.0 requires, and those that a reference needs."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "version", "license", "type"} <= set(citation)
    assert all(author.get("name") or author.get("family-names") for author in citation["authors"])


def test_the_architecture_names_every_module():
    for path in (ROOT / "deltaw").iterdir():
        if path.name.startswith(("_", ".")) or path.name == "py.typed":
            continue
        name = f"deltaw/{path.name}/" if path.is_dir() else path.name
        assert name in README, f"README's architecture section does not name {name}"


def test_the_recipes_name_what_is_there():
    """Each path in CONTRIBUTING.md exists, and each name in it is written in a file that its section names."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^## Add an? ", text, re.MULTILINE)) >= 9
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        words = re.findall(r"`([^`\n]+)`", section)
        paths = [ROOT / w for w in words if re.fullmatch(r"(deltaw|cli|reports|tests|docs|benchmarks)/[\w./-]*", w)]
        for path in paths:
            assert path.exists(), f"CONTRIBUTING.md: {path.relative_to(ROOT)} is not there"
        files = [f for p in paths for f in (p.rglob("*.py") if p.is_dir() else [p])]
        sources = "".join(f.read_text(encoding="utf-8") for f in files)
        for name in re.findall(r"^([A-Z][A-Za-z]*[a-z]\w*|[A-Z]{4,})$", "\n".join(words), re.MULTILINE):
            assert name in sources or not files, f"CONTRIBUTING.md: {name} stands in none of the files that are named"


def test_make_s_targets_are_those_that_the_documents_name():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in generate.documents():
        named = re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= targets, path.name
