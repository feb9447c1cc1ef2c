"""One range of a file over HTTP: asked for, checked, and asked for again where the network failed.

Only the standard library, so that every version of huggingface_hub will do. An answer counts if it is 206, says the
range that was asked for, belongs to the file that was opened (size, ETag), and holds as many bytes as it says.
"""

from __future__ import annotations

import http.client
import logging
import ssl
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit

from deltaw.errors import CheckpointError

log = logging.getLogger(__name__)
ATTEMPTS = 6
BACKOFF = 0.5  # seconds before the second attempt; twice as long before each further one
LONGEST_WAIT = 30.0
TIMEOUT = 60.0  # seconds without a byte
REDIRECTS = 5
MOVED = frozenset({301, 302, 303, 307, 308})
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524})
DENIED = frozenset({401, 403})
GONE = frozenset({404, 410})
LARGEST_SMALL = 256 << 20  # bytes of a file that is fetched whole into memory


class MissingError(CheckpointError):
    """There is no such file."""


class _Unreliable(Exception):  # noqa: N818
    """An answer that may be right next time."""


@dataclass(frozen=True)
class Target:
    """Where a file is asked for.

    Attributes:
        name: What people call it, for messages.
        url: Its address.
        headers: What is sent to the host of `url`, and to no other.
        login: The remedy where access is denied.
    """

    name: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    login: str = "check the address and who may read it"


class Answer(Protocol):
    """What is used of `http.client.HTTPResponse`."""

    status: int
    headers: http.client.HTTPMessage

    def readinto(self, into: memoryview, /) -> int:
        """Read some bytes."""

    def read(self, count: int, /) -> bytes:
        """Read up to `count` bytes."""

    def close(self) -> None:
        """Let the connection go."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """Redirects are followed by `_ask`, which sends a token to nobody else."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Follow none."""
        return


# Signed addresses that the Hub sent us to: it is not asked again for every range.
_sent_to: dict[str, str] = {}


def stat(target: Target) -> tuple[int, str]:
    """The size of a file, and what tells it from a later one (ETag, else the time of its last change; or nothing).

    Raises:
        MissingError: There is no such file.
        CheckpointError: It cannot be reached, or its server sends no ranges.
    """
    first = bytearray(1)
    answer = _persistent(target, {"Range": "bytes=0-0"}, lambda a: _fill(a, memoryview(first)))
    _, _, size = _content_range(answer, target)
    if size is None:
        raise CheckpointError(f"{target.name}: its server does not say how large it is; download it, and give the file")
    return size, _identity(answer)


def read_small(target: Target) -> bytes:
    """A small file, whole.

    Raises:
        MissingError: There is no such file.
        CheckpointError: It cannot be reached, or is not small.
    """
    found = bytearray()

    def take(answer: Answer) -> None:
        found.clear()
        while block := answer.read(1 << 20):
            found.extend(block)
            if len(found) > LARGEST_SMALL:
                raise CheckpointError(f"{target.name}: has more than {LARGEST_SMALL:,} bytes; download it")
        length = answer.headers.get("Content-Length")
        if length is not None and length.isdecimal() and len(found) < int(length):
            raise _Unreliable(f"{len(found):,} of {int(length):,} bytes came")

    _persistent(target, {}, take)
    return bytes(found)


def read_range(target: Target, offset: int, into: memoryview, size: int, identity: str) -> None:
    """Fill `into` with the bytes of a file from `offset` on.

    Args:
        target: The file.
        offset: The first byte.
        into: As long as what is asked for.
        size, identity: Of the file as it was opened.

    Raises:
        CheckpointError: It cannot be reached, was changed, or its server sends something else than was asked for.
    """
    wanted = (offset, offset + len(into) - 1)

    def take(answer: Answer) -> None:
        first, last, total = _content_range(answer, target)
        if identity and (now := _identity(answer)) and now != identity:
            raise _changed(target, f"{now}, where it was {identity}")
        if total is not None and total != size:
            raise _changed(target, f"{total:,} bytes, where it had {size:,}")
        if (first, last) != wanted:
            raise CheckpointError(
                f"{target.name}: asked for bytes {wanted[0]}-{wanted[1]}, its server sent {first}-{last}; download it"
            )
        _fill(answer, into)

    _persistent(target, {"Range": f"bytes={wanted[0]}-{wanted[1]}"}, take)


def _changed(target: Target, how: str) -> CheckpointError:
    return CheckpointError(f"{target.name}: was changed since it was opened ({how}); run again")


