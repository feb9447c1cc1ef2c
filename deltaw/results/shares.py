"""One share of an analysis that several machines divide between them (`--part 3/16`)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deltaw.errors import OptionError
from deltaw.types import Coverage

if TYPE_CHECKING:
    from deltaw.types import JsonValue

WRITTEN = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True)
class Share:
    """Which share it is, and where its rows stand in the whole.

    Attributes:
        index, of: The index-th of so many shares, from 1.
        pairs: How many pairs the whole analysis has.
        positions: Of this share's rows among them, in the order of the rows.
        planned: How much of the model the whole analysis compares if nothing fails.
        reached: The same without what failed in this share.
    """

    index: int
    of: int
    pairs: int = 0
    positions: tuple[int, ...] = ()
    planned: Coverage = field(default_factory=Coverage)
    reached: Coverage = field(default_factory=Coverage)

    @classmethod
    def parse(cls, text: str) -> Share:
        """The share that `I/N` asks for.

        Raises:
            OptionError: It is none.
        """
        found = WRITTEN.fullmatch(text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise OptionError(f"part {text[:40]!r}: expected I/N with 1 ≤ I ≤ N, such as 3/16")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        """As it is asked for: `3/16`."""
        return f"{self.index}/{self.of}"

    @property
    def note(self) -> str:
        """What a reader of this share's results has to know."""
        return f"these are the results of part {self} of an analysis; deltaw gather joins all of them"

    def to_dict(self) -> dict[str, JsonValue]:
        """As JSON values."""
        from deltaw.results.plain import plain

        counts: dict[str, JsonValue] = {"index": self.index, "of": self.of, "pairs": self.pairs}
        return counts | {
            "positions": list(self.positions),
            "planned": plain(self.planned),
            "reached": plain(self.reached),
        }
