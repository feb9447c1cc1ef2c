"""A TOML table → a frozen dataclass, with nothing unknown, nothing missing and nothing of another type."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from deltaw.errors import OptionError

T = TypeVar("T")


def build(cls: type[T], table: Any, where: str) -> T:
    """An instance of a dataclass from a table whose keys are its fields.

    Args:
        cls: A dataclass; fields may be numbers, texts, tuples, mappings, other dataclasses, or `X | None`.
        table: What the TOML file holds.
        where: How to name this place in messages: `study.toml, [base]`.

    Raises:
        OptionError: A key is unknown or missing, or a value has the wrong type; the message says where.
    """
    assert dataclasses.is_dataclass(cls)
    if not isinstance(table, Mapping):
        raise OptionError(f"{where}: expected a table, found {table!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=3) or sorted(fields)
            raise OptionError(f"{where}: unknown key {key!r}; did you mean {', '.join(near)}?")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in table:
            raise OptionError(f"{where}: {name!r} is missing; expected {_describe(hints[name])}")
    return cls(**{key: _convert(hints[key], value, f"{where}, {key}") for key, value in table.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (hint,) = (a for a in arguments if a is not type(None))
        return _convert(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise OptionError(f"{where}: expected a list, found {value!r}")
        return tuple(_convert(arguments[0], item, f"{where}, item {i}") for i, item in enumerate(value, 1))
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value, where)
    plain = origin or hint
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, plain) or (isinstance(value, bool) and hint is not bool):
        raise OptionError(f"{where}: expected {_describe(hint)}, found {value!r}")
    return value


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return "a list"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(a) for a in arguments if a is not type(None))
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(hint, "a table")
