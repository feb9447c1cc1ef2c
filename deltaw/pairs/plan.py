"""Names of both sides → pairs to measure, and a reason for every tensor that is not measured.

Names are matched exactly first, then without what wrappers add, and never by position: a wrong pair would be
reported as a large update. Every tensor of both sides ends in exactly one place, a pair or a `Skipped`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from deltaw.adapters import Adapter
from deltaw.checkpoints import Checkpoint, unread
from deltaw.errors import OptionError, PairingError
from deltaw.tensors.layout import inputs_first, is_fused, parts, text_config, uses_conv1d
from deltaw.tensors.names import has_vocabulary, is_expert_stack, kind, natural, place, unwrap
from deltaw.types import Handle, Pair, Skipped, View, is_handle, is_update

HEAD_MODULES = ("lm_head", "embed_out", "output", "cls.predictions.decoder", "proj_out")
INPUT_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "shared")


@dataclass(frozen=True)
class Plan:
    """What would be measured: the pairs in reading order, everything else with its reason, and notes."""

    pairs: tuple[Pair, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()


def plan(
    base: Checkpoint,
    ft: Checkpoint,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    split_fused: bool = False,
) -> Plan:
    """Pair two full checkpoints; nothing but headers is looked at.

    Args:
        base, ft: The opened checkpoints.
        include, exclude: Regular expressions on tensor names (of the fine-tuned side where it has the tensor).
        split_fused: One pair per part of a fused tensor.

    Raises:
        PairingError: Not one tensor can be compared.
        OptionError: A regular expression is malformed.
    """
    wanted = name_filter(include, exclude)
    matched, only_base, only_ft, notes = match_names(base.tensors, ft.tensors)
    skipped = [*_one_sided(base, ft, matched, only_base, only_ft, wanted)]
    skipped.extend({**base.companions, **ft.companions}.values())
    pairs: list[Pair] = []
    config = ft.config or base.config
    conv1d = uses_conv1d(config, ((n, h.shape) for n, h in ft.tensors.items()))
    matched.sort(key=lambda names: natural(names[1]))
    owners = _owners(base, ft, [names for names in matched if wanted(names[1])])
    for base_name, ft_name in matched:
        b, f = base.tensors[base_name], ft.tensors[ft_name]
        if not wanted(ft_name):
            skipped.append(Skipped(ft_name, "excluded", "by --include or --exclude"))
        elif (owner := owners[b.storage, f.storage]) != ft_name:
            skipped.append(Skipped(ft_name, f"tied_to {owner}", "the same memory on both sides"))
        else:
            view, why = _view(b, f)
            if view is None:
                assert why is not None
                skipped.append(why)
                continue
            if view.crop is not None:
                notes.append(
                    f"{ft_name}: {b.shape[0]:,} rows in the base and {f.shape[0]:,} in the fine-tuned checkpoint; "
                    f"the first {view.crop:,} are compared"
                )
            pair = Pair(ft_name, b, f, view)
            pairs.extend(
                matrices(pair, config, transposed=inputs_first(ft_name, f.shape, config, conv1d), split=split_fused)
            )
    if not pairs:
        raise PairingError(_nothing(base, ft, skipped))
    notes.extend(_whole(pairs) if split_fused else ())
    return Plan(tuple(pairs), tuple(skipped), (*base.notes, *ft.notes, *notes))


def _whole(pairs: Sequence[Pair]) -> Iterable[str]:
    """A note on the fused matrices whose parts are not known, although they were asked for."""
    names = [p.name for p in pairs if is_fused(p.name) and p.view.rows is None and matrix_shape(p)[1] > 1]
    if names:
        yield (
            f"{len(names)} fused matrices are not split, as config.json with the number of heads is not there or does "
            f"not fit ({names[0]})"
        )


def _owners(base: Checkpoint, ft: Checkpoint, matched: Iterable[tuple[str, str]]) -> dict[object, str]:
    """The name under which each memory is measured: the first, and an embedding's rather than the head's.

    A safetensors file keeps the embedding alone, a pickle both: the rows are to be the same.
    """
    owners: dict[object, str] = {}
    for base_name, ft_name in sorted(matched, key=lambda names: kind(names[1], 2) == "head"):
        owners.setdefault((base.tensors[base_name].storage, ft.tensors[ft_name].storage), ft_name)
    return owners


def name_filter(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name is asked for: found by one of `include` (if any) and by none of `exclude`.

    Raises:
        OptionError: A regular expression is malformed.
    """

    def compiled(patterns: Sequence[str], option: str) -> list[re.Pattern[str]]:
        out = []
        for pattern in patterns:
            try:
                out.append(re.compile(pattern))
            except re.error as e:
                raise OptionError(f"{option} {pattern!r} is no regular expression ({e})") from e
        return out

    keep, drop = compiled(include, "--include"), compiled(exclude, "--exclude")
    return lambda name: (not keep or any(p.search(name) for p in keep)) and not any(p.search(name) for p in drop)