def _fill(answer: Answer, into: memoryview) -> None:
    done = 0
    while done < len(into):
        got = answer.readinto(into[done:])
        if not got:
            raise _Unreliable(f"{done:,} of {len(into):,} bytes came")
        done += got


def _content_range(answer: Answer, target: Target) -> tuple[int, int, int | None]:
    """First and last byte, and the size of the file where it is told.

    Raises:
        CheckpointError: The answer is no range.
    """
    if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
        raise CheckpointError(
            f"{target.name}: its server ignores Range (it answers {answer.status} and the whole file); download it, "
            "and give the file"
        )
    said = answer.headers.get("Content-Range", "")
    unit, _, rest = said.partition(" ")
    ends, _, total = rest.partition("/")
    first, _, last = ends.partition("-")
    if unit != "bytes" or not (first.isdecimal() and last.isdecimal()) or answer.headers.get("Content-Encoding"):
        raise CheckpointError(f"{target.name}: its server sends no plain range (Content-Range {said!r}); download it")
    return int(first), int(last), int(total) if total.isdecimal() else None


def _identity(answer: Answer) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


class _Take(Protocol):
    def __call__(self, answer: Answer, /) -> None: ...


def _persistent(target: Target, headers: Mapping[str, str], take: _Take) -> Answer:
    """Ask until `take` is content with the answer, a few times, longer and longer apart.

    Raises:
        MissingError: There is no such file.
        CheckpointError: It never is.
    """
    why = ""
    for attempt in range(ATTEMPTS):
        wait = BACKOFF * 2 ** (attempt - 1) if attempt else 0.0
        try:
            time.sleep(wait)
            answer = _ask(target, headers)
            try:
                take(answer)
            finally:
                answer.close()
            return answer
        except HTTPError as e:
            e.close()
            if e.code not in AGAIN:
                refused = _refused(target, e.code)
                raise refused from e
            why = f"its server answers {e.code}"
            asked = e.headers.get("Retry-After", "")
            if asked.isdecimal() and attempt + 1 < ATTEMPTS:
                time.sleep(min(float(asked), LONGEST_WAIT))
        except (URLError, OSError, http.client.HTTPException, _Unreliable) as e:
            reason = getattr(e, "reason", e)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise CheckpointError(f"{target.name}: its server's certificate is not valid ({reason})") from e
            why = str(reason) or type(reason).__name__
        log.debug("%s: %s (attempt %d of %d)", target.name, why, attempt + 1, ATTEMPTS)
    raise CheckpointError(f"{target.name}: cannot be read, {ATTEMPTS} attempts failed ({why}); try again later")


def _refused(target: Target, code: int) -> CheckpointError:
    if code in GONE:
        return MissingError(f"{target.name}: is not there (its server answers {code}); check the address")
    if code in DENIED:
        return CheckpointError(f"{target.name}: may not be read (its server answers {code}); {target.login}")
    if code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return CheckpointError(f"{target.name}: is empty, or was changed (its server answers {code}); run again")
    return CheckpointError(f"{target.name}: cannot be read, its server answers {code}; check the address")


def _ask(target: Target, headers: Mapping[str, str]) -> Answer:
    """One request, its redirects followed.

    Raises:
        HTTPError: The answer is no success.
        CheckpointError: It leads in circles, or out of HTTP.
    """
    at = _sent_to.get(target.url, target.url)
    renewed = False
    for _ in range(REDIRECTS):
        if urlsplit(at).scheme not in {"http", "https"}:
            raise CheckpointError(f"{target.name}: leads to {urlsplit(at).scheme}://, which is not followed")
        own = dict(target.headers) if _origin(at) == _origin(target.url) else {}
        request = urllib.request.Request(at, headers={"Accept-Encoding": "identity", **own, **headers})
        try:
            answer: Answer = _opener().open(request, timeout=TIMEOUT)
        except HTTPError as e:
            if e.code in MOVED and (place := e.headers.get("Location")):
                e.close()
                at = urljoin(at, place)
                continue
            if at != target.url and not renewed and e.code in DENIED | GONE:  # a signed address that has expired
                e.close()
                _sent_to.pop(target.url, None)
                at, renewed = target.url, True
                continue
            raise
        if at != target.url:
            _sent_to[target.url] = at
        return answer
    raise CheckpointError(f"{target.name}: its server sends from one address to the next; download it")


def _origin(url: str) -> tuple[str, str]:
    return urlsplit(url)[:2]


_openers: list[urllib.request.OpenerDirector] = []


def _opener() -> urllib.request.OpenerDirector:
    if not _openers:
        _openers.append(urllib.request.build_opener(_Stay))
    return _openers[0]
