"""A whole PEFT model saved as a checkpoint, as FSDP does: base weights, factors and copies in one mapping.

`q_proj.base_layer.weight` stands beside `q_proj.lora_A.default.weight`, and a module that was trained whole beside its
original: `embed_tokens.modules_to_save.default.weight` and `embed_tokens.original_module.weight`. With factors it is
an adapter, and all else that it stores is compared with the base; without, it is a checkpoint under other names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from deltaw.adapters.keys import adapter_names, is_factor, saved_name
from deltaw.checkpoints import Checkpoint
from deltaw.tensors.names import unwrap
from deltaw.types import Reason, Skipped

ORIGINAL = ".original_module."


def is_wrapped(names: Iterable[str]) -> bool:
    """Whether names are those of a whole PEFT model: base layers with factors, or originals beside trained copies."""
    layers = factors = copies = False
    for name in names:
        layers = layers or ".base_layer." in name
        factors = factors or is_factor(unwrap(name))
        copies = copies or ".modules_to_save." in name or ORIGINAL in name
    return (layers and factors) or (copies and not factors)


def has_factors(names: Iterable[str]) -> bool:
    """Whether there is a factor among names."""
    return any(is_factor(unwrap(name)) for name in names)


def as_checkpoint(opened: Checkpoint) -> Checkpoint:
    """The trained copies under the names of the modules that they stand for; their originals are no weights of it."""
    called = adapter_names(opened.tensors)
    originals = {
        name: Skipped(name, Reason.NOT_A_WEIGHT, "the module before training, kept beside its trained copy")
        for name in opened.tensors
        if ORIGINAL in name
    }
    tensors = {saved_name(n, called): h for n, h in opened.tensors.items() if n not in originals}
    note = f"{Path(opened.source).name}: a whole PEFT model's state; the trained copies of its modules are read"
    return replace(opened, tensors=tensors, companions={**opened.companions, **originals}, notes=(*opened.notes, note))
