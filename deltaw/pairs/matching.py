"""Which tensors of two sides are the same one: by name, then by one rule after the other, never by position.

Each rule gives every name that is left a key; two names whose keys are equal, and are nobody else's, are the same
tensor. From the second rule on their shapes must agree as well: a wrong pair would be reported as a large update.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from deltaw.documents import Document
from deltaw.pairs.conversions import conversion
from deltaw.pairs.renames import has_towers, known, towers
from deltaw.tensors.names import has_vocabulary, unwrap

Shape = tuple[int, ...] | None  # None: not known, and no reason against a pair
Key = Callable[[str], str]

AGREE = 0.9  # of the names behind one prefix: a head or a table may have been resized
INNER = re.compile(r"(?<=\.)(?:module|base_model\.model|base_layer)\.")


class MatchingRule(NamedTuple):
    """A key for the names of either side, and what a note says of it."""

    says: str
    left: Key
    right: Key
    certain: bool = False  # the names are enough: a shape that differs is a finding about the tensor


@dataclass
class Joined:
    """The names of two sides, joined.

    Attributes:
        pairs: Left names by right name.
        left, right: The names without a partner.
        rules: The rules that matched names, in order, for names that are asked for later.
        notes: One for each rule: how many names, and an example.
    """

    pairs: dict[str, str] = field(default_factory=dict)
    left: dict[str, Shape] = field(default_factory=dict)
    right: dict[str, Shape] = field(default_factory=dict)
    rules: list[MatchingRule] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def join(left: Mapping[str, Shape], right: Mapping[str, Shape], *configs: Document) -> Joined:
    """Join two sides' names.

    Args:
        left, right: Shapes by name.
        configs: The config.json of either side, which say whose renames of transformers apply.
    """
    out = Joined(left=dict(left), right=dict(right))
    for name in right:
        if name in left:
            out.pairs[name] = name
            del out.left[name], out.right[name]
    for rule in _rules(out, configs):
        _apply(rule, out)
    return out


def _rules(rest: Joined, configs: tuple[Document, ...]) -> Iterator[MatchingRule]:
    """The rules in the order in which they are tried; each sees what the ones before it left over."""
    bare, changed = "without what wrappers put into them", "by names that libraries changed"
    for rule in (
        MatchingRule(bare, unwrap, unwrap, True),
        MatchingRule(bare, _bare, _bare, True),
        MatchingRule(changed, _known, _known),
    ):
        if rest.left and rest.right:
            yield rule
    keys: list[Key] = [_known]
    if rest.left and rest.right and has_towers(*configs, names=[*rest.left, *rest.right]):
        keys.append(_towers)
    for key in keys:
        yield from _prefixed(rest, key)
        if key is not _known and rest.left and rest.right:
            yield MatchingRule("by the names of the language model inside", key, key)
            yield from _prefixed(rest, key)
    if _plausible(rest):
        for config in configs:
            if rename := conversion(config):
                key = partial(_converted, rename)
                yield MatchingRule("by the names that transformers gives them in memory", key, key)
                yield from _prefixed(rest, key)
                return


def _converted(rename: Key, name: str) -> str:
    return known(rename(_bare(name)))


def _bare(name: str) -> str:
    return INNER.sub("", unwrap(name))


def _known(name: str) -> str:
    return known(_bare(name))


def _towers(name: str) -> str:
    return towers(_bare(name))


def _plausible(rest: Joined) -> bool:
    """Whether a rename could pair anything that is left: two matrices of one size; heads that differ are none."""
    sizes = {tuple(sorted(s)) for s in rest.left.values() if s is not None and len(s) > 1}
    return bool(rest.left) and any(s is None or (len(s) > 1 and tuple(sorted(s)) in sizes) for s in rest.right.values())


def _apply(rule: MatchingRule, out: Joined) -> None:
    theirs = unique(rule.right, out.right)
    new = {}
    for key, name in unique(rule.left, out.left).items():
        other = theirs.get(key)
        if other is not None and (rule.certain or agree(other, out.left[name], out.right[other])):
            new[other] = name
    if not new:
        return
    out.pairs |= new
    for theirs_name, name in new.items():
        del out.left[name], out.right[theirs_name]
    out.rules.append(rule)
    first = next(iter(new))
    count = "one name was" if len(new) == 1 else f"{len(new):,} names were"
    out.notes.append(f"{count} matched {rule.says} ({new[first]} = {first})")


def _prefixed(rest: Joined, key: Key) -> Iterator[MatchingRule]:
    """The one constant prefix that one side has more, if there is one and no other."""
    if not (rest.left and rest.right):
        return
    found = [*_candidates(rest.left, rest.right, key, "right"), *_candidates(rest.right, rest.left, key, "left")]
    best = max(found, key=lambda c: len(c.names), default=None)
    if best is None:
        return
    if any(c is not best and not c.names < best.names for c in found):
        texts = " and ".join(repr(c.prefix) for c in sorted(found, key=lambda c: -len(c.names))[:3])
        longer = "fine-tuned side" if best.side == "right" else "base"
        rest.notes.append(f"no prefix was taken off: {texts} of the {longer} fit equally well; choose with --rename")
        return

    def longer_key(name: str) -> str:
        return key(name)

    def shorter_key(name: str) -> str:
        return best.prefix + key(name)

    says = f"without the prefix {best.prefix!r} of the {'fine-tuned side' if best.side == 'right' else 'base'}"
    if best.side == "right":
        yield MatchingRule(says, shorter_key, longer_key, certain=True)
    else:
        yield MatchingRule(says, longer_key, shorter_key, certain=True)


class Candidate(NamedTuple):
    """A prefix of one side's names, and the names of the other side that it explains."""

    side: str
    prefix: str
    names: frozenset[str]


def _candidates(short: Mapping[str, Shape], long: Mapping[str, Shape], key: Key, side: str) -> Iterator[Candidate]:
    keys = unique(key, short)
    found: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for long_key, name in unique(key, long).items():
        at = long_key.find(".")
        while at >= 0:
            prefix, rest = long_key[: at + 1], long_key[at + 1 :]
            if rest in keys:
                found[prefix].append((keys[rest], agree(name, short[keys[rest]], long[name])))
            at = long_key.find(".", at + 1)
    for prefix, names in found.items():
        # One name may end like another by accident, unless it is all that there is.
        enough = len(names) > 1 or len(names) in {len(short), len(long)}
        if enough and sum(fits for _, fits in names) >= AGREE * len(names):
            yield Candidate(side, prefix, frozenset(name for name, _ in names))


def unique(key: Key, names: Iterable[str]) -> dict[str, str]:
    """Names by key, without the keys that two names share: guessing between them could pair wrongly."""
    keyed = [(key(n), n) for n in names]
    counts = Counter(k for k, _ in keyed)
    return {k: n for k, n in keyed if counts[k] == 1}


def agree(name: str, a: Shape, b: Shape) -> bool:
    """Whether two shapes may be of one tensor: equal, turned round, or with more tokens on one side."""
    if a is None or b is None or a == b or (len(a) == len(b) == 2 and a == b[::-1]):
        return True
    return len(a) == len(b) and a[1:] == b[1:] and has_vocabulary(name, len(a))
