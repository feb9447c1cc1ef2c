"""Adapters: what a PEFT directory or a LoRA file does to each tensor of its base, as its library would merge it.

`open_adapter` reads headers; `Adapter.updates` says which base tensor gets which update. LoRA stays two thin factors
(`factored`); methods that are no product of factors become dense ΔW, one module at a time.
"""

from __future__ import annotations

from deltaw.adapters.adapter import Adapter, Matched
from deltaw.adapters.opening import (
    adapter_in_memory,
    is_adapter,
    missing_base,
    not_an_adapter,
    open_adapter,
    open_base,
    open_whole,
)

__all__ = [
    "Adapter",
    "Matched",
    "adapter_in_memory",
    "is_adapter",
    "missing_base",
    "not_an_adapter",
    "open_adapter",
    "open_base",
    "open_whole",
]
