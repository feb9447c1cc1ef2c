"""A TOML table → a frozen dataclass, with nothing unknown, nothing missing and nothing of another type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from deltaw.documents import KeyPath, Toml, shown
from deltaw.errors import OptionError, near

T = TypeVar("T")


def build(cls: type[T], toml: Toml) -> T:
    """An instance of a dataclass from a table whose keys are its fields.

    Args:
        cls: A dataclass; fields may be numbers, texts, tuples, mappings, other dataclasses, or `X | None`.
        toml: The table, and the line of each key.

    Raises:
        OptionError: A key is unknown or missing, or a value has the wrong type; the message says where.
    """
    return _table(cls, toml.table.values, toml, ())


def _table(cls: type[T], table: object, toml: Toml, path: KeyPath) -> T:
    assert dataclasses.is_dataclass(cls)
    if not isinstance(table, Mapping):
        raise OptionError(f"{_at(toml, path)}: expected a table, found {shown(table)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in table:
        if key not in fields:
            where = _at(toml, (*path, key))
            raise OptionError(f"{where}: unknown key {key!r}.{near(key, fields, listed=len(fields))}")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in table:
            raise OptionError(f"{_at(toml, path)}: {name!r} is missing; expected {_describe(hints[name])}")
    return cls(**{key: _convert(hints[key], value, toml, (*path, key)) for key, value in table.items()})


def _convert(hint: Any, value: object, toml: Toml, path: KeyPath) -> object:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (hint,) = (a for a in arguments if a is not type(None))
        return _convert(hint, value, toml, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise OptionError(f"{_at(toml, path)}: expected a list, found {shown(value)}")
        return tuple(_convert(arguments[0], item, toml, (*path, i)) for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return _table(typing.cast("type[Any]", hint), value, toml, path)
    plain = origin or hint
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, plain) or (isinstance(value, bool) and hint is not bool):
        raise OptionError(f"{_at(toml, path)}: expected {_describe(hint)}, found {shown(value)}")
    return value


def _at(toml: Toml, path: KeyPath) -> str:
    """`plan.toml:12: arms, item 1, rank`."""
    words = [part if isinstance(part, str) else f"item {part + 1}" for part in path]
    return f"{toml.where(path)}{': ' if words else ''}{', '.join(words)}"


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return "a list"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(a) for a in arguments if a is not type(None))
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(hint, "a table")
