"""Checkpoints that lie elsewhere (`hf://`, Hub ids, `https://`, `s3://`, `gs://`, `az://`), read where they lie.

A remote directory is mirrored: its small files (configs, indices, the card) are fetched, and each file of weights has
an empty file in its place. Everything that opens directories works on the mirror; whoever opens such a place is given
the `RemoteFile` that belongs there, whose header and tensors are read by ranges. What was seen first is pinned: a
commit of the Hub, the size and ETag of a file.
"""

from deltaw.checkpoints.remote.file import PARALLEL, RemoteFile, hub_parts, named
from deltaw.checkpoints.remote.listing import hub_address, is_address
from deltaw.checkpoints.remote.mirror import fetch_whole, mirrored, remote_at, stamps

__all__ = [
    "PARALLEL",
    "RemoteFile",
    "fetch_whole",
    "hub_address",
    "hub_parts",
    "is_address",
    "mirrored",
    "named",
    "remote_at",
    "stamps",
]
