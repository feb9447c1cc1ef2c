"""Regular expressions that somebody else wrote, bounded in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaw.documents.objects import shown
from deltaw.errors import CheckpointError, DeltaWError

if TYPE_CHECKING:
    import regex

MATCHING = 1.0  # seconds that a foreign regular expression may take for one name


@dataclass(frozen=True)
class Pattern:
    """A regular expression that somebody else wrote: it has a limited time for each name."""

    compiled: regex.Pattern[str]
    where: str
    error: type[DeltaWError]

    def search(self, name: str) -> bool:
        """Whether it is found in a name.

        Raises:
            DeltaWError: It takes too long.
        """
        return self._within(name, self.compiled.search)

    def fullmatch(self, name: str) -> bool:
        """Whether it matches the whole of a name.

        Raises:
            DeltaWError: It takes too long.
        """
        return self._within(name, self.compiled.fullmatch)

    def sub(self, text: str, name: str) -> str:
        r"""The name with every match replaced; `\1` is the first group.

        Raises:
            DeltaWError: It takes too long, or `text` names a group that there is not.
        """
        import regex

        try:
            return self.compiled.sub(text, name, timeout=MATCHING)
        except TimeoutError as e:
            raise self._slow(name) from e
        except (regex.error, IndexError) as e:
            raise self.error(f"{self.where}: the replacement {shown(text)} does not fit the expression ({e})") from e

    def _within(self, name: str, match: Callable[..., object]) -> bool:
        try:
            return match(name, timeout=MATCHING) is not None
        except TimeoutError as e:
            raise self._slow(name) from e

    def _slow(self, name: str) -> DeltaWError:
        return self.error(
            f"{self.where}: the regular expression {shown(self.compiled.pattern)} takes over {MATCHING:g} s for "
            f"{shown(name)}; write it without nested repetitions"
        )


def compile_pattern(text: str, where: str, *, error: type[DeltaWError] = CheckpointError) -> Pattern:
    """Compile a regular expression of a file or of the user.

    Raises:
        DeltaWError: It is malformed.
    """
    import regex

    try:
        return Pattern(regex.compile(text), where, error)
    except (regex.error, OverflowError, RecursionError) as e:
        raise error(f"{where}: {shown(text)} is not a regular expression ({e})") from e
