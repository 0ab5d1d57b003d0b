"""A proxy in front of an HTTP server, on a loopback address: it loses, delays and refuses requests as it is told to."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What becomes of a request: refused with 503; answered late; the connection cut before the server sees it, or after it
# has done what it was asked for.
FAULTS = ("503", "slow", "cut before", "cut after")
_SLOW_SECONDS = 0.5
_SECONDS = 30.0
_PER_CONNECTION = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass(slots=True)
class FaultyProxy:
    """What it does.

    Args:
        server: port of the server behind it.
        shares: fault -> share of the requests that meet it.
        met: how many did.
    """

    server: int
    shares: Mapping[str, float]
    random: random.Random
    port: int = 0
    met: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self) -> str:
        """What the next request meets; "" is nothing."""
        with self.lock:
            faults = list(self.shares)
            rest = max(0.0, 1.0 - sum(self.shares.values()))
            chosen = self.random.choices([*faults, ""], [*self.shares.values(), rest])[0]
            self.met[chosen] += 1
            return chosen


@contextmanager
def faulty_proxy(server: int, shares: Mapping[str, float], seed: int = 0) -> Iterator[FaultyProxy]:
    """One that is served until the block ends."""
    listening = _Server(("127.0.0.1", 0), _Handler)
    listening.proxy = FaultyProxy(server, shares, random.Random(seed), listening.server_port)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield listening.proxy
    finally:
        listening.shutdown()
        listening.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultyProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: object) -> None:
        """Nothing is printed."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.proxy.next_fault()
        if fault == "503":
            self._answer(503, {}, b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>")
        elif fault == "cut before":
            self.close_connection = True
        else:
            time.sleep(_SLOW_SECONDS if fault == "slow" else 0.0)
            status, headers, content = self._asked(body)
            if fault == "cut after":
                self.close_connection = True
            else:
                self._answer(status, headers, content)

    def do_GET(self) -> None:
        """See `FAULTS`; so are the others."""
        self._pass_on()

    def do_PUT(self) -> None:
        """See `do_GET`."""
        self._pass_on()

    def do_POST(self) -> None:
        """See `do_GET`."""
        self._pass_on()

    def do_HEAD(self) -> None:
        """See `do_GET`."""
        self._pass_on()

    def do_DELETE(self) -> None:
        """See `do_GET`."""
        self._pass_on()

    def _asked(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.proxy.server, timeout=_SECONDS)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _PER_CONNECTION}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _PER_CONNECTION:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
