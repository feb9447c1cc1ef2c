"""Where two groups are compared: at the largest number of tokens that both have, each at its best setting there.

A group that trained longer has learned and forgotten more, whatever its method; so the last points of two groups are
compared only where they stand at equally many tokens. Where a group has several settings there (learning rates), the
one that learned best stands for it, as in the paper. The best of ten wins against the best of one by chance alone:
ten settings are ten sets of one, each of which would err at the nominal level, so that p is multiplied by ten
(Bonferroni), and the sentence says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deltaw.comparison.runs import Run, Runs, arena, learned


@dataclass(frozen=True)
class Endpoints:
    """The replicates that stand for two groups when they are compared with each other.

    Attributes:
        a, b: Runs that differ by the seed only.
        tokens_a, tokens_b: What they were trained on; None if they do not say.
        tried_a, tried_b: How many settings each was chosen from.
    """

    a: Sequence[Run]
    b: Sequence[Run]
    tokens_a: int | None
    tokens_b: int | None
    tried_a: int
    tried_b: int

    @property
    def trials(self) -> int:
        """How many times as many settings the one side was chosen from."""
        most, least = max(self.tried_a, self.tried_b), min(self.tried_a, self.tried_b)
        return math.ceil(most / least)

    @property
    def where(self) -> str:
        """` at 20,000,000 tokens (best of 10 settings against best of 1)`; empty if there is nothing to say."""
        at = f" at {self.tokens_a:,} tokens" if self.tokens_a is not None else ""
        if self.tokens_a != self.tokens_b:
            at = f" at {_tokens(self.tokens_a)} against {_tokens(self.tokens_b)}"
        if self.tried_a != self.tried_b:
            at += f" (best of {_settings(self.tried_a)} against best of {self.tried_b})"
        return at

    def swapped(self) -> Endpoints:
        """The same with a and b exchanged."""
        return Endpoints(self.b, self.a, self.tokens_b, self.tokens_a, self.tried_b, self.tried_a)


def _tokens(tokens: int | None) -> str:
    return "an unknown number of tokens" if tokens is None else f"{tokens:,} tokens"


def _settings(n: int) -> str:
    return "1 setting" if n == 1 else f"{n} settings"


def endpoints(runs: Runs, a: str, b: str, has: Callable[[Run], bool], *, anywhere: bool = False) -> Endpoints | None:
    """The settings of two groups that may be compared.

    Args:
        runs: The runs.
        a, b: Groups.
        has: Whether a run has what is to be compared.
        anywhere: Where no number of tokens is common, compare the last ones all the same.

    Returns:
        None where a group has nothing to compare, or no number of tokens is common to both.
    """
    x, y = _having(runs, a, has), _having(runs, b, has)
    common = x.keys() & y.keys()
    if common:
        at = max(common, key=_order)
        first, second = at, at
    elif anywhere and x and y:
        first, second = max(x, key=_order), max(y, key=_order)
    else:
        return None
    (chosen_a, tried_a), (chosen_b, tried_b) = _best(x[first]), _best(y[second])
    return Endpoints(chosen_a, chosen_b, first, second, tried_a, tried_b)


def at_common_tokens(runs: Runs, groups: Sequence[str], has: Callable[[Run], bool]) -> list[list[Run]] | None:
    """The best settings of several groups at the largest number of tokens that all have; None if there is none."""
    found = [_having(runs, g, has) for g in groups]
    common = set.intersection(*(set(f) for f in found)) if found else set()
    at = max(common, key=_order, default=None) if common else None
    return [_best(f[at])[0] for f in found] if common else None


def _having(runs: Runs, group: str, has: Callable[[Run], bool]) -> dict[int | None, list[list[Run]]]:
    """By tokens the settings of a group, each with the runs that have what is to be compared."""
    home = arena(runs.chosen[group])
    out: dict[int | None, list[list[Run]]] = {}
    for setting, replicates in runs.settings_of[group]:
        found = [r for r in replicates if has(r)] if arena(setting) == home else []
        if found:
            out.setdefault(setting.tokens, []).append(found)
    return out


def _order(tokens: int | None) -> int:
    return -1 if tokens is None else tokens


def _best(settings: list[list[Run]]) -> tuple[list[Run], int]:
    """The setting that learned best, and from how many it was chosen; without scores the one with most seeds."""
    scores = [learned(replicates) for replicates in settings]
    best = max(range(len(settings)), key=lambda i: (scores[i], len(settings[i])))
    return settings[best], max(1, sum(s > -math.inf for s in scores))


def missing_endpoints(runs: Runs, a: str, b: str) -> str:
    """Why two groups that both have scores have no common endpoint; empty if that is not the reason."""

    def seen(group: str) -> str:
        tokens = sorted({s.tokens for s, _ in runs.settings_of[group]}, key=_order)
        return ", ".join(_tokens(t) for t in tokens[:4]) + (", …" if len(tokens) > 4 else "")

    shared = {s.tokens for s, _ in runs.settings_of[a]} & {s.tokens for s, _ in runs.settings_of[b]}
    return "" if shared else f"{a} ({seen(a)}) and {b} ({seen(b)}) have no number of tokens in common"


def has_score(axis: str) -> Callable[[Run], bool]:
    """Whether a run has a score."""
    return lambda run: math.isfinite(run.score(axis))


def has_layers(run: Run) -> bool:
    """Whether a run's weights were analysed."""
    return run.layers is not None