def match_names(
    base: Iterable[str], ft: Iterable[str]
) -> tuple[list[tuple[str, str]], list[str], list[str], list[str]]:
    """Pairs of (base name, ft name), what is left on either side, and notes on the prefixes that were removed."""
    left, right = dict.fromkeys(base), dict.fromkeys(ft)
    matched = [(n, n) for n in right if n in left]
    notes = []

    def forms(strip_left: bool, strip_right: bool) -> tuple[Callable[[str], str], Callable[[str], str]]:
        bare: Callable[[str], str] = lambda n: unwrap(n).removeprefix("model.")  # noqa: E731
        return (bare if strip_left else unwrap), (bare if strip_right else unwrap)

    for strip_left, strip_right in ((False, False), (True, False), (False, True)):
        done_left, done_right = {b for b, _ in matched}, {f for _, f in matched}
        key_left, key_right = forms(strip_left, strip_right)
        found = _unique(key_left, [n for n in left if n not in done_left])
        others = _unique(key_right, [n for n in right if n not in done_right])
        new = [(b, others[key]) for key, b in found.items() if key in others]
        matched.extend(new)
        if new:
            notes.append(f"{len(new)} names were matched after removing wrapper prefixes ({new[0][0]} = {new[0][1]})")
    done_left, done_right = {b for b, _ in matched}, {f for _, f in matched}
    return matched, [n for n in left if n not in done_left], [n for n in right if n not in done_right], notes


def _unique(key: Callable[[str], str], names: list[str]) -> dict[str, str]:
    """Names by key, without the keys that two names share: guessing between them could pair wrongly."""
    counts = Counter(map(key, names))
    return {key(n): n for n in names if counts[key(n)] == 1}


def _one_sided(
    base: Checkpoint,
    ft: Checkpoint,
    matched: list[tuple[str, str]],
    only_base: list[str],
    only_ft: list[str],
    wanted: Callable[[str], bool],
) -> Iterable[Skipped]:
    for side, own, other, names in ((0, base, ft, only_base), (1, ft, base, only_ft)):
        storages = {own.tensors[pair[side]].storage: pair[1] for pair in matched}
        for name in names:
            handle = own.tensors[name]
            tied = storages.get(handle.storage) or _tied_by_config(name, own, other, (pair[1] for pair in matched))
            if not wanted(name):
                yield Skipped(name, "excluded", "by --include or --exclude")
            elif (why := unread(handle)) is not None:
                yield why
            elif tied:
                yield Skipped(name, f"tied_to {tied}", "stored by one side only")
            elif not is_floating(handle):
                yield Skipped(name, ("only_in_base", "only_in_ft")[side], f"{handle.dtype} {_shape(handle)}")
            else:
                yield Skipped(name, ("only_in_base", "only_in_ft")[side], _shape(handle))


