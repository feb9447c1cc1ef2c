"""Rank and α of one module, as PEFT reads its patterns; the factor that B·A is multiplied with."""

from __future__ import annotations

import math

from deltaw.documents import Document, compile_pattern
from deltaw.errors import AdapterError


def number(config: Document, field: str, pattern: str, module: str, default: float) -> float:
    """A number of the config, or of the first key of one of its patterns that matches the end of a module's path.

    PEFT's rule (`get_pattern_key`): the key is a regular expression and must match whole components at the end of the
    path, or all of it.

    Raises:
        AdapterError: A key is not a regular expression, or the value no number.
    """
    values = config.inner(pattern)
    for key in values:
        if compile_pattern(rf"(.*\.)?({key})", values.where, error=AdapterError).fullmatch(module):
            return values.number(key)
    return values.number(module) if module in values else config.number(field, default)


def rank(config: Document, module: str) -> int:
    """The rank that the config gives a module.

    Raises:
        AdapterError: It is no positive whole number.
    """
    value = number(config, "r", "rank_pattern", module, 8)
    if value < 1 or value != int(value):
        raise AdapterError(f"{config.where}: the rank of {module} is {value:g}; expected a whole number above 0")
    return int(value)


def scale(config: Document, module: str) -> float:
    """α/r, or α/√r with rsLoRA (Kalajdzievski 2023), with the patterns applied.

    Raises:
        AdapterError: α is no number, or the rank no whole number above 0.
    """
    alpha = number(config, "lora_alpha", "alpha_pattern", module, 8)
    r = rank(config, module)
    return alpha / math.sqrt(r) if config.says("use_rslora") else alpha / r
