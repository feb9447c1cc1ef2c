"""The config of an adapter as PEFT gets it: what it says, without what could hold PEFT up or fill the memory.

PEFT tries the regular expressions of a config with Python's `re`, which some of them never end. They are tried here
instead, each for a limited time, and PEFT gets the paths of the modules that they match.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from deltaw.documents import Document, compile_pattern
from deltaw.errors import AdapterError

ALL_LINEAR = "all-linear"
PLAIN = re.compile(r"[\w.-]+")  # a path that means itself where a regular expression is expected
# How the methods read the keys of their patterns, where it is not PEFT's `get_pattern_key`.
KEYS = {"FOURIERFT": r".*\.{}", "C3A": r".*\.{}", "OSF": r".*{}.*"}
NO_SIZE = re.compile(r"seed|prng|step|interval|warmup|alpha|version")
COMMON_SIZE = 10_000  # a rank, a block or a number of frequencies that need not be compared with anything


def peft_config(config: Document, source: str, paths: Sequence[str] | None = None) -> Any:
    """PEFT's config object; what would look for other modules of the model is left out.

    Args:
        config: `adapter_config.json`.
        source: The adapter, for messages.
        paths: The modules that there are; None to check the config alone, its regular expressions with it.

    Raises:
        AdapterError: The config has fields that the installed peft does not know, values that it refuses, or regular
            expressions that are malformed or take too long.
    """
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    cls = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(config.text("peft_type"))]
    known = {f.name for f in fields(cls) if f.init}
    unknown = [k for k, v in config.values.items() if k not in known and k not in {"peft_type", "peft_version"} and v]
    if unknown:
        import peft

        raise AdapterError(
            f"{source}: {unknown[0]} is set in adapter_config.json, and peft {peft.__version__} does not know it; "
            "upgrade peft"
        )
    values = {k: v for k, v in _settled(config, paths or ("any",)).items() if k in known}
    values |= {
        k: None for k in ("modules_to_save", "trainable_token_indices", "auto_mapping", "task_type") if k in known
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cls(**values)
    except Exception as e:  # what a foreign library makes of foreign values
        why = " ".join(str(e).split()) or type(e).__name__
        raise AdapterError(f"{source}: peft refuses adapter_config.json ({why})") from e


def is_target(config: Document, path: str) -> bool:
    """Whether a config targets a module, by PEFT's rules (`check_target_module_exists`).

    Raises:
        AdapterError: A value is of the wrong type, or a regular expression malformed or too slow.
    """
    if _named(config, "exclude_modules", path):
        return False
    if isinstance(config.values.get("target_modules"), str):
        return config.text("target_modules").lower() == ALL_LINEAR or _named(config, "target_modules", path)
    layers = config.values.get("layers_to_transform")
    wanted = [layers] if isinstance(layers, int) else layers
    return _named(config, "target_modules", path) and (
        not isinstance(wanted, list) or not wanted or _layer(config, path) in wanted
    )


def refuse_absurd_sizes(config: Document, largest: int) -> None:
    """Refuse a rank, a block or a number of anything that is larger than all there is: PEFT would allocate it.

    Args:
        config: `adapter_config.json`.
        largest: The most that makes sense: how many numbers the adapter stores, or the base's largest dimension.

    Raises:
        AdapterError: There is one.
    """
    most = max(largest, COMMON_SIZE)
    patterns = [config.inner(k) for k, v in config.values.items() if k.endswith("_pattern") and isinstance(v, Mapping)]
    for document in (config, *patterns):
        for key, value in document.values.items():
            whole = isinstance(value, int) and not isinstance(value, bool)
            if whole and not NO_SIZE.search(f"{document.where} {key}" if document is not config else key):
                size = document.whole(key)
                if abs(size) > most:
                    raise AdapterError(
                        f"{document.where}: {key!r} is {size}; expected at most {most}, as much as the adapter stores"
                    )


def _settled(config: Document, paths: Sequence[str]) -> dict[str, object]:  # of any method of peft
    """The values of a config, with the modules that its regular expressions match in their place.

    Raises:
        AdapterError: An expression cannot be used, or a module has a name that could be taken for one.
    """
    strange = next((p for p in paths if not PLAIN.fullmatch(p)), None)
    if strange is not None:
        raise AdapterError(f"{config.where}: the module {strange!r} has no name that peft can look for")
    values = {k: v for k, v in config.values.items() if k not in {"exclude_modules", "layers_pattern"}}
    values.pop("layers_to_transform", None)
    wanted = [p for p in paths if is_target(config, p)]
    if values.get("target_modules") is not None:
        values["target_modules"] = wanted
    if values.get("feedforward_modules") is not None:
        values["feedforward_modules"] = [p for p in wanted if _named(config, "feedforward_modules", p)]
    for key, value in values.items():
        if key.endswith("_pattern") and isinstance(value, Mapping):
            values[key] = _by_path(config, key, paths)
    return values


def _named(config: Document, key: str, path: str) -> bool:
    """Whether a field names a module: a regular expression for all of its path, or a list of ends of paths."""
    if isinstance(config.values.get(key), str):
        return compile_pattern(config.text(key), f"{config.where}: {key}", error=AdapterError).fullmatch(path)
    return any(path == name or path.endswith(f".{name}") for name in config.texts(key))


def _by_path(config: Document, key: str, paths: Iterable[str]) -> dict[str, object]:
    """A pattern's values by the paths of the modules: of each the first key that matches."""
    inner, form = config.inner(key), KEYS.get(config.text("peft_type"), r"(.*\.)?({})")
    compiled = {k: compile_pattern(form.format(k), inner.where, error=AdapterError) for k in inner}
    out: dict[str, object] = {}  # of any method of peft
    for path in paths:
        found = next((k for k, pattern in compiled.items() if pattern.fullmatch(path)), path)
        if found in inner.values:
            out[path] = inner.values[found]
    return out


def _layer(config: Document, path: str) -> int | None:
    """The number of a module's layer: after one of the names that the config has for lists of layers, or the first."""
    numbers = [part for part in path.split(".")[1:-1] if part.isdecimal()]
    names = config.texts("layers_pattern")
    for name in names or (r"[^.]+\.[^.]*",):
        for number in numbers:
            text, where = rf"(.*\.)?({name})\.{number}\..*", f"{config.where}: layers_pattern"
            if compile_pattern(text, where, error=AdapterError).fullmatch(path):
                return int(number)
    return None