def _tied_by_config(name: str, own: Checkpoint, other: Checkpoint, matched: Iterable[str]) -> str | None:
    """The embedding that a head is tied to where the side that lacks the head says so in its config.json."""
    config = other.config or own.config
    if not (config.get("tie_word_embeddings") or text_config(config).get("tie_word_embeddings")):
        return None
    module = unwrap(name).removesuffix(".weight")
    if any(module == head or module.endswith("." + head) for head in HEAD_MODULES):
        targets: tuple[str, ...] = INPUT_EMBEDDINGS
    elif module.rsplit(".", 1)[-1] in INPUT_EMBEDDINGS:  # T5: both stacks share `shared`
        targets = ("shared",)
    else:
        return None
    return next((n for n in matched if unwrap(n).removesuffix(".weight").rsplit(".", 1)[-1] in targets), None)


def is_floating(handle: Handle) -> bool:
    """Whether a tensor holds real floating-point numbers; bare exponents, the scales of MXFP8 blocks, are not."""
    return handle.dtype.startswith(("float", "bfloat")) and handle.dtype != "float8_e8m0fnu"


def _view(b: Handle, f: Handle) -> tuple[View | None, Skipped | None]:
    """How two tensors of one name are compared, or why they are not."""
    for handle in (f, b):
        if (why := unread(handle)) is not None:
            return None, replace(why, name=f.name)
    if not (is_floating(b) and is_floating(f)):
        dtypes = b.dtype if b.dtype == f.dtype else f"{b.dtype} in the base, {f.dtype} in the fine-tuned checkpoint"
        return None, Skipped(f.name, "not_floating", dtypes)
    if b.shape == f.shape:
        return View(), None
    resized = len(b.shape) == len(f.shape) >= 1 and b.shape[1:] == f.shape[1:] and b.shape[0] and f.shape[0]
    if resized and has_vocabulary(f.name, len(f.shape)):
        return View(crop=min(b.shape[0], f.shape[0])), None
    detail = f"{_shape(b)} in the base, {_shape(f)} in the fine-tuned checkpoint"
    return None, Skipped(f.name, "shape_mismatch", detail)


def matrices(pair: Pair, config: Mapping[str, object], *, transposed: bool, split: bool) -> Iterable[Pair]:
    """The matrices of one stored tensor: one, one per expert, or one per part of a fused tensor."""
    shape = pair.ft.shape
    if pair.view.crop is not None:
        shape = (pair.view.crop, *shape[1:])
    if len(shape) < 2 or not prod(shape):
        yield pair
        return
    if is_expert_stack(pair.name, shape):
        alone = shape[0] == 1  # a leading 1 is no stack
        stack = [replace(pair.view, expert=e, part="" if alone else f"expert {e}") for e in range(shape[0])]
        rows, cols = shape[1:]
    else:
        stack = [pair.view]
        rows, cols = shape[0], prod(shape[1:])
    if transposed:
        rows, cols = cols, rows
    slices = parts(pair.name, rows, cols, config) if split else None
    for view in stack:
        view = replace(view, transposed=transposed)
        if slices is None:
            yield replace(pair, view=view)
        else:
            for part, ranges in slices.items():
                yield replace(pair, view=replace(view, rows=ranges, part=f"{view.part} {part}".strip()))


def matrix_shape(pair: Pair) -> tuple[int, int]:
    """(outputs, inputs) of the matrix that a pair stands for; (n, 1) for a vector, (1, 1) for a scalar."""
    view = pair.view
    if is_update(pair.ft):
        rows, cols = pair.ft.shape  # an update's shape is the matrix's
    else:
        shape = pair.ft.shape
        if view.crop is not None:
            shape = (view.crop, *shape[1:])
        if view.expert is not None:
            shape = shape[1:]
        rows, cols = (shape[0] if shape else 1), prod(shape[1:])
        if view.transposed:
            rows, cols = cols, rows
    if view.rows is not None:
        rows = sum(stop - start for start, stop in view.rows)
    return rows, cols


def describe(pair: Pair) -> dict[str, object]:
    """The identity columns of a pair's row."""
    where = place(pair.name)
    ndim = len(pair.base.shape if pair.base is not None else pair.ft.shape)
    rows, cols = matrix_shape(pair)
    return {
        "name": pair.name,
        "stack": where.stack,
        "layer": where.layer,
        "module": where.module,
        "kind": kind(pair.name, ndim),
        "part": pair.view.part,
        "rows": rows,
        "cols": cols,
        "ndim": ndim,
        "base_dtype": pair.base.dtype if pair.base is not None else "",
        "ft_dtype": getattr(pair.ft, "dtype", ""),
    }


