"""A model that peft wrapped, as what it is: frozen weights, and an adapter on them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from deltaw.adapters import Adapter, adapter_in_memory
from deltaw.documents import Document
from deltaw.errors import AdapterError
from deltaw.monitoring import live


def is_peft(model: Any) -> bool:
    """Whether this is a model that peft wrapped."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def frozen_weights(model: Any) -> Mapping[str, torch.Tensor]:
    """The base's weights inside a peft model, by the base's own names; shared, not copied.

    The layers that peft puts in say which of their attributes are an adapter's; what they wrap is `base_layer`, and
    beside a module that is trained as a whole stands its `original_module`.
    """
    kinds = ("adapter_layer_names", "other_param_names")
    adapters = {name for module in model.modules() for kind in kinds for name in getattr(module, kind, ())}
    found = {}
    for name, tensor in live.state(model.get_base_model()).items():
        parts = name.split(".")
        if not adapters & set(parts):
            found[".".join(p for p in parts if p not in {"base_layer", "original_module"})] = tensor
    return found


def saved_tensors(model: Any) -> dict[str, torch.Tensor]:
    """What peft would write to `adapter_model.safetensors`, by the names it writes: themselves, not copies.

    Raises:
        AdapterError: peft computes what it writes, and does not keep it.
    """
    import peft

    state = live.state(model)
    own = {id(t) for t in state.values()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft on a config.json that it would look up; nothing is written here
        found: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(model, state_dict=state)
    computed = [name for name, t in found.items() if id(t) not in own]
    if computed:
        raise AdapterError(
            f"{computed[0]!r}: peft computes this tensor when it saves; give `save` and `base`, so that the adapter is "
            "measured as it is saved"
        )
    return found


def as_adapter(model: Any, tensors: Mapping[str, torch.Tensor], read: live.Read) -> Adapter:
    """The active adapter of a peft model, as `save_pretrained` would leave it.

    Raises:
        AdapterError: Its method has no ΔW that can be known.
    """
    active = model.active_adapter
    config = model.peft_config[active if isinstance(active, str) else active[0]].to_dict()
    values = json.loads(json.dumps(config, default=lambda value: sorted(value)))
    document = Document(values, "<model>: peft_config", AdapterError)
    return adapter_in_memory(live.checkpoint(tensors, Document(), read), document)
