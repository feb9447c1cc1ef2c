"""Two checkpoints → pairs to measure, and a reason for every tensor that is not measured.

Every tensor of both sides ends in exactly one place, a pair or a `Skipped`; how much of the base that is goes with the
plan (`coverage`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from deltaw.checkpoints import Checkpoint, why_unread
from deltaw.errors import PairingError
from deltaw.pairs import coverage as covered
from deltaw.pairs.coverage import Extent
from deltaw.pairs.experts import pieces
from deltaw.pairs.matching import join
from deltaw.pairs.nothing import no_matrix, nothing_in_common
from deltaw.pairs.orientation import Way, orientations
from deltaw.pairs.piece import Piece
from deltaw.pairs.renames import renamed
from deltaw.pairs.selection import ALL, Selection
from deltaw.pairs.views import is_floating, matrices, size, view_of
from deltaw.tensors.layout import Layout, is_fused, ties_head
from deltaw.tensors.names import kind, natural, unwrap
from deltaw.tensors.slices import Slice
from deltaw.types import Coverage, Handle, Pair, Reason, Skipped, counted, matrix_label

HEAD_MODULES = ("lm_head", "embed_out", "output", "cls.predictions.decoder", "proj_out")
INPUT_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "shared")


@dataclass(frozen=True)
class Plan:
    """What would be measured: the pairs in reading order, everything else with its reason, and notes.

    Attributes:
        extent: What there is to compare, of which `coverage` says how much these pairs are.

    Raises:
        PairingError: Two pairs are of the same matrix: a row could be taken for the other's.
    """

    pairs: tuple[Pair, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()
    extent: Extent = field(default_factory=Extent)

    def __post_init__(self) -> None:
        twice = [key for key, count in Counter(p.key for p in self.pairs).items() if count > 1]
        if twice:
            label = next(p.label for p in self.pairs if p.key == twice[0])
            raise PairingError(
                f"{label}: two updates of one matrix; the fine-tuned side stores it under two names that differ by "
                "a wrapper; remove one of them, or leave both out with --exclude"
            )

    def coverage(self, failed: Iterable[str] = ()) -> Coverage:
        """How much of the base is compared, without the pairs (by key) that could not be measured."""
        lost = set(failed)
        return covered.coverage(self.extent, (p for p in self.pairs if p.key not in lost))


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its tensors by the names that are matched, and as they are stored.

    Attributes:
        checkpoint: The opened checkpoint.
        pieces: What is compared, by the name that is matched.
        stored: Stored names by the renamed ones.
        layout: How it stores matrices.
    """

    checkpoint: Checkpoint
    pieces: Mapping[str, Piece]
    stored: Mapping[str, str]
    layout: Layout

    def own(self, piece: Piece) -> str:
        """The stored name of a piece."""
        return self.stored.get(piece.name, piece.name)


def plan(
    base: Checkpoint,
    ft: Checkpoint,
    selection: Selection = ALL,
) -> Plan:
    """Pair two full checkpoints; nothing but headers is looked at.

    Args:
        base, ft: The opened checkpoints.
        selection: What of them is compared.

    Raises:
        PairingError: Not one tensor can be compared, or no matrix of a base that has some.
        OptionError: A regular expression is malformed.
    """
    wanted = selection.wanted()
    names, notes = renamed(ft.tensors, selection.rename)
    left, right = _sides(base, ft, names)
    joined = join(
        {n: p.handle.shape for n, p in left.pieces.items()},
        {n: p.handle.shape for n, p in right.pieces.items()},
        base.config,
        ft.config,
    )
    matched = [(left.pieces[b], right.pieces[f]) for f, b in joined.pairs.items()]
    matched.sort(key=lambda m: natural(m[1].label))
    one_sided = [
        *_one_sided(left, right, matched, joined.left, wanted, base_side=True),
        *_one_sided(right, left, matched, joined.right, wanted, base_side=False),
    ]
    pairs, skipped, resized = _pairs(left, right, matched, wanted, split=selection.split)
    skipped = [*one_sided, *{**base.companions, **ft.companions}.values(), *skipped]
    found = Plan(
        tuple(pairs),
        tuple(skipped),
        (*base.notes, *ft.notes, *notes, *joined.notes, *resized, *(unsplit(pairs) if selection.split else ())),
        _extent(left, right, matched, skipped, wanted),
    )
    if not pairs:
        raise PairingError(nothing_in_common(base, ft, skipped))
    asked = [h for n, h in base.tensors.items() if wanted(n) and len(h.shape) > 1 and is_weight(h)]
    if asked and not any(p.shape[1] > 1 or len(p.ft.shape) > 1 for p in pairs):
        raise PairingError(no_matrix(base, ft, asked, skipped))
    return found


