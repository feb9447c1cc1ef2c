"""The base of a fine-tune that is given alone: what names it, and the first of what is named that can be opened.

What names a base may be wrong: a path on another machine, a model that was renamed, a copy. So each is tried in turn,
all that was tried is told, and the weights prove it: the verdict on a wrong base is `unrelated`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltaw.adapters import Adapter, open_base, open_whole
from deltaw.checkpoints import Checkpoint, QuantisedHandle, as_named, hub, locate, open_checkpoint
from deltaw.checkpoints.remote import fetch_whole, hub_address, hub_parts
from deltaw.documents import Document, parse_yaml_object, read_object, read_text
from deltaw.errors import CheckpointError
from deltaw.files import expanded

ADAPTER, CARD = "adapter_config.json", "README.md"
CONFIGS = ("config.json", "model_index.json")
LARGEST_CARD = 16 << 20  # bytes
ADDRESS = re.compile(r"^[A-Za-z][\w+.-]*://")
SHOWN = 160  # characters of a reason in a message


@dataclass(frozen=True)
class Hint:
    """What one place says of the base.

    Attributes:
        where: The place: `adapter_config.json`, `the Hub's baseModels`.
        parents: The bases that it names: Hub ids or paths. Several of a merge.
        silent: Why it names none.
    """

    where: str
    parents: tuple[str, ...] = ()
    silent: str = "names none"


def find_base(ft: Any, *, download: bool = False) -> Checkpoint:
    """The base that a fine-tune or adapter was made from, opened; its `found_by` says what named it.

    Args:
        ft: Path, Hub id, address, `nn.Module` or state dict.
        download: Fetch a base that does not lie here whole, before it is opened.

    Raises:
        CheckpointError: Nothing names a base that can be opened, or it is a merge of several.
    """
    label = as_named(ft) if isinstance(ft, (str, Path)) else f"<{type(ft).__name__}>"
    tried: list[str] = []
    for hint in _hints(ft):
        parents = tuple(dict.fromkeys(p for p in hint.parents if not _is_itself(p, ft)))
        if len(parents) > 1:
            raise CheckpointError(
                f"{label}: made from several models ({hint.where} names {', '.join(parents)}), so it has no one base; "
                f"give the one to compare with: deltaw analyze {parents[0]} {label}"
            )
        if not parents:
            tried.append(f"{hint.where} {'names itself' if hint.parents else hint.silent}")
            continue
        try:
            return _opened(parents[0], hint, tried, download)
        except CheckpointError as e:
            tried.append(f"{hint.where} names {parents[0]!r}, which is not opened ({_short(e)})")
    raise CheckpointError(f"{label}: no base was found: {'; '.join(tried)}; give both: deltaw analyze BASE {label}")


def _opened(parent: str, hint: Hint, tried: list[str], download: bool) -> Checkpoint:
    """A parent, opened as a base.

    Raises:
        CheckpointError: It is no full checkpoint that can be opened here.
    """
    if ADDRESS.match(parent):
        raise CheckpointError("addresses that a file names are not followed")
    if download and not expanded(parent).exists():
        fetch_whole(parent)
    found = open_base(parent)
    codes = {h.dtype for h in found.tensors.values() if isinstance(h, QuantisedHandle)}
    words = [f"named by {hint.where}"]
    if codes:
        words.append(f"stored as {', '.join(sorted(codes))} and taken as it is")
    return replace(found, found_by="; ".join([*words, *tried]))


def _is_itself(parent: str, ft: Any) -> bool:
    if not isinstance(ft, (str, Path)):
        return False
    address = hub_address(str(ft))
    if address and parent.lower() == hub_parts(address)[0].lower():
        return not expanded(ft).exists()
    here, there = expanded(ft), expanded(parent)
    try:
        return here.exists() and there.exists() and here.samefile(there)
    except (OSError, ValueError):  # a name that no path has
        return False


def _hints(ft: Any) -> Iterator[Hint]:
    """What names a base, in the order of how much it knows; each is asked only where those before it did not help."""
    if not isinstance(ft, (str, Path)):
        yield _of_memory(ft)
        return
    path, revision = locate(ft)
    folder = path if path.is_dir() else path.parent
    if (folder / ADAPTER).is_file():
        yield _of_adapter(folder / ADAPTER)
    yield _of_card(folder / CARD)
    if not expanded(ft).exists() and (address := hub_address(str(ft))):
        yield _of_hub(hub_parts(address)[0], revision)
    present = [name for name in CONFIGS if (folder / name).is_file()]
    for name in present:
        yield _of_config(folder / name)
    if not present:
        yield Hint(CONFIGS[0], silent="is not there")


def _of_memory(model: Any) -> Hint:
    opened = open_whole(model, open_checkpoint(model))
    if isinstance(opened, Adapter):
        return _named("peft_config", opened.base_name)
    return _named("the model's config (_name_or_path)", opened.config.values.get("_name_or_path"))


def _of_adapter(path: Path) -> Hint:
    config = read_object(path)
    named = config.values.get("base_model_name_or_path") or config.values.get("model")  # `model`: of MLX
    revision = config.values.get("revision")
    if isinstance(named, str) and isinstance(revision, str) and revision and not expanded(named).exists():
        named = f"{named}@{revision}"
    return _named(path.name, named)


def _of_card(path: Path) -> Hint:
    if not path.is_file():
        return Hint(path.name, silent="is not there")
    try:
        front = _front_matter(read_text(path, largest=LARGEST_CARD), path)
        return Hint(path.name, _plain(front.texts("base_model")), "names no base_model")
    except CheckpointError as e:
        return Hint(path.name, silent=f"cannot be read ({_short(e)})")


def _front_matter(text: str, path: Path) -> Document:
    """The YAML between the first two lines of three dashes; empty where a card has none.

    Raises:
        CheckpointError: It is no YAML that is read.
    """
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return Document(where=str(path))
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), 1)
    return parse_yaml_object("\n".join(lines[1:end]), str(path))


def _of_hub(repo: str, revision: str | None) -> Hint:
    where = "the Hub's baseModels"
    try:
        return Hint(where, hub.base_models(repo, revision))
    except CheckpointError as e:
        return Hint(where, silent=f"cannot be asked for ({_short(e)})")


def _of_config(path: Path) -> Hint:
    return _named(f"{path.name} (_name_or_path)", read_object(path).values.get("_name_or_path"))


def _named(where: str, name: object) -> Hint:
    return Hint(where, _plain([name] if isinstance(name, str) else []))


def _plain(names: Iterable[str]) -> tuple[str, ...]:
    """Names without the empty ones; the page of a model on the Hub is its id."""
    stripped = (name.strip() for name in names)
    return tuple(_id_of(name) if ADDRESS.match(name) else name for name in stripped if name)


def _id_of(address: str) -> str:
    found = hub_address(address)
    return hub_parts(found)[0] if found else address


def _short(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
