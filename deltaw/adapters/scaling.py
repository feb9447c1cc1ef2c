"""Rank and α of one module, as PEFT reads its patterns; the factor that B·A is multiplied with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from deltaw.errors import AdapterError


def lookup(pattern: Any, module: str, default: Any, field: str) -> Any:
    """The value of the first key that matches the end of a module's path, as a regular expression.

    PEFT's rule (`get_pattern_key`): the key must match whole components at the end of the path, or all of it.

    Raises:
        AdapterError: A key is no regular expression.
    """
    if not isinstance(pattern, Mapping):
        return default
    for key, value in pattern.items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as e:
            raise AdapterError(f"adapter_config.json: {field} key {key!r} is no regular expression ({e})") from e
    return pattern.get(module, default)


def number(config: Mapping[str, Any], field: str, default: float | None = None) -> float:
    """A number of the config.

    Raises:
        AdapterError: It is missing, or something else.
    """
    value = config.get(field, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise AdapterError(f"adapter_config.json: {field} is {value!r}; expected a number")
    return value


def rank(config: Mapping[str, Any], module: str) -> int:
    """The rank that the config gives a module.

    Raises:
        AdapterError: It is no positive whole number.
    """
    value = lookup(config.get("rank_pattern"), module, config.get("r", 8), "rank_pattern")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AdapterError(f"adapter_config.json: the rank of {module} is {value!r}; expected a whole number above 0")
    return value


def scale(config: Mapping[str, Any], module: str) -> float:
    """α/r, or α/√r with rsLoRA (Kalajdzievski 2023), with the patterns applied.

    Raises:
        AdapterError: α is no number, or the rank no whole number above 0.
    """
    alpha = lookup(config.get("alpha_pattern"), module, number(config, "lora_alpha", 8), "alpha_pattern")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise AdapterError(f"adapter_config.json: the alpha of {module} is {alpha!r}; expected a number")
    r = rank(config, module)
    return alpha / math.sqrt(r) if config.get("use_rslora") else alpha / r
