"""Which tensors are asked for: `--include` and `--exclude`, regular expressions on their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from deltaw.errors import OptionError


def name_filter(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name is asked for: found by one of `include` (if any) and by none of `exclude`.

    Raises:
        OptionError: A regular expression is malformed.
    """
    keep, drop = _compiled(include, "--include"), _compiled(exclude, "--exclude")
    return lambda name: (not keep or any(p.search(name) for p in keep)) and not any(p.search(name) for p in drop)


def _compiled(patterns: Sequence[str], option: str) -> list[re.Pattern[str]]:
    out = []
    for pattern in patterns:
        try:
            out.append(re.compile(pattern))
        except re.error as e:
            raise OptionError(f"{option} {pattern!r} is no regular expression ({e})") from e
    return out
