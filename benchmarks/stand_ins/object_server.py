"""A service that speaks as much of S3 as a store needs, in this process, and fails as it is told to.

Signatures are not checked. moto's server is the other stand-in: slower to start, and nearer to the real one.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

BUCKET = "bucket"


@dataclass(slots=True)
class ObjectService:
    """What is kept, and how requests are answered.

    Args:
        objects: key -> content, in the one bucket.
        conditional: whether If-None-Match is heeded.
        writable: whether anything can be written.
        slow_seconds: before each answer.
        unavailable: whether the request of this number, from 0, is answered with 503.
        longer: bytes that each answer to a range has too many.
    """

    url: str
    objects: dict[str, bytes] = field(default_factory=dict)
    conditional: bool = True
    writable: bool = True
    slow_seconds: float = 0.0
    unavailable: Callable[[int], bool] = lambda number: False
    longer: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """What a client of it is configured by."""
        keys = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "VERYSECRET"}
        return {**keys, "AWS_ENDPOINT_URL": self.url, "AWS_REGION": "us-east-1", "NO_PROXY": "127.0.0.1"}


@contextmanager
def object_service() -> Iterator[ObjectService]:
    """One that is served until the block ends."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.service = ObjectService(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.service
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    service: ObjectService

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: object) -> None:
        """Nothing is printed."""

    def do_PUT(self) -> None:
        """Write an object."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        service = self.server.service
        if not self._is_served():
            return
        with service.lock:
            if not service.writable:
                self._answer(403, _error("AccessDenied"))
            elif service.conditional and self.headers.get("If-None-Match") == "*" and self._key in service.objects:
                self._answer(412, _error("PreconditionFailed"))
            else:
                service.objects[self._key] = content
                self._answer(200, b"", ETag='"1"')

    def do_GET(self) -> None:
        """Read an object, or list them."""
        if not self._is_served():
            return
        service = self.server.service
        if "list-type" in self.path:
            prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
            with service.lock:
                found = {key: len(content) for key, content in service.objects.items() if key.startswith(prefix)}
            self._answer(200, _listing(found))
            return
        content = service.objects.get(self._key)
        if content is None:
            self._answer(404, _error("NoSuchKey"))
        elif (asked := self.headers.get("Range")) is None:
            self._answer(200, content, ETag='"1"', **_DATED)
        else:
            first, last = (int(text) for text in asked.removeprefix("bytes=").split("-"))
            if first >= len(content):
                self._answer(416, _error("InvalidRange"))
                return
            last = min(last, len(content) - 1)
            shown = f"bytes {first}-{last}/{len(content)}"
            given = content[first : last + 1] + b"x" * service.longer
            self._answer(206, given, ETag='"1"', **{"Content-Range": shown}, **_DATED)

    def do_POST(self) -> None:
        """Forget the objects that are named."""
        content = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self._is_served():
            with self.server.service.lock:
                for key in re.findall("<Key>(.*?)</Key>", content):
                    self.server.service.objects.pop(unescape(key), None)
            self._answer(200, b"<DeleteResult></DeleteResult>")

    @property
    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")

    def _is_served(self) -> bool:
        """Whether to go on: the bucket is there, and this is not a request that is to fail."""
        service = self.server.service
        time.sleep(service.slow_seconds)
        with service.lock:
            number = len(service.requests)
            service.requests.append((self.command, self._key))
        if service.unavailable(number):
            self._answer(503, _error("SlowDown"))
        elif unquote(urlsplit(self.path).path).split("/")[1] != BUCKET:
            self._answer(404, _error("NoSuchBucket"))
        else:
            return True
        return False

    def _answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


_DATED = {"Last-Modified": "Fri, 27 Nov 2026 10:00:00 GMT"}


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


def _listing(sizes: dict[str, int]) -> bytes:
    items = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-27T10:00:00.000Z</LastModified><ETag>1</ETag>"
        f"<Size>{size}</Size></Contents>"
        for key, size in sorted(sizes.items())
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()
