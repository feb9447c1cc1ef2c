"""The base that an adapter is laid on: which of its tensors a module's path means, and how that tensor is stored."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cached_property
from math import prod

from deltaw.checkpoints import Checkpoint, why_unread
from deltaw.documents import Document
from deltaw.errors import AdapterError
from deltaw.pairs.experts import APART, find_stacks, leaf_sizes
from deltaw.pairs.fused import cut_fused
from deltaw.pairs.matching import MatchingRule, Shape, join, unique
from deltaw.pairs.piece import Piece
from deltaw.pairs.renames import known, suggestion
from deltaw.tensors.layout import Layout, ties_head
from deltaw.tensors.names import EMBEDDINGS, TOKEN_HEADS, unwrap
from deltaw.types import Handle

# What a module's path becomes in a checkpoint; `MultiheadAttention` has no `weight` of its own.
SUFFIXES = (".weight", ".in_proj_weight")


class Base:
    """A base checkpoint, looked up by the names that an adapter uses.

    Args:
        checkpoint: The base.
        expected: The weights that an adapter will ask for, with outputs × inputs where its factors tell: which prefix
            one side has more, and whether a stack of experts is to be cut, shows in all of them together.

    Attributes:
        pieces: Its tensors by name, and the experts of stacks that the adapter changes one by one.
        notes: By which rules names were matched.
    """

    def __init__(self, checkpoint: Checkpoint, expected: Mapping[str, Shape] | None = None) -> None:
        self.checkpoint = checkpoint
        shapes = ((n, h.shape) for n, h in checkpoint.tensors.items())
        self.layout = Layout.of(shapes, checkpoint.config)
        expected = dict(expected or {})
        self.pieces: dict[str, Piece] = {n: Piece(n, h) for n, h in checkpoint.tensors.items()}
        self._cut(expected)
        asked = {n: s for n, s in expected.items() if self.tied(n.removesuffix(".weight")) is None}
        joined = join({n: product_size(p.handle) for n, p in self.pieces.items()}, asked, checkpoint.config)
        self._rules = [MatchingRule("", key, key) for key in (unwrap, known)] + joined.rules
        self._matched = joined.pairs
        self.notes = tuple(joined.notes)

    def _cut(self, expected: Mapping[str, Shape]) -> None:
        """Cut the stacks of experts of which an adapter names single ones, and fused layers whose parts it names."""
        for cut in cut_fused(self.checkpoint.tensors, self.checkpoint.config, expected).values():
            self.pieces |= cut
        if not self.layout.stacks or not any(APART.match(known(unwrap(n))) for n in expected):
            return
        sizes = leaf_sizes({n: s for n, s in expected.items() if s is not None})
        for stack in find_stacks(self.checkpoint.tensors, self.layout).values():
            self.pieces |= stack.cut(stack.sizes() | sizes)

    @property
    def source(self) -> str:
        """Path or Hub id, for messages."""
        return self.checkpoint.source

    def __getitem__(self, name: str) -> Handle:
        return self.pieces[name].handle

    def find(self, name: str) -> str | None:
        """The tensor (or the piece of one) that an adapter calls `name`, by the rules by which checkpoints are paired.

        Ambiguous names are not guessed.
        """
        if name in self.pieces:
            return name
        if (found := self._matched.get(name)) is not None:
            return found
        for rule, index in self._indices:
            if (found := index.get(rule.right(name))) is not None:
                return found
        return None

    @cached_property
    def _indices(self) -> list[tuple[MatchingRule, dict[str, str]]]:
        return [(rule, unique(rule.left, self.pieces)) for rule in self._rules]

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
        if not ties_head(config) or not TOKEN_HEADS.search(module + "."):
            return None
        embeddings = [n for n, h in self.checkpoint.tensors.items() if EMBEDDINGS.search(n) and len(h.shape) == 2]
        return next((n for n in embeddings if "embed_pos" not in n and ".wpe" not in n), None)

    def named(self, module: str, stored: str) -> str:
        """The name of a module's weight that `weight` found: a tied head keeps its own, it is no second embedding."""
        own = module + ".weight"
        return own if self.find(own) is None and self.tied(module) == stored else stored

    def inputs_first(self, name: str) -> bool:
        """Whether a tensor is stored inputs × outputs; a piece that was cut out of a stack is turned round already."""
        return not self.pieces[name].part and self.layout.inputs_first(name, self[name].shape)

    def near(self, module: str) -> str:
        """A hint for a message: the tensor whose name is nearest."""
        close = difflib.get_close_matches(module + ".weight", self.checkpoint.tensors, n=1, cutoff=0.0)
        if not close:
            return "there is no tensor"
        nearest = f"the nearest name there is {close[0]!r}"
        own, there = (re.sub(r"\d+", "", n) for n in (f"{module}.weight", close[0]))
        if own == there or own.split(".")[-2:] != there.split(".")[-2:]:
            return nearest  # another layer, or another module: no rule would make one name of both
        return f"{nearest}; if that is its name, give {suggestion(f'{module}.weight', close[0])}"

    def missing(self, module: str, source: str) -> AdapterError:
        """The error for a module that the base lacks."""
        return AdapterError(
            f"{source} adapts {module!r}, but {self.source} has no such module ({self.near(module)}); "
            f"else give the base that the adapter was trained on"
        )


def product_size(handle: Handle) -> Shape:
    """Outputs × inputs, as the factors of a module multiply; None of codes that are not read."""
    shape = handle.shape
    if why_unread(handle) is not None:
        return None
    return shape if len(shape) < 3 else (shape[0], prod(shape[1:]))


def stored_transposed(
    shape: tuple[int, ...], product: tuple[int, int], config: Document, inputs_first: bool, known: bool
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
        return inputs_first or (not known and config.says("fan_in_fan_out"))
    if (rows, cols) == product:
        return False
    return True if len(shape) == 2 and (cols, rows) == product else None
