"""An opened adapter, and what it does to a base: one list of pairs, a reason for everything that is none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

from deltaw.adapters import variants
from deltaw.adapters.base import Base
from deltaw.adapters.companions import not_read
from deltaw.adapters.experts import expert_pairs, leaves, targets
from deltaw.adapters.keys import Contents, LoraModule, sort_tensors
from deltaw.adapters.lora import Context, module_pairs
from deltaw.adapters.trained import changed_base, saved_pairs, token_pairs
from deltaw.adapters.translated import arranged
from deltaw.checkpoints import Checkpoint
from deltaw.checkpoints.remote import stamps
from deltaw.documents import Document
from deltaw.errors import AdapterError
from deltaw.pairs.renames import renamed
from deltaw.results.sources import FileStamp, Source
from deltaw.types import Handle, Pair, Reason, Skipped


class Matched(NamedTuple):
    """An adapter against a base: every tensor of the adapter is in a pair or has a reason.

    `ft` of a pair is an `Update`, or a `Handle` where the adapter stores the weight itself. `lost` has the sizes of
    what found no place in the base: a tensor of that size that seems untouched may be the one.
    """

    pairs: tuple[Pair, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()
    lost: frozenset[tuple[int, ...]] = frozenset()


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: config and headers only.

    Attributes:
        source: Its path.
        format: `peft lora`, `peft loha`, …, `kohya`, `diffusers`, `mlx lora`, `gguf lora`.
        tensors: Handles as stored.
        config: `adapter_config.json`; empty for a single file.
        base_name: The base that it names, if any.
        notes: What a reader should know.
        files: The files that were read, as they were.
        initial: The modules and config of the stored initial adapter, where the method takes it out of the base.
        permuted: Names of factors whose rows are heads in ggml's order, and whether of keys (GGUF).
        beside: The names of tensors in files of its directory that are not read, by file.
    """

    source: str
    format: str
    tensors: Mapping[str, Handle]
    config: Document
    base_name: str | None = None
    notes: tuple[str, ...] = ()
    files: tuple[FileStamp, ...] = ()
    revision: str | None = None
    initial: tuple[Mapping[str, LoraModule], Document] | None = field(default=None, repr=False)
    permuted: Mapping[str, bool] = field(default_factory=dict, repr=False)
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    @property
    def nbytes(self) -> int:
        """Stored bytes of all tensors."""
        return sum({h.storage: h.nbytes for h in self.tensors.values()}.values())

    def as_source(self) -> Source:
        """What `analysis.json` says of this adapter."""
        return Source(
            path=self.source,
            format=self.format,
            tensors=len(self.tensors),
            nbytes=self.nbytes,
            revision=self.revision,
            files=stamps(self.files),
            base_name=self.base_name,
        )

    def updates(self, base: Checkpoint | None) -> Matched:
        """What the adapter does to a base; nothing but headers is read, save an embedding stored beside its factors.

        Args:
            base: The base; None with `--no-base`, when all that needs W0 is skipped.

        Raises:
            AdapterError: It does not fit the base, or nothing of it has a ΔW that can be known.
            MissingExtraError: The method needs the `peft` library, which is not installed.
        """
        tensors = arranged(self.tensors, self.permuted, base)
        expected = self._expected()
        dotted = {} if self.format == "kohya" else expected
        on = Base(base, dotted) if base is not None else None
        context = Context(self.source, self.config, on, self.initial)
        kind = self.config.text("peft_type")
        if self.format in {"kohya", "diffusers"}:
            from deltaw.adapters.singlefile import single_file_pairs

            found = single_file_pairs(context, tensors)
        elif kind in {"LORA", "ADALORA"}:
            found = _lora(context, sort_tensors(tensors, self.source))
        else:
            from deltaw.adapters.bridge import bridged_pairs

            found = bridged_pairs(context, tensors)
        pairs = tuple(_placed(p, on) for p in found if isinstance(p, Pair))
        skipped = tuple(s for s in found if isinstance(s, Skipped))
        if on is not None:
            skipped += tuple(not_read(self.beside, on, {p.base.name for p in pairs if p.base is not None}))
        if not pairs:
            first = skipped[0] if skipped else Skipped("", Reason.EMPTY, "it holds no tensor")
            why = f"{self.source}: no ΔW can be known ({first.name}: {first.reason}, {first.detail})"
            if on is not None and first.because == Reason.ONLY_IN_FT:
                why += f"; in {on.source} {on.near(first.name)}; give the base that it was trained on"
            raise AdapterError(why)
        return Matched(pairs, skipped, on.notes if on is not None else (), _lost(skipped, expected))

    def renamed(self, rules: Sequence[str]) -> tuple[Adapter, tuple[str, ...]]:
        """The adapter with the names of its tensors after `--rename`, and notes on the rules.

        Raises:
            OptionError: A rule is malformed.
        """
        if not rules:
            return self, ()
        names, notes = renamed(self.tensors, rules)
        return replace(self, tensors={names[n]: h for n, h in self.tensors.items()}), notes

    def _expected(self) -> dict[str, tuple[int, ...] | None]:
        """The weights of the base that it will ask for, with outputs × inputs where the factors tell."""
        kind = self.config.text("peft_type")
        if self.format in {"kohya", "diffusers"}:
            from deltaw.adapters.singlefile import expected_weights as of_one_file

            return of_one_file(self.tensors, self.source)
        if kind in {"LORA", "ADALORA"}:
            return expected_weights(self.config, sort_tensors(self.tensors, self.source))
        from deltaw.adapters.bridge import adapted_modules
        from deltaw.adapters.methods import NO_DELTA

        if kind in NO_DELTA:
            return {}
        return dict.fromkeys(f"{path}.weight" for path in adapted_modules(str(kind), self.tensors))


