"""The renames by which the installed transformers turns a published checkpoint into the model that it holds in memory.

`transformers.conversion_mapping` lists them by model type and class; a config names the root's, and its parts those of
the towers inside. Only renames are taken from it: what also permutes or joins numbers is no other name. Nothing here
is needed where transformers is not installed, and it is imported only where names are left over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Protocol

from deltaw.documents import Document

log = logging.getLogger("deltaw")


class Transform(Protocol):
    """A rename of transformers."""

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """The new name, and the pattern that matched."""


def conversion(config: Document) -> Callable[[str], str] | None:
    """What transformers calls a tensor in memory, by its name in a checkpoint; None where it has no rule for the model.

    Args:
        config: config.json; its `model_type` and `architectures`, and those of the configs inside it, say which rules.
    """
    kinds = tuple(_kinds(config))
    return _conversion(kinds) if kinds else None


def _kinds(config: Document) -> Iterator[tuple[bool, str, str]]:
    """Whether it is the model itself, its type and its class, for the model and for each model inside."""
    if kind := config.text("model_type"):
        yield True, kind, next(iter(config.texts("architectures")), "")
    for key, value in config.values.items():
        if isinstance(value, Mapping) and (kind := config.inner(key).text("model_type")):
            yield False, kind, ""


@lru_cache(maxsize=8)
def _conversion(kinds: tuple[tuple[bool, str, str], ...]) -> Callable[[str], str] | None:
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
    except ImportError as e:  # an older transformers, or none: the rules that are built in remain
        log.debug("no renames of transformers: %s", e)
        return None

    def listed(name: str) -> list[Transform]:
        return [t for t in get_checkpoint_conversion_mapping(name) or () if isinstance(t, WeightRenaming)]

    whole: list[Transform] = []
    inside: list[Transform] = []
    for root, kind, cls in kinds:
        bare = MODEL_MAPPING_NAMES.get(kind, ())
        names = (bare,) if isinstance(bare, str) else tuple(bare)
        if root:
            whole += listed(cls) or listed(kind)
            inside += [transform for name in names if name != cls for transform in listed(name)]
        else:
            inside += next((found for name in (*names, kind) if (found := listed(name))), [])
    if not whole and not inside:
        return None
    legacy = listed("legacy")

    def rename(name: str) -> str:
        for transform in (*whole, *legacy):
            name = transform.rename_source_key(name)[0]
        for transform in inside:
            name = _inside(transform, name)
        return name

    return rename


def _inside(transform: Transform, name: str) -> str:
    """A rename of a model that is a part of this one: its names begin behind one of the dots."""
    parts = name.split(".")
    for start in range(1, len(parts)):
        rest = ".".join(parts[start:])
        new = transform.rename_source_key(rest)[0]
        if new != rest:
            return ".".join([*parts[:start], new])
    return name