def _sides(base: Checkpoint, ft: Checkpoint, names: Mapping[str, str]) -> tuple[Side, Side]:
    theirs = {names[stored]: handle for stored, handle in ft.tensors.items()}
    layouts = (
        Layout.of(((n, h.shape) for n, h in base.tensors.items()), base.config or ft.config),
        Layout.of(((n, h.shape) for n, h in theirs.items()), ft.config or base.config),
    )
    left, right = pieces(base.tensors, theirs, layouts)
    back = {new: stored for stored, new in names.items() if new != stored}
    own = replace(layouts[1], stacks=frozenset(back.get(n, n) for n in layouts[1].stacks))
    return Side(base, left, {}, layouts[0]), Side(ft, right, back, own)


def _pairs(
    left: Side,
    right: Side,
    matched: Sequence[tuple[Piece, Piece]],
    wanted: Callable[[str], bool],
    *,
    split: bool,
) -> tuple[list[Pair], list[Skipped], list[str]]:
    """The pairs of the tensors that both sides have, the reasons for the others, and notes."""
    pairs: list[Pair] = []
    skipped: list[Skipped] = []
    notes: list[str] = []
    owners = _owners(right, [m for m in matched if wanted(right.own(m[1]))])
    ways = orientations((f.key, b.handle.shape, f.handle.shape) for b, f in matched)
    turned = 0
    for b, f in matched:
        name = right.own(f)
        way = ways.get(f.key, "same")
        base = Slice(b.name, b.handle, transposed=True) if way == "turned" else b.handle
        why = _left_out(b, f, name, owners, way, wanted)
        view = why or view_of(base, f.handle)
        if isinstance(view, Skipped):
            skipped.append(replace(view, name=matrix_label(name, f.part)))
            continue
        if view.crop is not None:
            notes.append(
                f"{name}: {base.shape[0]:,} rows in the base and {f.handle.shape[0]:,} in the fine-tuned checkpoint; "
                f"the first {view.crop:,} are compared"
            )
        turned += way == "turned"
        pair = Pair(name, base, f.handle, replace(view, part=f.part) if f.part else view)
        pairs.extend(matrices(pair, right.layout, split=split))
    if turned:
        what = counted(turned, "matrix is", "matrices are")
        notes.append(f"{what} stored the other way round by the base, and compared as transposed")
    return pairs, skipped, notes


def _left_out(
    b: Piece, f: Piece, name: str, owners: Mapping[object, str], way: Way, wanted: Callable[[str], bool]
) -> Skipped | None:
    """Why two tensors of one name are not compared, whatever their shapes."""
    if not wanted(name):
        return Skipped(name, Reason.EXCLUDED, "by --include or --exclude")
    if (owner := owners[b.handle.storage, f.handle.storage]) != name:
        return Skipped(name, Reason.TIED_TO, "the same memory on both sides", owner)
    for handle in (f.handle, b.handle):
        if (why := why_unread(handle)) is not None:
            return replace(why, name=name)
    if way == "unknown":
        what = "some of its square siblings' neighbours are stored the other way round by the base, and some are not"
        return Skipped(name, Reason.SHAPE_MISMATCH, f"{size(f.handle)}: {what}, so that its orientation is not known")
    return None


