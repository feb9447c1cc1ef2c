"""Hugging Face Hub ids, resolved to a local directory by huggingface_hub and its cache."""

from __future__ import annotations

import re
from pathlib import Path

from deltaw.errors import CheckpointError

HUB_ID = re.compile(r"^([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")
# A single word is an id of the Hub's first models (`gpt2`), unless it ends as a file does.
FILE = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|gguf|json|npz|h5|onnx|msgpack|txt|csv|toml|md|zip|tar|gz)$", re.IGNORECASE
)
SMALL = ["*.json"]
WEIGHTS = (["*.safetensors"], ["*.bin"])


def looks_like_id(source: str) -> bool:
    """Whether a text has the form `name`, `org/name` or `org/name@revision`."""
    return HUB_ID.match(source) is not None and not FILE.search(source)


def fetch(source: str) -> tuple[Path, str | None]:
    """The local snapshot of a Hub id, downloaded if it is not in the cache, and its commit.

    Safetensors are preferred; pickles are fetched only where there are none.

    Raises:
        CheckpointError: The id cannot be resolved: no network, no such repository or revision, no access.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = source.partition("@")
    try:
        for patterns in WEIGHTS:
            folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=[*patterns, *SMALL]))
            if any(folder.rglob(patterns[0])):
                break
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        why = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise CheckpointError(
            f"{source}: no such path here, and as a Hugging Face Hub id it cannot be fetched ({why.rstrip('.')}); "
            "check the spelling, the network or the token"
        ) from e
    return folder, folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
