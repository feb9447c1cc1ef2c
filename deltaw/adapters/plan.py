"""An adapter against its base → pairs to measure, and a reason for every tensor that is not measured."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace

from deltaw.adapters.adapter import Adapter, Matched
from deltaw.adapters.base import product_size
from deltaw.checkpoints import Checkpoint, why_unread
from deltaw.documents import Document
from deltaw.errors import PairingError
from deltaw.pairs import coverage as covered
from deltaw.pairs.coverage import Extent, memory
from deltaw.pairs.plan import Plan, is_weight, unsplit
from deltaw.pairs.selection import ALL, Selection
from deltaw.pairs.views import matrices, split_update, view_of
from deltaw.tensors.layout import Layout
from deltaw.tensors.names import kind, natural
from deltaw.types import Pair, Reason, Skipped, is_handle, is_update


def plan_adapter(
    base: Checkpoint | None,
    adapter: Adapter,
    selection: Selection = ALL,
) -> Plan:
    """Pair an adapter's updates with the base tensors that they change.

    Args:
        base: The opened base; None to measure the adapter alone.
        adapter: The opened adapter.
        selection: What of them is measured.

    Raises:
        PairingError: Not one update can be measured.
        AdapterError: The adapter does not fit the base.
        OptionError: A regular expression is malformed.
    """
    wanted = selection.wanted()
    adapter, renames = adapter.renamed(selection.rename)
    found = adapter.updates(base)
    skipped = list(found.skipped)
    layout = Layout(Document())
    if base is not None:
        layout = Layout.of(((n, h.shape) for n, h in base.tensors.items()), base.config)
        skipped.extend(base.companions.values())
    pairs: list[Pair] = []
    for pair in sorted(found.pairs, key=lambda p: natural(p.label)):
        view = (
            _left_out(pair) if wanted(pair.name) else Skipped(pair.name, Reason.EXCLUDED, "by --include or --exclude")
        )
        if view is not None:
            skipped.append(view)
        elif is_handle(pair.ft):
            pairs.extend(_stored(pair, layout, skipped, split=selection.split))
        else:
            pairs.extend(split_update(pair, layout) if selection.split else (pair,))
    if base is not None:
        skipped.extend(_untouched(base, found, skipped, wanted))
    if not pairs:
        reasons = "; ".join(f"{s.name}: {s.reason} ({s.detail})" for s in skipped[:1]) or "it holds no update"
        raise PairingError(f"{adapter.source}: no update that can be measured ({reasons})")
    alone = "no base was given: every column that needs W0 is empty"
    more = (*_untied(pairs), *(unsplit(pairs) if selection.split else ()))
    notes = (*(base.notes if base is not None else (alone,)), *adapter.notes, *renames, *found.notes, *more)
    return Plan(tuple(pairs), tuple(skipped), notes, _extent(base, adapter, found, skipped, wanted))


def _left_out(pair: Pair) -> Skipped | None:
    """Why an update cannot be measured on this base: it is computed from weights that are not read."""
    if pair.base is None or (why := why_unread(pair.base)) is None:
        return None
    if not is_update(pair.ft) or pair.ft.needs_base:
        return replace(why, name=pair.name)
    return None


def _stored(pair: Pair, layout: Layout, skipped: list[Skipped], *, split: bool) -> Iterable[Pair]:
    """The matrices of a tensor that the adapter stores whole; why there are none goes to `skipped`."""
    assert pair.base is not None
    assert is_handle(pair.ft)
    view = view_of(pair.base, pair.ft)
    if isinstance(view, Skipped):
        skipped.append(view)
        return ()
    return matrices(replace(pair, view=replace(view, part=pair.view.part)), layout, split=split)


def _untouched(
    base: Checkpoint, found: Matched, skipped: Sequence[Skipped], wanted: Callable[[str], bool]
) -> Iterable[Skipped]:
    """The tensors that the adapter leaves as they are."""
    touched = _touched(found)
    done = {s.name for s in skipped}
    for name in sorted(base.tensors, key=natural):
        if base.tensors[name].storage in touched or name in done:
            continue
        if wanted(name):
            yield Skipped(name, Reason.ONLY_IN_BASE, "the adapter does not change it")
        else:
            yield Skipped(name, Reason.EXCLUDED, "by --include or --exclude")


def _touched(found: Matched) -> set[Hashable]:
    """The memories of the base that change; an untied head has its own, the embedding that it was tied to stays."""
    return {memory(p.base) for p in found.pairs if p.base is not None and not _is_untied(p)}


def _is_untied(pair: Pair) -> bool:
    """Whether it is a head that the base keeps as its embedding: the embedding itself is not what changes."""
    return pair.base is not None and kind(pair.name, 2) == "head" and kind(pair.base.name, 2) == "embedding"


def _untied(pairs: Iterable[Pair]) -> Iterable[str]:
    """A note on a head that the base keeps as its embedding: what a merge does to the one tensor is another thing."""
    for pair in pairs:
        if _is_untied(pair) and pair.base is not None:
            yield (
                f"{pair.name} is {pair.base.name} in the base, which ties them: its row is what the adapter adds to "
                "the head alone; a merge that leaves them tied (peft's) adds it to the embedding, too"
            )


def _extent(
    base: Checkpoint | None, adapter: Adapter, found: Matched, skipped: Iterable[Skipped], wanted: Callable[[str], bool]
) -> Extent:
    """What was asked for; what the adapter does not touch is unchanged by construction."""
    theirs = list(adapter.tensors.values())
    if base is None:
        return covered.extent((), theirs)
    tied = {s.name for s in skipped if s.because == Reason.TIED_TO}
    asked = [h for n, h in base.tensors.items() if wanted(n) and n not in tied and is_weight(h)]
    unknown = {base.tensors[s.name].storage for s in found.skipped if s.name in base.tensors}
    touched = [p for p in found.pairs if not _is_untied(p)]
    seen = _touched(found)
    unknown |= {h.storage for h in base.tensors.values() if h.storage not in seen and product_size(h) in found.lost}
    return covered.by_adapter(covered.extent(asked, theirs), touched, unknown)
