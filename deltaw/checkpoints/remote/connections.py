"""Connections that are kept open between requests: a range of a few rows should not pay for a handshake.

Proxies are those of the environment (`HTTPS_PROXY`, `NO_PROXY`), certificates those of Python's default context.
"""

from __future__ import annotations

import base64
import http.client
import ssl
import threading
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

MOST_IDLE = 32  # connections to one host that wait for the next request


class Place(NamedTuple):
    """Where a connection leads."""

    scheme: str
    host: str
    proxy: str


@dataclass(frozen=True)
class Answer:
    """An answer whose body has not been read; `done` once it has been."""

    place: Place
    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse

    def done(self) -> None:
        """Keep the connection for the next request, if its answer was read to the end; else close it."""
        if self.response.isclosed() and not self.response.will_close:
            with _lock:
                idle = _idle.setdefault(self.place, [])
                if len(idle) < MOST_IDLE:
                    idle.append(self.connection)
                    return
        self.connection.close()


_lock = threading.Lock()
_idle: dict[Place, list[http.client.HTTPConnection]] = {}


def ask(url: str, headers: Mapping[str, str], timeout: float) -> Answer:
    """Ask for a file.

    Args:
        url: `http://…` or `https://…`.
        headers: What is sent.
        timeout: Seconds without a byte.

    Raises:
        OSError: There is no connection, or it ended.
        HTTPException: The answer is none of HTTP.
    """
    parts = urlsplit(url)
    place = Place(parts.scheme, parts.netloc, _proxy(parts))
    path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    if place.proxy and parts.scheme == "http":
        path = url
    with _lock:
        kept = _idle.get(place)
        connection = kept.pop() if kept else None
    if connection is not None:
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        try:
            return _sent(place, connection, path, headers)
        except (OSError, http.client.HTTPException):  # its server may have closed it while it waited
            connection.close()
    return _sent(place, _connect(place, timeout), path, headers)


def _sent(place: Place, connection: http.client.HTTPConnection, path: str, headers: Mapping[str, str]) -> Answer:
    try:
        extra = _login(place.proxy) if place.scheme == "http" else {}
        connection.request("GET", path, headers={**extra, **headers})
        return Answer(place, connection, connection.getresponse())
    except BaseException:
        connection.close()
        raise


def _connect(place: Place, timeout: float) -> http.client.HTTPConnection:
    at = urlsplit(f"//{place.host}")
    through = urlsplit(place.proxy) if place.proxy else at
    host = through.hostname or ""
    if place.scheme == "http":
        return http.client.HTTPConnection(host, through.port or 80, timeout=timeout)
    port = through.port or (443 if through is at else 80)
    connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=_context())
    if through is not at:
        connection.set_tunnel(at.hostname or "", at.port or 443, headers=_login(place.proxy))
    return connection


def _proxy(parts: SplitResult) -> str:
    """The proxy that the environment names for a host; empty where there is none."""
    if not parts.hostname or urllib.request.proxy_bypass(parts.netloc):
        return ""
    found = urllib.request.getproxies().get(parts.scheme, "")
    return found if "://" in found or not found else f"http://{found}"


def _login(proxy: str) -> dict[str, str]:
    user = urlsplit(proxy)
    if not user.username:
        return {}
    pair = f"{unquote(user.username)}:{unquote(user.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}


@cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()
