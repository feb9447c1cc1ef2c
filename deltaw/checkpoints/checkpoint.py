"""A checkpoint: named tensor handles, and what is known about where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deltaw.checkpoints.remote import stamps
from deltaw.documents import Document
from deltaw.results.sources import FileStamp, Source
from deltaw.types import Handle, Skipped


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: headers only, no tensor has been read.

    Attributes:
        source: Path or Hub id, as it was given.
        format: `safetensors`, `pytorch`, `diffusers`, `distcp` or `memory`; `… (sharded)` where there are shards.
        tensors: Handles by tensor name, in stored order.
        config: The model's `config.json`, empty if there is none.
        revision: The Hub commit, if it came from the Hub.
        notes: What a reader should know: a stray shard that was ignored, a wrapper that was removed.
        files: The files that were read, as they were; none for a model in memory.
        companions: Stored tensors that are no weights of the model but belong to codes (scales, zero points), by
            name, with their reason. They are not in `tensors`.
        found_by: What named it, where only the fine-tune was given; empty otherwise.
    """

    source: str
    format: str
    tensors: Mapping[str, Handle]
    config: Document = field(default_factory=Document)
    revision: str | None = None
    notes: tuple[str, ...] = ()
    files: tuple[FileStamp, ...] = ()
    companions: Mapping[str, Skipped] = field(default_factory=dict)
    found_by: str = ""

    @property
    def nbytes(self) -> int:
        """Stored bytes of all tensors; tied tensors count once."""
        return sum({h.storage: h.nbytes for h in self.tensors.values()}.values())

    def as_source(self) -> Source:
        """What `analysis.json` says of this checkpoint."""
        return Source(
            path=self.source,
            format=self.format,
            tensors=len(self.tensors),
            nbytes=self.nbytes,
            revision=self.revision,
            files=stamps(self.files),
            found_by=self.found_by,
        )
