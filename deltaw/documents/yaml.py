"""YAML as the Hub has it in cards and evaluations: plain data, without references."""

from __future__ import annotations

from collections.abc import Mapping

from deltaw.documents.objects import Document, shown
from deltaw.errors import CheckpointError, DeltaWError


def parse_yaml_list(text: str, where: str, *, error: type[DeltaWError] = CheckpointError) -> tuple[Document, ...]:
    """The list of objects that a YAML text holds; an empty text holds none.

    Raises:
        DeltaWError: It is not YAML, or no list of objects.
    """
    found = _parse(text, where, error)
    entries = [] if found is None else found
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise error(f"{where}: holds {shown(found)}; expected a list of objects")
    return tuple(Document(entry, f"{where}: [{i}]", error) for i, entry in enumerate(entries))


def parse_yaml_object(text: str, where: str, *, error: type[DeltaWError] = CheckpointError) -> Document:
    """The object that a YAML text holds; an empty text holds an empty one.

    Raises:
        DeltaWError: It is not YAML, or no object.
    """
    found = _parse(text, where, error)
    if not isinstance(found, Mapping | None):
        raise error(f"{where}: holds {shown(found)}; expected an object")
    return Document(found or {}, where, error)


def _parse(text: str, where: str, error: type[DeltaWError]) -> object:
    """What a YAML text holds.

    Raises:
        DeltaWError: It is not YAML, repeats a part by reference (a few lines could unfold to gigabytes), or is nested
            too deeply.
    """
    import yaml

    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise error(f"{where}: refers to another part of itself (*name); write that part out")
        found: object = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        raise error(f"{where}: is not valid YAML ({getattr(e, 'problem', None) or e}{line})") from e
    except (RecursionError, ValueError) as e:  # ValueError: a date or a number that there is not
        raise error(
            f"{where}: cannot be read as YAML ({'nested too deeply' if isinstance(e, RecursionError) else e})"
        ) from e
    return found