def unsplit(pairs: Sequence[Pair]) -> Iterable[str]:
    """A note on the fused matrices whose parts are not known, although they were asked for."""
    names = [p.name for p in pairs if is_fused(p.name) and p.view.rows is None and not p.view.part and p.shape[1] > 1]
    if names:
        yield (
            f"{len(names)} fused matrices are not split, as config.json with the number of heads is not there or does "
            f"not fit ({names[0]})"
        )


def _owners(right: Side, matched: Iterable[tuple[Piece, Piece]]) -> dict[object, str]:
    """The name under which each memory is measured: the first, and an embedding's rather than the head's.

    A safetensors file keeps the embedding alone, a pickle both: the rows are to be the same.
    """
    owners: dict[object, str] = {}
    for b, f in sorted(matched, key=lambda m: kind(right.own(m[1]), 2) == "head"):
        owners.setdefault((b.handle.storage, f.handle.storage), right.own(f))
    return owners


def _one_sided(
    own: Side,
    other: Side,
    matched: Sequence[tuple[Piece, Piece]],
    names: Iterable[str],
    wanted: Callable[[str], bool],
    *,
    base_side: bool,
) -> Iterable[Skipped]:
    """The tensors that one side alone has; a stack of experts of which nothing was matched as one."""
    ft = other if base_side else own
    storages = {m[0 if base_side else 1].handle.storage: ft.own(m[1]) for m in matched}
    used = {m[0 if base_side else 1].name for m in matched}
    done: set[str] = set()
    for at in names:
        piece = own.pieces[at]
        whole = piece.part and piece.name not in used
        name = matrix_label(own.own(piece), "" if whole else piece.part)
        if name in done:
            continue
        done.add(name)
        handle = own.checkpoint.tensors[own.own(piece)] if whole else piece.handle
        tied = storages.get(handle.storage) or _tied_by_config(name, own, other, (ft.own(m[1]) for m in matched))
        if not wanted(name):
            yield Skipped(name, Reason.EXCLUDED, "by --include or --exclude")
        elif (why := why_unread(handle)) is not None:
            yield why
        elif tied:
            yield Skipped(name, Reason.TIED_TO, "stored by one side only", tied)
        else:
            what = size(handle) if is_floating(handle) else f"{handle.dtype} {size(handle)}"
            yield Skipped(name, Reason.ONLY_IN_BASE if base_side else Reason.ONLY_IN_FT, what)


def _tied_by_config(name: str, own: Side, other: Side, matched: Iterable[str]) -> str | None:
    """The embedding that a head is tied to where the side that lacks the head says so in its config.json."""
    config = other.checkpoint.config or own.checkpoint.config
    if not ties_head(config):
        return None
    module = unwrap(name).removesuffix(".weight")
    if any(module == head or module.endswith("." + head) for head in HEAD_MODULES):
        targets: tuple[str, ...] = INPUT_EMBEDDINGS
    elif module.rsplit(".", 1)[-1] in INPUT_EMBEDDINGS:  # T5: both stacks share `shared`
        targets = ("shared",)
    else:
        return None
    return next((n for n in matched if unwrap(n).removesuffix(".weight").rsplit(".", 1)[-1] in targets), None)


def is_weight(handle: Handle) -> bool:
    """Whether a tensor holds weights, read or not: buffers of integers do not."""
    return is_floating(handle) or why_unread(handle) is not None


def _extent(
    left: Side,
    right: Side,
    matched: Sequence[tuple[Piece, Piece]],
    skipped: Iterable[Skipped],
    wanted: Callable[[str], bool],
) -> Extent:
    """What of both sides was asked for; by the fine-tuned side's names where it has the tensor, tied ones once."""
    tied = {s.name for s in skipped if s.because == Reason.TIED_TO}
    called = {b.name: right.own(f) for b, f in matched}

    def asked(tensors: Mapping[str, Handle], own: Mapping[str, str]) -> list[Handle]:
        return [
            h
            for stored, h in tensors.items()
            if wanted(own.get(stored, stored)) and own.get(stored, stored) not in tied and is_weight(h)
        ]

    return covered.extent(asked(left.checkpoint.tensors, called), asked(right.checkpoint.tensors, {}))