def _placed(pair: Pair, base: Base | None) -> Pair:
    """A pair under the name of the stored tensor, with what was cut out of it as its part."""
    piece = base.pieces.get(pair.name) if base is not None else None
    if piece is None or not piece.part:
        return pair
    return replace(pair, name=piece.name, view=replace(pair.view, part=piece.part))


def _lost(skipped: Sequence[Skipped], expected: Mapping[str, tuple[int, ...] | None]) -> frozenset[tuple[int, ...]]:
    """The sizes of what has no place in the base although other modules of the same part of the model have one."""
    apart = {n for s in skipped if s.because == Reason.ONLY_IN_FT for n in (s.name, f"{s.name}.weight")}
    found = {_component(n) for n in expected if n not in apart}
    return frozenset(size for n, size in expected.items() if n in apart and size and _component(n) in found)


def _component(name: str) -> str:
    """The part of a model that a module belongs to: `text_encoder`, or kohya's `lora_te1`."""
    return re.match(r"lora_[a-z]+\d?(?=_)|[^.]*", name)[0]  # type: ignore[index]


def expected_weights(config: Document, contents: Contents) -> dict[str, tuple[int, ...] | None]:
    """The weights that LoRA's modules change, and those that are stored whole, with their sizes."""
    out: dict[str, tuple[int, ...] | None] = {}
    for module in contents.modules:
        A, B = module.parts.get("lora_A"), module.parts.get("lora_B")
        parameters = targets(config, module)
        if parameters:
            out |= dict.fromkeys([*parameters, *(n for p in parameters for n in leaves(p, 0))])
        else:
            # MoRA's and BD-LoRA's factors do not multiply to the weight
            plain = A is not None and B is not None and not config.says("use_mora") and not config.says("use_bdlora")
            out[f"{module.path}.weight"] = (B.shape[0], prod(A.shape[1:])) if plain and A and B else None
    out |= {name: handle.shape for name, handle in contents.saved.items()}
    return out | dict.fromkeys(f"{module}.weight" for module in contents.tokens)


def _lora(context: Context, contents: Contents) -> list[Pair | Skipped]:
    """Everything in a LoRA or AdaLoRA file.

    Raises:
        AdapterError: An embedding is changed in two ways at once.
    """
    out: list[Pair | Skipped] = [Skipped(n, Reason.NOT_A_WEIGHT, "only training needs it") for n in contents.training]
    init = variants.changed_init(context.config, context.source)
    kept = context.initial is not None and init != "loftq"
    wrapped: dict[str, list[LoraModule]] = {}
    for module in contents.modules:
        parameters = targets(context.config, module)
        if init is not None and (parameters or not kept):
            out.append(Skipped(f"{module.path}.weight", Reason.BASE_CHANGED_AT_INIT, _why(init)))
        elif parameters:
            wrapped.setdefault(module.path, []).append(module)
        elif changed := changed_base(context, contents.saved, module.path):
            out.append(changed)
        else:
            out.extend(module_pairs(context, module))
    for path, modules in wrapped.items():
        out.extend(expert_pairs(context, path, modules))
    adapted = frozenset(m.path for m in contents.modules)
    both = adapted & contents.tokens.keys()
    if both:
        raise AdapterError(
            f"{context.source}: {min(both)} has LoRA factors and trained token rows; which comes first is not known"
        )
    out.extend(saved_pairs(context, contents.saved, adapted))
    out.extend(token_pairs(context, contents.tokens, context.config.values.get("trainable_token_indices")))
    return out


def _why(init: str) -> str:
    if init == "loftq":
        return "LoftQ trains around a quantised base, and that quantisation, which ΔW depends on, is not stored"
    method = init.split("_niter_")[0]
    return (
        f"{init} takes its initial B·A out of the base, so B·A alone is not ΔW; keep the initial adapter as "
        f"{method}_init in or beside the adapter"
    )
