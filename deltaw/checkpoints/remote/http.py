"""One range of a file over HTTP: asked for, checked, and asked for again where the network failed.

Only the standard library, so that every version of huggingface_hub will do. An answer counts if it is 206, says the
range that was asked for, belongs to the file that was opened (size, ETag), and holds as many bytes as it says.
"""

from __future__ import annotations

import http.client
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from urllib.parse import urljoin, urlsplit

from deltaw.checkpoints.remote.connections import Answer, ask
from deltaw.errors import CheckpointError

log = logging.getLogger(__name__)
AGENT = {"user-agent": "deltaw"}  # in lower case, as huggingface_hub has it: one of the two is sent
ATTEMPTS = 6
BACKOFF = 0.5  # seconds before the second attempt; twice as long before each further one
LONGEST_WAIT = 30.0
TIMEOUT = 60.0  # seconds without a byte
REDIRECTS = 5
MOVED = frozenset({301, 302, 303, 307, 308})
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524})
DENIED = frozenset({401, 403})
GONE = frozenset({404, 410})
LONGEST_BODY = 1 << 16  # bytes of what comes with a redirect
LARGEST_SMALL = 256 << 20  # bytes of a file that is fetched whole into memory


class MissingError(CheckpointError):
    """There is no such file."""


class DeniedError(CheckpointError):
    """A file may not be read; some servers say so of one that is not there."""


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

    def take(answer: HTTPResponse) -> None:
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

    def take(answer: HTTPResponse) -> None:
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


def _fill(answer: HTTPResponse, into: memoryview) -> None:
    done = 0
    while done < len(into):
        got = answer.readinto(into[done:])
        if not got:
            raise _Unreliable(f"{done:,} of {len(into):,} bytes came")
        done += got


def _content_range(answer: HTTPResponse, target: Target) -> tuple[int, int, int | None]:
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


def _identity(answer: HTTPResponse) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _persistent(target: Target, headers: Mapping[str, str], take: Callable[[HTTPResponse], None]) -> HTTPResponse:
    """Ask until `take` is content with the answer, a few times, longer and longer apart.

    Raises:
        CheckpointError: It never is; a `MissingError` where there is no such file.
    """
    why, wait = "", 0.0
    for attempt in range(ATTEMPTS):
        time.sleep(wait)
        wait = BACKOFF * 2**attempt
        try:
            answer = _ask(target, headers)
            try:
                status = answer.response.status
                if status < http.HTTPStatus.MULTIPLE_CHOICES:
                    take(answer.response)
                    return answer.response
                if status not in AGAIN:
                    refused = _refused(target, status)
                    raise refused
                why = f"its server answers {status}"
                asked = answer.response.headers.get("Retry-After", "")
                wait = min(float(asked), LONGEST_WAIT) if asked.isdecimal() else wait
            finally:
                answer.done()
        except ssl.SSLCertVerificationError as e:
            raise CheckpointError(f"{target.name}: its server's certificate is not valid ({e.verify_message})") from e
        except (OSError, http.client.HTTPException, _Unreliable) as e:
            why = str(e) or type(e).__name__
        log.debug("%s: %s (attempt %d of %d)", target.name, why, attempt + 1, ATTEMPTS)
    raise CheckpointError(f"{target.name}: cannot be read, {ATTEMPTS} attempts failed ({why}); try again later")


def _refused(target: Target, code: int) -> CheckpointError:
    if code in GONE:
        return MissingError(f"{target.name}: is not there (its server answers {code}); check the address")
    if code in DENIED:
        return DeniedError(f"{target.name}: may not be read (its server answers {code}); {target.login}")
    if code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return CheckpointError(f"{target.name}: is empty, or was changed (its server answers {code}); run again")
    return CheckpointError(f"{target.name}: cannot be read, its server answers {code}; check the address")


def _ask(target: Target, headers: Mapping[str, str]) -> Answer:
    """One request, its redirects followed.

    Raises:
        CheckpointError: It leads in circles, or out of HTTP.
    """
    at = _sent_to.get(target.url, target.url)
    renewed = False
    for _ in range(REDIRECTS):
        if urlsplit(at).scheme not in {"http", "https"}:
            raise CheckpointError(f"{target.name}: leads to {urlsplit(at).scheme}://, which is not followed")
        own = dict(target.headers) if _origin(at) == _origin(target.url) else {}
        answer = ask(at, {**AGENT, **own, "Accept-Encoding": "identity", **headers}, TIMEOUT)
        status, place = answer.response.status, answer.response.headers.get("Location")
        if status in MOVED and place:
            answer.response.read(LONGEST_BODY)  # nothing, or a sentence: the connection can then be kept
            answer.done()
            at = urljoin(at, place)
        elif at != target.url and not renewed and status in DENIED | GONE:  # a signed address that has expired
            answer.done()
            _sent_to.pop(target.url, None)
            at, renewed = target.url, True
        else:
            if at != target.url:
                _sent_to[target.url] = at
            return answer
    raise CheckpointError(f"{target.name}: its server redirects too many times; download it")


def _origin(url: str) -> tuple[str, str]:
    return urlsplit(url)[:2]
