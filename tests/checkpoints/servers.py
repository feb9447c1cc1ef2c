"""A server on the loopback that speaks the Hub's API, HTTP with ranges, some S3, GCS and Azure; and has faults."""

import hashlib
import json
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

COMMIT = "a" * 40
# What a fault does to one answer; it says whether it is done with it.
Fault = Callable[["Handler", bytes, int, int], bool]


@dataclass
class Server:
    """Serves `root`: `hub/ORG/NAME/…`, `web/…` and `s3/BUCKET/…`."""

    root: Path
    port: int = 0
    token: str = ""
    faults: list[Fault] = field(default_factory=list)  # of the next answers with a range, one each
    always: Fault | None = None
    sent: int = 0  # bytes of bodies
    connections: int = 0
    asked: list[str] = field(default_factory=list)
    tags: dict[str, list[str]] = field(default_factory=dict)
    relations: dict[str, list[str]] = field(default_factory=dict)
    denies_missing: bool = False
    expired: set[str] = field(default_factory=set)  # signatures that no longer hold
    commit: str = COMMIT
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reset(self) -> None:
        self.sent = self.connections = 0
        self.asked.clear()


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    server = Server(root)

    class Own(Handler):
        at = server

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:  # clients that went away, as the faults ask for
            pass

    with Quiet(("127.0.0.1", 0), Own) as http:
        server.port = http.server_port
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    at: Server
    about: dict[str, str]  # what is said of the file that is asked for
    protocol_version = "HTTP/1.1"
    timeout = 20

    def setup(self) -> None:
        super().setup()
        with self.at.lock:
            self.at.connections += 1

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        with self.at.lock:
            self.at.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if len(self.headers.get_all("User-Agent") or ()) > 1:
            self.answer(400, b"two user agents")
            return
        query = parse_qs(parts.query)
        if path == "/api/models":
            self.models(query)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.model(found[1], found[2] or "main", query)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/.+", path):
            folder = self.at.root / "hub" / found[1]
            files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
            tree = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40} for p in files]
            self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(*found.groups())
        elif found := re.fullmatch(r"/cdn/(\w+)/(.+)", path):
            if self.headers.get("Authorization"):
                self.answer(400, b"a token reached the CDN")
            elif found[1] in self.at.expired:
                self.answer(403, b"expired")
            else:
                self.file(self.at.root / "hub" / found[2])
        elif path.startswith("/web/"):
            self.file(self.at.root / path[1:])
        elif found := re.fullmatch(r"/([^/]+)/?", path):
            self.bucket(found[1], query.get("prefix", [""])[0], azure="comp" in query)
        else:
            self.file(self.at.root / "s3" / path[1:])

    def allowed(self) -> bool:
        if self.at.token and self.headers.get("Authorization") != f"Bearer {self.at.token}":
            self.answer(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            return False
        return True

    def models(self, query: dict[str, list[str]]) -> None:
        """Two on a page, as the Hub says where the next one is."""
        hub = self.at.root / "hub"
        found = [str(p.relative_to(hub)) for p in sorted(hub.glob("*/*"))]
        tags, author, search = (query.get(key, []) for key in ("filter", "author", "search"))
        found = [
            i
            for i in found
            if set(tags) <= set(self.at.tags.get(i, ())) and (not author or author[0] == i.split("/")[0])
        ]
        found = [i for i in found if not search or search[0] in i]
        start = int(query.get("cursor", ["0"])[0])
        rest = urlencode(
            [*((k, v) for k, values in query.items() for v in values if k != "cursor"), ("cursor", start + 2)]
        )
        more = {"Link": f'<{self.at.url}/api/models?{rest}>; rel="next"'} if start + 2 < len(found) else {}
        listed = [{"_id": "1", "id": i, "modelId": i} for i in found[start : start + 2]]
        self.answer(200, json.dumps(listed).encode(), {"Content-Type": "application/json", **more})

    def model(self, repo: str, revision: str, query: dict[str, list[str]]) -> None:
        folder = self.at.root / "hub" / repo
        if not folder.is_dir() or revision not in {"main", self.at.commit}:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        about: dict[str, object] = {"id": repo, "_id": "1", "sha": self.at.commit}
        if "expand" in query:
            about["baseModels"] = {
                "relation": "finetune",
                "models": [{"_id": "1", "id": i} for i in self.at.relations.get(repo, [])],
            }
        else:
            files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
            about["siblings"] = [
                {"rfilename": str(p.relative_to(folder)), "size": p.stat().st_size, "blobId": "0" * 40} for p in files
            ]
        self.answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def resolve(self, repo: str, revision: str, name: str) -> None:
        if not self.allowed():
            return
        path = self.at.root / "hub" / repo / name
        if revision not in {self.at.commit, "main"} or not path.is_file():
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        common = {"X-Repo-Commit": self.at.commit, "ETag": etag(path)}
        if path.suffix == ".safetensors":
            signature = f"s{len(self.at.expired)}"
            place = f"http://localhost:{self.at.port}/cdn/{signature}/{repo}/{name}"
            about = {"X-Linked-Size": str(path.stat().st_size), "X-Linked-ETag": etag(path), "Location": place}
            self.answer(302, b"", common | about)
        else:
            self.file(path, common)

    def bucket(self, bucket: str, prefix: str, azure: bool) -> None:
        """S3's list of version 2, which Google's XML API has too, and Azure's."""
        folder = self.at.root / "s3" / bucket
        if not folder.is_dir():
            self.answer(404, b"<Error><Code>NoSuchBucket</Code><Message>none</Message></Error>")
            return
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and str(p.relative_to(folder)).startswith(prefix)]
        listed = "".join(
            f"<Contents><Key>{p.relative_to(folder)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{etag(p)}</ETag><Size>{p.stat().st_size}</Size></Contents>"
            for p in files
        )
        if azure:
            blobs = "".join(
                f"<Blob><Name>{p.relative_to(folder)}</Name><Properties><Etag>{etag(p)}</Etag>"
                f"<Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT</Last-Modified><Content-Type>a/b</Content-Type>"
                f"<Content-Length>{p.stat().st_size}</Content-Length></Properties></Blob>"
                for p in files
            )
            self.answer(200, f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>".encode())
            return
        self.answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>".encode())

    def file(self, path: Path, headers: dict[str, str] | None = None) -> None:
        if not path.is_file():
            if self.at.denies_missing:
                self.answer(403, b"")
                return
            self.answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
            return
        about = {"ETag": etag(path), "Last-Modified": formatdate(path.stat().st_mtime, usegmt=True), **(headers or {})}
        wanted = self.headers.get("If-Match")
        if wanted and wanted != about["ETag"]:
            self.answer(412, b"")
            return
        self.about = about
        data = path.read_bytes() if path.stat().st_size < 1 << 28 else b""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            self.answer(200, data, about)
            return
        first, last = int(asked[1]), int(asked[2])
        with self.at.lock:
            fault = self.at.always or (self.at.faults.pop(0) if self.at.faults else None)
        if fault is not None and fault(self, data, first, last):
            return
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(first)
            body = file.read(last - first + 1)
        self.answer(206, body, about | {"Content-Range": f"bytes {first}-{first + len(body) - 1}/{size}"})

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            with self.at.lock:
                self.at.sent += len(body)
            self.wfile.write(body)


def etag(path: Path) -> str:
    about = path.stat()
    return f'"{hashlib.md5(f"{about.st_size} {about.st_mtime_ns}".encode()).hexdigest()}"'


def status(code: int) -> Fault:
    def fault(handler: Handler, data: bytes, first: int, last: int) -> bool:
        handler.answer(code, b"no")
        return True

    return fault


def short(handler: Handler, data: bytes, first: int, last: int) -> bool:
    """Half of what was asked for, then the connection ends."""
    size = last - first + 1
    about = handler.about | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
    handler.answer(206, data[first : first + size // 2], about, length=size)
    handler.close_connection = True
    return True


def reset(handler: Handler, data: bytes, first: int, last: int) -> bool:
    """The connection is reset."""
    handler.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()
    handler.rfile.close()
    return True


def slow(handler: Handler, data: bytes, first: int, last: int) -> bool:
    """Some bytes, and then nothing for longer than anybody waits."""
    about = handler.about | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
    handler.answer(206, data[first : first + 1], about, length=last - first + 1)
    time.sleep(0.5)
    handler.close_connection = True
    return True


def whole(handler: Handler, data: bytes, first: int, last: int) -> bool:
    """A server that does not know ranges."""
    handler.answer(200, data, handler.about)
    return True


def other(handler: Handler, data: bytes, first: int, last: int) -> bool:
    """Another range than was asked for."""
    body = data[first + 1 : last + 2]
    about = {"Content-Range": f"bytes {first + 1}-{first + len(body)}/{len(data)}"}
    handler.answer(206, body, handler.about | about)
    return True
