"""Buckets (`s3://`, `gs://`, `az://`) through obstore (extra `deltaw[remote]`), which brings retries and credentials.

Credentials, regions and endpoints are read from the environment, by the names that each provider's own tools have.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import chain, islice
from typing import Any

from deltaw.errors import CheckpointError, MissingExtraError

SCHEMES = ("s3", "gs", "az")
LOGIN = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_REGION, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true",
}
PLAIN = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}  # a server of one's own
MOST = 100_000  # files below one address: more is no checkpoint
TRIES = 6  # of an answer that ends early
BACKOFF = 0.2  # seconds before the second, doubled for each one after it
RETRIES = {"max_retries": 5, "retry_timeout": timedelta(minutes=3)}


def split(address: str) -> tuple[str, str]:
    """`s3://bucket` and the path in it."""
    scheme, _, rest = address.partition("://")
    bucket, _, path = rest.partition("/")
    return f"{scheme}://{bucket}", path


def listing(address: str) -> dict[str, tuple[int, str]]:
    """The files at or below an address: their sizes and ETags, by their paths in the bucket.

    Raises:
        CheckpointError: It cannot be listed.
        MissingExtraError: obstore is not installed.
    """
    import obstore

    bucket, path = split(address)
    with _told(address):
        pages = obstore.list(_store(bucket), prefix=path.rstrip("/") or None)
        below = {o["path"]: (int(o["size"]), o["e_tag"] or "") for o in islice(chain.from_iterable(pages), MOST + 1)}
        if not below and path:  # a prefix ends with a folder's name: a file is asked for by its own
            about = obstore.head(_store(bucket), path)
            below = {path: (int(about["size"]), about["e_tag"] or "")}
    if len(below) > MOST:
        raise CheckpointError(f"{address}: more than {MOST:,} files lie there; give the directory of one checkpoint")
    return below


def read_range(address: str, offset: int, into: memoryview, etag: str) -> None:
    """Fill `into` with the bytes of a file from `offset` on.

    Args:
        address: `s3://bucket/path`.
        offset: The first byte.
        into: As long as what is asked for.
        etag: Of the file as it was opened.

    Raises:
        CheckpointError: It cannot be read, or was changed.
        MissingExtraError: obstore is not installed.
    """
    bucket, path = split(address)
    import obstore

    # obstore's own keywords
    options: dict[str, Any] = {"range": (offset, offset + len(into))}
    if etag:
        options["if_match"] = etag
    with _told(address):
        found = _body(lambda: obstore.get(_store(bucket), path, options=options))
    if len(found) != len(into):
        raise CheckpointError(f"{address}: sent {len(found):,} of {len(into):,} bytes; run again")
    into[:] = memoryview(found)


def read_small(address: str) -> bytes:
    """A small file, whole.

    Raises:
        CheckpointError: It cannot be read.
        MissingExtraError: obstore is not installed.
    """
    import obstore

    bucket, path = split(address)
    with _told(address):
        return bytes(_body(lambda: obstore.get(_store(bucket), path)))


def _body(ask: Callable[[], Any]) -> Any:
    """What an answer holds; asked for again where it ends early, which obstore no longer does once an answer began."""
    from obstore.exceptions import BaseError

    for attempt in range(TRIES - 1):
        answer = ask()
        with suppress(BaseError, OSError):
            return answer.bytes()
        time.sleep(BACKOFF * 2**attempt)
    return ask().bytes()


@cache
def _store(bucket: str) -> Any:
    from obstore.store import from_url

    # Options that are given take the place of those of the environment, so what allows http is read here.
    scheme = bucket.partition(":")[0]
    plain = os.environ.get(PLAIN[scheme], "").lower() in {"1", "true"}
    return from_url(bucket, retry_config=RETRIES, client_options={"timeout": timedelta(minutes=5), "allow_http": plain})


def require(address: str) -> None:
    """Say what to install where obstore is not.

    Raises:
        MissingExtraError: It is not.
    """
    try:
        import obstore  # noqa: F401
    except ImportError as e:
        raise MissingExtraError(
            f"{address}: buckets are read by obstore, which is not installed; pip install 'deltaw[remote]'"
        ) from e


@contextmanager
def _told(address: str) -> Iterator[None]:
    """An error of the client in one line.

    Raises:
        CheckpointError: There was one.
    """
    from obstore import exceptions

    login = LOGIN[address.partition(":")[0]]
    try:
        yield
    except FileNotFoundError as e:
        raise CheckpointError(f"{address}: is not there; check the address") from e
    except exceptions.PreconditionError as e:
        raise CheckpointError(f"{address}: was changed since it was opened; run again") from e
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as e:
        raise CheckpointError(f"{address}: may not be read; set {login}") from e
    except (exceptions.BaseError, OSError, ValueError) as e:
        why = " ".join(str(e).partition("Debug source")[0].split())[:300]
        raise CheckpointError(f"{address}: cannot be read ({why}); check the address, and set {login}") from e
