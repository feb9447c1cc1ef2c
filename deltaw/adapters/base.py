"""The base that an adapter is laid on: which of its tensors a module's path means, and how that tensor is stored."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from deltaw.checkpoints import Checkpoint
from deltaw.errors import AdapterError
from deltaw.tensors.layout import inputs_first, text_config, uses_conv1d
from deltaw.tensors.names import EMBEDDINGS, TOKEN_HEADS, unwrap
from deltaw.types import Handle

# What a module's path becomes in a checkpoint; `MultiheadAttention` has no `weight` of its own.
SUFFIXES = (".weight", ".in_proj_weight")


class Base:
    """A base checkpoint, looked up by the names that an adapter uses."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @property
    def source(self) -> str:
        """Path or Hub id, for messages."""
        return self.checkpoint.source

    def __getitem__(self, name: str) -> Handle:
        return self.checkpoint.tensors[name]

    @cached_property
    def _bare(self) -> dict[str, str]:
        return _unique((unwrap(n), n) for n in self.checkpoint.tensors)

    @cached_property
    def _shortened(self) -> dict[str, str]:
        return _unique((n.split(".", 1)[1], stored) for n, stored in self._bare.items() if "." in n)

    def find(self, name: str) -> str | None:
        """The tensor that an adapter calls `name`: exactly, without wrappers, or with one outer module more or less.

        A model saved without its head lacks the outer `model.` or `transformer.`. Ambiguous names are not guessed.
        """
        if name in self.checkpoint.tensors:
            return name
        found = self._bare.get(unwrap(name)) or self._shortened.get(unwrap(name))
        if found is None and "." in name:
            found = self._bare.get(unwrap(name).split(".", 1)[1])
        return found

    def weight(self, module: str) -> str | None:
        """The weight of a module; the tied embedding's for a head that is not stored."""
        for suffix in SUFFIXES:
            found = self.find(module + suffix)
            if found is not None:
                return found
        return self.tied(module)

    def tied(self, module: str) -> str | None:
        """The embedding that a head without a stored weight shares, where config.json says so."""
        config = self.checkpoint.config
        ties = config.get("tie_word_embeddings") or text_config(config).get("tie_word_embeddings")
        if not ties or not TOKEN_HEADS.search(module + "."):
            return None
        embeddings = [n for n, h in self.checkpoint.tensors.items() if EMBEDDINGS.search(n) and len(h.shape) == 2]
        return next((n for n in embeddings if "embed_pos" not in n and ".wpe" not in n), None)

    def named(self, module: str, stored: str) -> str:
        """The name of a module's weight that `weight` found: a tied head keeps its own, it is no second embedding."""
        own = module + ".weight"
        return own if self.find(own) is None and self.tied(module) == stored else stored

    @cached_property
    def _conv1d(self) -> bool:
        tensors = self.checkpoint.tensors
        return uses_conv1d(self.checkpoint.config, ((n, h.shape) for n, h in tensors.items()))

    def inputs_first(self, name: str) -> bool:
        """Whether a tensor is stored inputs × outputs."""
        return inputs_first(name, self[name].shape, self.checkpoint.config, self._conv1d)

    def near(self, module: str) -> str:
        """A hint for a message: the tensor whose name is nearest."""
        close = difflib.get_close_matches(module + ".weight", self.checkpoint.tensors, n=1, cutoff=0.0)
        return f"the nearest name there is {close[0]!r}" if close else "it has no tensors"

    def missing(self, module: str, source: str) -> AdapterError:
        """The error for a module that the base lacks."""
        return AdapterError(
            f"{source} adapts {module!r}, but {self.source} has no such module ({self.near(module)}); "
            f"give the base that the adapter was trained on"
        )


def stored_transposed(
    shape: tuple[int, ...], product: tuple[int, int], config: dict[str, Any], inputs_first: bool, known: bool
) -> bool | None:
    """Whether a linear weight of `shape` is stored as the transpose of B·A (outputs × inputs).

    The shapes decide, as in PEFT the class of the module does: a config's `fan_in_fan_out` is wrong for some of a
    model's modules. For a square weight the model's own layout decides, and `fan_in_fan_out` where that is not known.

    Returns:
        None where neither way fits.
    """
    rows, cols = shape[0], 1
    for n in shape[1:]:
        cols *= n
    if rows == cols and (rows, cols) == product:
        return inputs_first or (not known and bool(config.get("fan_in_fan_out")))
    if (rows, cols) == product:
        return False
    return True if len(shape) == 2 and (cols, rows) == product else None


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    pairs = list(pairs)
    counts = Counter(key for key, _ in pairs)
    return {key: value for key, value in pairs if counts[key] == 1}
