"""Which adapters a survey looks at: directories, patterns, files that list them, Hub ids; and a short name for each."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltaw.adapters import is_adapter
from deltaw.checkpoints import hub
from deltaw.documents import read_text
from deltaw.errors import CheckpointError, OptionError
from deltaw.files import expanded
from deltaw.results.sources import writable
from deltaw.tensors.names import natural

LISTS = (".txt", ".list", ".lst")
MOST_LISTED = 1_000_000  # lines of a list that are read
HUB = "hub:"  # begins a filter of the Hub
FILTERS = ("filter", "author", "search", "limit")
MOST_FOUND = 10_000  # models of a filter without a limit
MODEL = re.compile(r"(config\.json|model_index\.json|.*\.index\.json|(model|pytorch_model|consolidated).*\.\w+)$")
FILES = (".safetensors", ".gguf")
DEEPEST = 4  # folders in folders that are looked into
# Last parts of a path that say nothing of what lies there: the one above says more.
VAGUE = re.compile(
    r"(adapters?|checkpoints?|models?|weights|final\w*|best\w*|last|latest|main|outputs?|results|default|"
    r"adapter_model|pytorch_lora_weights|[0-9a-f]{40}|(checkpoint|step|epoch|global_step)[-_]?\d+)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Member:
    """An adapter of a survey: its name in all tables, unique and short, and the path or Hub id that it is opened by."""

    name: str
    source: str


def members(given: Sequence[str | Path]) -> tuple[list[Member], tuple[str, ...]]:
    """What was given, one by one, with names; and notes on what was left out.

    Args:
        given: Paths of adapters or of folders of them, patterns (`runs/*/adapter`), `@FILE` or `FILE.txt` with one of
            these on each line, Hub ids, filters of the Hub (`hub: filter=base_model:adapter:org/name limit=500`).

    Raises:
        CheckpointError: A list cannot be read, or a pattern or filter matches nothing.
        OptionError: Nothing was given.
    """
    sources = [one for item in given for one in _expand(str(item), Path())]
    if not sources:
        raise OptionError("no adapter was given; expected adapters, a folder of them, or @FILE with one on each line")
    once: dict[str, str] = {}
    for source in sources:
        path = expanded(source)
        once.setdefault(str(path.resolve()) if path.exists() else source, source)
    repeated = len(sources) - len(once)
    notes = (f"{repeated} given more than once, looked at once",) if repeated else ()
    kept = list(once.values())
    return [Member(n, s) for n, s in zip(short_names(kept), kept, strict=True)], notes


def _expand(item: str, folder: Path) -> Iterable[str]:
    """One item of a command line or of a list that lies in `folder`.

    Raises:
        CheckpointError: It is a list that cannot be read, or a pattern or filter that matches nothing.
        OptionError: It is empty.
    """
    if item.startswith(HUB):
        return _on_the_hub(item)
    if not item.strip():
        raise OptionError("the path of an adapter is empty; give . for the working directory")
    if item.startswith("@"):
        return _listed(expanded(item[1:]))
    path = folder / expanded(item)
    try:
        there = path.exists()
    except OSError:  # a name that is too long: whoever opens it says so
        there = False
    if not there:
        if glob.has_magic(item):
            return _matching(path)
        return (item,)  # a Hub id, or missing, which whoever opens it says
    if path.is_file() and path.suffix in LISTS:
        return _listed(path)
    return _inside(path) if path.is_dir() else (str(path),)


def _matching(pattern: Path) -> list[str]:
    # not Path.glob, which takes no absolute pattern
    found = sorted(glob.glob(str(pattern), recursive=True), key=natural)  # noqa: PTH207
    if not found:
        raise CheckpointError(f"{pattern}: matches nothing; expected a pattern of adapters, such as runs/*/adapter")
    return [one for path in found for one in _expand(path, Path())]


def _on_the_hub(item: str) -> list[str]:
    """The ids that `hub: filter=TAG author=NAME search=TEXT limit=N` finds, each part optional, tags repeatable.

    Raises:
        CheckpointError: It is no such filter, the Hub cannot be asked, or it knows none or too many.
    """
    parts = [word.partition("=") for word in item.removeprefix(HUB).split()]
    given = {key: [value for k, _, value in parts if k == key] for key, _, _ in parts}
    limit = (given.get("limit") or [str(MOST_FOUND + 1)])[0]
    several = [key for key, values in given.items() if len(values) > 1 and key != "filter"]
    known = parts and not several and all(k in FILTERS and value for k, _, value in parts)
    if not known or not re.fullmatch(r"[1-9]\d{0,5}", limit):
        raise CheckpointError(
            f"{item}: not a filter of the Hub; expected {HUB} and some of filter=TAG, author=NAME, search=TEXT, "
            f"limit=NUMBER with spaces between, such as {HUB} filter=base_model:adapter:org/name limit=500"
        )
    author, search = (given.get(key, [""])[0] for key in ("author", "search"))
    try:
        found = hub.models(given.get("filter", []), author, search, int(limit))
    except CheckpointError as e:
        raise CheckpointError(f"{item}: {e}") from e
    if not found:
        raise CheckpointError(f"{item}: the Hub knows no model like this; look at the tags on a model's page")
    if "limit" not in given and len(found) > MOST_FOUND:
        raise CheckpointError(f"{item}: more than {MOST_FOUND:,} models; narrow the filter, or add limit=NUMBER")
    return sorted(found, key=natural)


def _listed(path: Path) -> list[str]:
    """The items of a file, one on each line; empty lines and those after # are left out.

    Raises:
        CheckpointError: It cannot be read, or lists another list.
    """
    try:
        lines = read_text(path).splitlines()
    except CheckpointError as e:
        raise CheckpointError(f"the list {e}; expected a path or Hub id on each line") from e
    if len(lines) > MOST_LISTED:
        raise CheckpointError(f"{path}: {len(lines):,} lines; expected a list of at most {MOST_LISTED:,} adapters")
    items = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    for item in items:
        if item.startswith("@") or Path(item).suffix in LISTS:
            raise CheckpointError(f"{path}: lists another list ({item}); expected a path or Hub id on each line")
    return [one for item in items for one in _expand(item, path.parent)]


def _inside(path: Path, depth: int = 0) -> list[str]:
    """A directory itself, or the adapters and models in it and its folders where it only holds them."""
    children = sorted(path.iterdir(), key=lambda p: natural(p.name))
    if is_adapter(path) or _holds_model(children):
        return [str(path)]
    found: list[str] = []
    for child in children:
        if child.is_dir() and not child.name.startswith(".") and depth < DEEPEST:
            found += _inside(child, depth + 1)
        elif child.suffix in FILES and child.is_file() and is_adapter(child):
            found.append(str(child))
    return found or ([str(path)] if not depth else [])


def _holds_model(files: Iterable[Path]) -> bool:
    return any(MODEL.match(file.name) for file in files)


def short_names(sources: Sequence[str]) -> list[str]:
    """The last part of each path or id that tells it from all others; the part above where it says nothing itself.

    >>> short_names(["runs/a/checkpoint-9", "runs/b/checkpoint-9", "org/name"])
    ['a/checkpoint-9', 'b/checkpoint-9', 'name']
    """
    parts = [_parts(s) for s in sources]
    depth = [2 if VAGUE.match(p[-1]) and len(p) > 1 else 1 for p in parts]
    while True:
        names = ["/".join(p[-d:]) for p, d in zip(parts, depth, strict=True)]
        groups: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            groups.setdefault(name, []).append(i)
        longer = [i for same in groups.values() if len(same) > 1 for i in same if depth[i] < len(parts[i])]
        if not longer:
            break
        for i in longer:
            depth[i] += 1
    for name, same in groups.items():
        for number, i in enumerate(same[1:], start=2):
            names[i] = f"{name} ({number})"
    return names


def _parts(source: str) -> list[str]:
    """The parts of a path or id; the Hub's cache by the id that it holds, a file without its suffix."""
    parts = [p for p in writable(source).replace(os.sep, "/").split("/") if p not in {"", "."}]
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").split("--")
    for suffix in (*FILES, ".bin", ".pt"):
        if parts and parts[-1].endswith(suffix):
            parts[-1] = parts[-1].removesuffix(suffix)
    return parts or [source]
