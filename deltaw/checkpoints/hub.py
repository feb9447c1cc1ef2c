"""Hugging Face Hub ids, resolved to a local directory by huggingface_hub and its cache."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from deltaw.documents import Document, read_object
from deltaw.errors import CheckpointError
from deltaw.files import cache_directory, replacing

log = logging.getLogger(__name__)

HUB_ID = re.compile(r"^([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")
# A single word is an id of the Hub's first models (`gpt2`), unless it ends as a file does.
FILE = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|gguf|json|npz|h5|onnx|msgpack|txt|csv|toml|md|zip|tar|gz)$", re.IGNORECASE
)
SMALL = ["*.json", "README.md"]
WEIGHTS = (["*.safetensors"], ["*.bin"], ["*.distcp", "*.metadata"])


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
        raise CheckpointError(
            f"{source}: no such path here, and as a Hugging Face Hub id it cannot be fetched ({first_line(e)}); "
            "check the spelling, the network or the token"
        ) from e
    return folder, folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None


class UnreachableError(CheckpointError):
    """The Hub cannot be asked."""


class Repository(NamedTuple):
    """A repository at one commit: its full id, and the sizes of its files by their paths."""

    id: str
    commit: str
    files: dict[str, int]


def repository(repo: str, revision: str) -> Repository:
    """What the Hub has under an id.

    Args:
        repo: `org/name` or `name`.
        revision: A branch, tag or commit; empty for the main branch.

    Raises:
        UnreachableError: There is no network, or offline mode.
        CheckpointError: There is no such repository or revision, or no access.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    try:
        api = HfApi(endpoint=constants.ENDPOINT)
        about = api.model_info(repo, revision=revision or None, files_metadata=True)
    except (HfHubHTTPError, HFValidationError) as e:
        raise CheckpointError(
            f"{repo}: not found on the Hugging Face Hub, or private ({first_line(e)}); check the spelling or the token"
        ) from e
    except (HTTPError, OSError) as e:
        raise UnreachableError(f"{repo}: the Hugging Face Hub cannot be reached ({first_line(e)})") from e
    if not about.sha:
        raise CheckpointError(f"{repo}: the Hugging Face Hub names no commit of it; give a revision")
    return Repository(about.id or repo, about.sha, {f.rfilename: f.size or 0 for f in about.siblings or ()})


def models(tags: Sequence[str], author: str, search: str, limit: int) -> list[str]:
    """The ids of the Hub's models that match all of it, the most downloaded first.

    Args:
        tags: As the Hub has them: `lora`, `base_model:adapter:org/name`.
        author: Of whom; empty for anybody.
        search: A part of the id; empty for any.
        limit: How many, at most.

    Raises:
        UnreachableError: There is no network, or offline mode.
        CheckpointError: The Hub refuses.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError
    from huggingface_hub.utils import logging as hub_logging

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # it tries several times, and says each: here one line says how that ended
    try:
        found = HfApi(endpoint=constants.ENDPOINT).list_models(
            filter=[*tags], author=author or None, search=search or None, sort="downloads", limit=limit
        )
        return [model.id for model in found]
    except HfHubHTTPError as e:
        raise CheckpointError(f"the Hugging Face Hub refuses to list these models ({first_line(e)})") from e
    except (HTTPError, OSError) as e:
        raise UnreachableError(f"the Hugging Face Hub cannot be reached ({first_line(e)})") from e
    finally:
        hub_logging.set_verbosity(before)


def cached(repo: str, commit: str, names: Iterable[str]) -> Path | None:
    """The snapshot of a commit in the cache, if all those files are in it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=commit, local_files_only=True, allow_patterns=[*names]))
    except (LocalEntryNotFoundError, OSError):
        return None
    return folder if all((folder / name).is_file() for name in names) else None


def base_models(repo: str, revision: str | None) -> tuple[str, ...]:
    """The ids of the models that the Hub says a model was made from, kept for the commit once they are known.

    Args:
        repo: Its id, `org/name`.
        revision: Its commit.

    Raises:
        CheckpointError: The Hub cannot be asked: no network, offline mode, no access.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    kept = _kept(repo, revision)
    if kept is not None and kept.is_file():
        return read_object(kept).texts("base_models")
    try:
        about = HfApi().model_info(repo, revision=revision or None, expand=["baseModels"])
    except (HfHubHTTPError, HFValidationError, HTTPError, OSError) as e:
        raise CheckpointError(first_line(e)) from e
    said = getattr(about, "base_models", None)
    found = Document(said if isinstance(said, dict) else {}, f"the Hub on {repo}").inners("models")
    ids = tuple(model.text("id") for model in found if model.says("id"))
    if kept is not None:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with replacing(kept) as temporary:
                temporary.write_text(json.dumps({"base_models": ids}), encoding="utf-8")
        except OSError as e:
            log.info("%s: cannot be kept (%s); the Hub is asked again next time", kept, e.strerror or e)
    return ids


def _kept(repo: str, revision: str | None) -> Path | None:
    """Where the answer on one commit is kept; None where the commit is not known, or there is no home directory."""
    if revision is None:
        return None
    try:
        return cache_directory() / "base-models" / f"{repo.replace('/', '--')}@{revision}.json"
    except RuntimeError:
        return None


def first_line(error: Exception) -> str:
    """What a library's error says first, without a full stop; the name of its class where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__).rstrip(".")
