"""Domains that need no download: English technical prose, Python code, word problems, or the user's own files.

A corpus knows its *origins* (a file, a template of problems) without reading them, and reads one origin to
documents. Origins are what a held-out split is made of (`deltaw.study.splits`): a document never has a sibling on
the other side. Prose is the docstrings of the installed packages; code is the same packages' source without
docstrings and comments; problems come from reasoning-gym (GSM-Symbolic templates of Mirzadeh et al. 2024, and
arithmetic families), with worked solutions and exact answers.
"""

from __future__ import annotations

import ast
import inspect
import json
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, Protocol

from deltaw.errors import OptionError
from deltaw.study.extra import require

PACKAGES = ("stdlib", "torch", "numpy", "scipy", "pandas", "matplotlib", "transformers", "sympy")
FAMILIES = ("chain_sum", "coin_flip", "gcd", "lcm", "leg_counting", "products", "simple_equations")
SHORTEST = 80  # characters; a shorter docstring says little more than the name above it
LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib"})
Defined = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Text:
    """One text: `text` is learned; `prompt` is given and not learned; `answer` is what an exact match compares."""

    text: str
    prompt: str = ""
    answer: str = ""


class Corpus(Protocol):
    """A source of documents."""

    def origins(self) -> Sequence[str]:
        """The files or templates, by a name that is the same on every machine with the same packages."""

    def read(self, origin: str) -> list[Text]:
        """The documents of one origin."""


class PackageCorpus:
    """What the installed packages hold: `docstrings` (prose) or `code` (source without docstrings and comments)."""

    def __init__(self, what: str, packages: Sequence[str] = PACKAGES) -> None:
        self.parse = {"docstrings": docstrings, "code": definitions}[what]
        self.files: Mapping[str, Path] = _python_files(tuple(packages))

    def origins(self) -> Sequence[str]:
        """Source files, as `package/path.py`."""
        return list(self.files)

    def read(self, origin: str) -> list[Text]:
        """The documents of one source file; none if this Python cannot parse it."""
        source = self.files[origin].read_text(encoding="utf-8", errors="replace")
        try:
            with warnings.catch_warnings():  # other people's invalid escapes are not our news
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return []
        return [Text(text) for text in self.parse(tree)]


@cache
def _python_files(packages: tuple[str, ...]) -> dict[str, Path]:
    found = {}
    for package in packages:
        root = _root(package)
        for path in sorted(root.rglob("*.py")) if root else ():
            inside = path.relative_to(root) if root else path
            if not LEFT_OUT & set(inside.parts):
                found[f"{package}/{inside.as_posix()}"] = path
    return found


def _root(package: str) -> Path | None:
    if package == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def docstrings(tree: ast.Module) -> list[str]:
    """The docstrings of a module, its classes and functions, in the order of the file."""
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, Defined))
    return [text for text in found if text and len(text) >= SHORTEST]


def definitions(tree: ast.Module) -> list[str]:
    """The classes and functions of a module as code without docstrings; unparsing leaves comments behind."""
    for node in ast.walk(tree):
        if isinstance(node, Defined) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    kept = (node for node in tree.body if isinstance(node, Defined))
    return [text for node in kept if len(text := ast.unparse(node)) >= SHORTEST]


class ProblemCorpus:
    """Word problems with worked solutions and exact answers; a template is an origin.

    Args:
        per_template: Problems drawn from each template.
        seed: Of the numbers and names in them.
    """

    def __init__(self, per_template: int, seed: int = 0) -> None:
        require("reasoning_gym")
        from reasoning_gym.arithmetic.gsm_symbolic import gsm_symbolic

        self.per_template, self.seed = per_template, seed
        dataset = gsm_symbolic.GSMSymbolicDataset(gsm_symbolic.GSMSymbolicDatasetConfig(seed=seed, size=1))
        self.templates = {f"gsm_symbolic/{i}": dataset.generators[i] for i in gsm_symbolic.tasks_ok}

    def origins(self) -> Sequence[str]:
        """Templates: `gsm_symbolic/17`, or the name of an arithmetic family."""
        return [*self.templates, *FAMILIES]

    def read(self, origin: str) -> list[Text]:
        """Different problems of one template."""
        drawn = self._draw_symbolic(origin) if origin in self.templates else self._draw_family(origin)
        return list({problem.prompt: problem for problem in drawn}.values())

    def _draw_symbolic(self, origin: str) -> Iterator[Text]:
        for i in range(self.per_template):
            entry = self.templates[origin](Random(f"{origin} {self.seed} {i}"), 1.0)
            yield problem(entry["question"], str(entry["answer"]), entry["metadata"]["answer_cot"])

    def _draw_family(self, origin: str) -> Iterator[Text]:
        import reasoning_gym

        dataset = reasoning_gym.create_dataset(origin, seed=self.seed, size=self.per_template)
        for i in range(self.per_template):
            yield problem(dataset[i]["question"], str(dataset[i]["answer"]))


def problem(question: str, answer: str, worked: str = "") -> Text:
    """A problem in GSM8K's form: the solution, if any, then `#### answer`."""
    steps = worked.split("####")[0].strip()
    text = f"{steps}\n#### {answer}" if steps else f"#### {answer}"
    return Text(text, f"Question: {' '.join(question.split())}\nAnswer: ", answer)


class FileCorpus:
    """The user's own files: text (a blank line ends a document), or JSON lines.

    A line of JSON is `{"text": …}` or `{"prompt": …, "completion": …}`. Each file is an origin; where there are
    fewer than `FILES` of them, each document is.
    """

    FILES = 10

    def __init__(self, paths: Sequence[str | Path]) -> None:
        files = [Path(p) for p in paths]
        read = {path.as_posix(): _documents(path) for path in files}
        if len(read) >= self.FILES:
            self.documents = read
        else:
            self.documents = {f"{name}#{i}": [d] for name, ds in read.items() for i, d in enumerate(ds)}

    def origins(self) -> Sequence[str]:
        """Files, or documents if the files are few."""
        return list(self.documents)

    def read(self, origin: str) -> list[Text]:
        """The documents of one origin."""
        return self.documents[origin]


def _documents(path: Path) -> list[Text]:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise OptionError(f"{path}: cannot be read as UTF-8 text ({e}); give text files or JSON lines") from e
    if path.suffix == ".jsonl":
        return [_line(path, i, line) for i, line in enumerate(content.splitlines(), 1) if line.strip()]
    return [Text(text) for part in content.split("\n\n") if (text := inspect.cleandoc(part).strip())]


def _line(path: Path, number: int, line: str) -> Text:
    try:
        entry: Any = json.loads(line)
        if "text" in entry:
            return Text(str(entry["text"]))
        return Text(str(entry["completion"]), str(entry["prompt"]), str(entry.get("answer", "")))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise OptionError(
            f"{path}, line {number}: expected a JSON object with `text`, or with `prompt` and `completion` ({e})"
        ) from e