def plan_adapter(
    base: Checkpoint | None,
    adapter: Adapter,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    split_fused: bool = False,
) -> Plan:
    """Pair an adapter's updates with the base tensors that they change.

    Args:
        base: The opened base; None to measure the adapter alone.
        adapter: The opened adapter.
        include, exclude, split_fused: See `plan`.

    Raises:
        PairingError: Not one update can be measured.
        AdapterError: The adapter does not fit the base.
        OptionError: A regular expression is malformed.
    """
    wanted = name_filter(include, exclude)
    found = adapter.updates(base)
    skipped = list(found.skipped)
    touched = {p.name if p.base is None or _is_untied(p, p.base) else p.base.name for p in found.pairs}
    pairs: list[Pair] = []
    config: Mapping[str, object] = base.config if base is not None else {}
    conv1d = base is not None and uses_conv1d(config, ((n, h.shape) for n, h in base.tensors.items()))
    for pair in sorted(found.pairs, key=lambda p: natural(p.name)):
        if not wanted(pair.name):
            skipped.append(Skipped(pair.name, "excluded", "by --include or --exclude"))
        elif is_handle(pair.ft):
            assert pair.base is not None
            view, why = _view(pair.base, pair.ft)
            if view is None:
                assert why is not None
                skipped.append(why)
            else:
                transposed = inputs_first(pair.name, pair.ft.shape, config, conv1d)
                pairs.extend(matrices(replace(pair, view=view), config, transposed=transposed, split=split_fused))
        else:
            pairs.extend(_split_update(pair, config) if split_fused else (pair,))
    done = {s.name for s in skipped}
    skipped.extend(
        Skipped(name, "only_in_base", "the adapter does not change it")
        for name in natural_order(base.tensors if base is not None else ())
        if name not in touched and name not in done
    )
    if not pairs:
        reasons = "; ".join(f"{s.name}: {s.reason} ({s.detail})" for s in skipped[:1]) or "it holds no update"
        raise PairingError(f"{adapter.source}: no update that can be measured ({reasons})")
    alone = "no base was given: every column that needs W0 is empty"
    unsplit = _whole(pairs) if split_fused else ()
    notes = (*(base.notes if base is not None else (alone,)), *adapter.notes, *found.notes, *unsplit)
    return Plan(tuple(pairs), tuple(skipped), notes)


def _is_untied(pair: Pair, base: Handle) -> bool:
    """Whether it is a head that the base keeps as its embedding: the embedding itself is not what changes."""
    return kind(pair.name, 2) == "head" and kind(base.name, 2) == "embedding"


def _split_update(pair: Pair, config: Mapping[str, object]) -> Iterable[Pair]:
    slices = parts(pair.name, *matrix_shape(pair), config) if len(pair.ft.shape) == 2 else None
    if slices is None:
        return (pair,)
    view = pair.view
    return [
        replace(pair, view=replace(view, rows=ranges, part=f"{view.part} {part}".strip()))
        for part, ranges in slices.items()
    ]


def natural_order(names: Iterable[str]) -> list[str]:
    """Names with `layers.2` before `layers.10`."""
    return sorted(names, key=natural)


def _shape(handle: Handle) -> str:
    return "×".join(map(str, handle.shape)) or "scalar"


def _nothing(base: Checkpoint, ft: Checkpoint, skipped: Sequence[Skipped]) -> str:
    reasons = Counter(s.reason.split(" ")[0] for s in skipped)
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "both are empty"
    first = f"{next(iter(base.tensors), 'no tensor')!r} against {next(iter(ft.tensors), 'no tensor')!r}"
    advice = "check --include and --exclude" if reasons.get("excluded") else "are they a base and its fine-tune?"
    return f"{base.source} and {ft.source} have no tensor in common that can be compared ({counts}; {first}); {advice}"
