"""What of two sides is asked for: `--include`, `--exclude`, `--rename` and `--split-fused`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from deltaw.documents import compile_pattern
from deltaw.errors import OptionError

Names = str | Iterable[str] | Mapping[str, str]


@dataclass(frozen=True)
class Selection:
    """What of two sides is compared, and as what.

    Attributes:
        include, exclude: Regular expressions on tensor names (of the fine-tuned side where it has the tensor).
        rename: `REGEX=TEXT`, applied to the fine-tuned side's names before they are matched.
        split: Whether a fused tensor is one pair per part.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
    split: bool = False

    @classmethod
    def of(
        cls,
        *,
        include: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        rename: Names = (),
        split_fused: bool = False,
    ) -> Selection:
        """As `analyze` takes it: one of each, several, or a mapping of renames."""
        if isinstance(rename, Mapping):
            rename = [f"{regex}={text}" for regex, text in rename.items()]
        return cls(_several(include), _several(exclude), _several(rename), split_fused)

    def wanted(self) -> Callable[[str], bool]:
        """Whether a name is asked for: found by one of `include` (if any) and by none of `exclude`.

        Raises:
            OptionError: A regular expression is malformed.
        """
        keep, drop = (
            [compile_pattern(text, option, error=OptionError) for text in given]
            for option, given in (("--include", self.include), ("--exclude", self.exclude))
        )
        if not keep and not drop:
            return lambda _: True
        return lambda name: (not keep or any(p.search(name) for p in keep)) and not any(p.search(name) for p in drop)


ALL = Selection()


def _several(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
