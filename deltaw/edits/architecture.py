"""The model that an adapter is loaded into: its modules, by the names that PEFT sees, and what each of them is.

A checkpoint names tensors; PEFT wraps modules. Most have the same names, and the shapes tell linear layers from
convolutions. Where transformers is installed and config.json names one of its classes, the class itself is built
without memory (on the meta device) and tells all of it: what is an embedding, a `Conv1D`, a bare parameter, a stack of
experts that the checkpoint stores apart, in which order parameters are registered, and what is tied. Nothing of a
checkpoint is executed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from deltaw.adapters.trained import Renamed
from deltaw.checkpoints import Checkpoint
from deltaw.documents import Document
from deltaw.pairs.counterparts import counterparts
from deltaw.pairs.views import is_floating
from deltaw.tensors.layout import text_config
from deltaw.tensors.names import has_vocabulary
from deltaw.types import Handle, Reason, Skipped

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("deltaw")

Kind = Literal["linear", "conv1d", "embedding", "conv", "grouped", "other"]
MOST_LAYERS = 4  # times as many as the checkpoint has tensors: a config that asks for more is not its model's
FOREIGN = (
    ImportError,
    AttributeError,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    RuntimeError,
    OSError,
    AssertionError,
)


@dataclass(frozen=True)
class Architecture:
    """The modules of a model.

    Attributes:
        kinds: What each module is, by its path.
        parameters: Every tensor of the model, in the order in which it is registered, tied ones under each name.
        tied: Names of tensors that are the memory of another, by their name; the other's name.
        transposed: Modules whose stacks of experts are stored inputs × outputs.
    """

    kinds: Mapping[str, Kind]
    parameters: Mapping[str, Handle]
    tied: Mapping[str, str]
    transposed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: nn.Module) -> Architecture:
        """Of a model, whether it has data or not."""
        from deltaw.checkpoints.memory import MemoryHandle

        owners: dict[int, str] = {}
        tied: dict[str, str] = {}
        parameters: dict[str, Handle] = {}
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        kept = model.state_dict(keep_vars=True)
        for name, tensor in tensors:
            if name not in kept:
                continue
            parameters[name] = MemoryHandle(name, tensor)
            if (owner := owners.setdefault(id(tensor), name)) != name:
                tied[name] = owner
        modules = {path: module for path, module in model.named_modules(remove_duplicate=False) if path}
        turned = frozenset(path for path, module in modules.items() if getattr(module, "is_transposed", False) is True)
        return cls({path: _kind(module) for path, module in modules.items()}, parameters, tied, turned)


def _kind(module: nn.Module) -> Kind:
    from torch import nn

    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "conv" if module.groups == 1 else "grouped"
    return "conv1d" if type(module).__name__ == "Conv1D" else "other"


def architecture(source: Any, config: Document, tensors: Mapping[str, Handle]) -> Architecture | None:
    """The model behind a checkpoint, as far as it can be known without running anything of it.

    Args:
        source: What was given as the checkpoint; a module is its own architecture.
        config: Its config.json.
        tensors: Its tensors: a model that does not have them is not theirs.
    """
    from torch import nn

    if isinstance(source, nn.Module):
        return Architecture.of(source)
    model = _by_transformers(config, len(tensors))
    if model is None:
        return None
    found = Architecture.of(model)
    if not _fits(found, config, tensors):
        log.info("config.json describes another model than the tensors; modules are told by names and shapes")
        return None
    return found


def _by_transformers(config: Document, tensors: int) -> nn.Module | None:
    kind, names = config.text("model_type"), config.texts("architectures")
    layers = text_config(config).values.get("num_hidden_layers", 0)
    if not kind or not names or not isinstance(layers, int) or layers > MOST_LAYERS * max(tensors, 1):
        return None
    try:
        import torch
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        of_class = getattr(transformers, names[0])
        values = {k: v for k, v in config.values.items() if k not in {"quantization_config", "auto_map"}}
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            model: nn.Module = of_class(CONFIG_MAPPING[kind].from_dict(values))
            tie = getattr(model, "tie_weights", None)
            if tie is not None:
                tie()
    except FOREIGN as e:  # no transformers, an unknown class, or a config that it refuses: names and shapes remain
        log.debug("no model from config.json: %s", e)
        return None
    return model


def _fits(found: Architecture, config: Document, tensors: Mapping[str, Handle]) -> bool:
    """Whether a checkpoint has the model's parameters, in their shapes but for the number of tokens."""
    there = counterparts(found.parameters, Checkpoint("", "memory", found.parameters, config), _plain(tensors, config))
    for name, handle in there.found.items():
        own = found.parameters[name].shape
        if own != handle.shape and not (own[1:] == handle.shape[1:] and has_vocabulary(name, len(own))):
            return False
    return all(name in found.tied or not is_floating(found.parameters[name]) for name in there.lacking)


def _plain(tensors: Mapping[str, Handle], config: Document) -> Checkpoint:
    return Checkpoint("", "memory", tensors, config)


def as_model(checkpoint: Checkpoint, model: Architecture) -> tuple[Checkpoint, tuple[Skipped, ...]]:
    """A checkpoint by the names, and in the pieces, of a model's parameters; and what the model has no place for.

    Tied tensors are looked up under the name of the one that owns the memory only.
    """
    if set(checkpoint.tensors) == set(model.parameters) - set(model.tied):
        return checkpoint, ()
    own = {n: h for n, h in model.parameters.items() if n not in model.tied}
    there = counterparts(own, Checkpoint("", "memory", own, checkpoint.config), checkpoint)
    tensors = {
        n: there.found[n] if there.found[n].name == n else Renamed(n, there.found[n]) for n in own if n in there.found
    }
    more = {n: checkpoint.tensors[n] for n in there.extra if n not in model.tied}
    why = "the model that config.json describes has no such parameter"
    left = tuple(Skipped(n, Reason.NOT_A_WEIGHT, why) for n in more)
    return replace(checkpoint, tensors=tensors), left
