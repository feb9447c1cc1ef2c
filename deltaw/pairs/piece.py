"""What is paired: a stored tensor, or what was cut out of one because the other side has it in pieces."""

from __future__ import annotations

from dataclasses import dataclass

from deltaw.types import Handle, matrix_key, matrix_label


@dataclass(frozen=True)
class Piece:
    """A stored tensor, or what was cut out of one.

    Attributes:
        name: The stored tensor.
        handle: It, or the slice.
        part: What was cut out: `expert 3 gate`, `q`; empty for the whole.
    """

    name: str
    handle: Handle
    part: str = ""

    @property
    def key(self) -> str:
        """Unique among the pieces of a checkpoint, as `Pair.key`."""
        return matrix_key(self.name, self.part)

    @property
    def label(self) -> str:
        """The name with the part in brackets."""
        return matrix_label(self.name, self.part)
