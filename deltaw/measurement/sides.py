"""The two sides of an analysis, opened, and what is compared of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltaw.adapters import Adapter, is_adapter, missing_base, not_an_adapter, open_adapter, open_base, open_whole
from deltaw.adapters.plan import plan_adapter
from deltaw.checkpoints import Checkpoint, as_named, hub, locate, open_checkpoint
from deltaw.checkpoints.remote import fetch_whole, is_address
from deltaw.documents import Document
from deltaw.errors import AdapterError, CheckpointError, OptionError
from deltaw.files import expanded
from deltaw.measurement.found_base import find_base
from deltaw.pairs.plan import Plan, plan
from deltaw.pairs.selection import Selection
from deltaw.results.sources import Source


@dataclass(frozen=True)
class Sides:
    """A base and what was made of it.

    Attributes:
        base: None for an adapter alone.
        ft: A checkpoint, or an adapter of the base.
    """

    base: Checkpoint | None
    ft: Checkpoint | Adapter

    def plan(self, selection: Selection) -> Plan:
        """Which tensors are compared.

        Raises:
            DeltaWError: Nothing can be.
        """
        if isinstance(self.ft, Adapter):
            return plan_adapter(self.base, self.ft, selection)
        assert self.base is not None
        return plan(self.base, self.ft, selection)

    @property
    def sources(self) -> tuple[Source | None, Source]:
        """What was opened."""
        return (None if self.base is None else self.base.as_source()), self.ft.as_source()

    @property
    def configs(self) -> list[Document]:
        """The configs of the sides that are made of files; that of a model in memory need not be JSON."""
        return [side.config for side in (self.base, self.ft) if side is not None and side.files]


def open_sides(base: Any, ft: Any, *, download: bool = False) -> Sides:
    """Open both sides; nothing but headers is read.

    Args:
        base: Path, Hub id, `nn.Module` or state dict; None for an adapter alone.
        ft: The same, or an adapter directory or file; None where the one argument is it, and its base is to be found.
        download: Fetch what does not lie here whole, before it is opened.

    Raises:
        CheckpointError: One of them cannot be opened.
        AdapterError: The base is an adapter itself.
        OptionError: There is no base, and the other side is no adapter; or neither is given.
    """
    for side in (base, ft) if download else ():
        if isinstance(side, str) and not expanded(side).exists() and (is_address(side) or hub.looks_like_id(side)):
            fetch_whole(side)
    if ft is None:
        if base is None:
            raise OptionError("nothing to analyze; give BASE and FT, or FT alone")
        base, ft = find_base(base, download=download), base
    try:
        opened = None if base is None else open_base(base)
    except AdapterError:
        raise  # the base is one itself
    except CheckpointError as e:
        # Only what lies here: nothing is downloaded for a message.
        here = expanded(ft) if isinstance(ft, (str, Path)) else None
        if here is None or not here.exists() or not is_adapter(here):
            raise
        raise CheckpointError(missing_base(e, open_adapter(here))) from e
    if isinstance(ft, Adapter):
        return Sides(opened, ft)
    whole = None
    if isinstance(ft, (str, Path)):
        path, revision = locate(ft)
        whole = open_checkpoint(ft) if path.is_file() else None
        if is_adapter(path, whole):
            return Sides(opened, replace(open_adapter(path), source=as_named(ft), revision=revision))
    if opened is None:
        raise OptionError(f"without a base only an adapter can be measured; {not_an_adapter(ft)}")
    return Sides(opened, open_whole(ft, whole or open_checkpoint(ft)))
