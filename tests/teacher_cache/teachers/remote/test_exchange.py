"""What a server or the environment can do to requests: nothing is waited for without end, no cookie is sent back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ground.errors import InvalidInput
from teacher_cache.teachers.remote import exchange
from teacher_cache.teachers.remote.exchange import Exchange, Outgoing, Reply, read_metadata
from teacher_cache.teachers.remote.keys import Key

KEY = Key("k3yThatNobodyMaySee0123456789", "CKD_API_KEY")


@contextmanager
def answering(body: bytes, status: int = 200, drip: float | None = None) -> Iterator[tuple[str, list[str | None]]]:
    """A server: its URL, and the cookies that it was sent.

    Args:
        drip: seconds between bytes of the body.
    """
    cookies: list[str | None] = []
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cookies.append(self.headers.get("cookie"))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.send_header("set-cookie", f"a{len(cookies)}=b; Path=/")
            self.end_headers()
            for byte in body if drip else ():
                if stopped.wait(drip):
                    return
                self.wfile.write(bytes([byte]))
            if not drip:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/any", cookies
        finally:
            stopped.set()
            server.shutdown()
            thread.join()


def test_metadata_that_drip_are_given_up_in_time(monkeypatch):
    monkeypatch.setattr(exchange, "METADATA_SECONDS", 0.3)
    with answering(b"{" + b" " * 200 + b"}", drip=0.05) as (url, _), pytest.raises(InvalidInput, match="TimeoutError"):
        read_metadata(url, None, "v2:any")


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_not_ready_is_none_without_metadata(status):
    with answering(b"{}", status) as (url, _), pytest.raises(InvalidInput, match=f"status {status}"):
        read_metadata(url, None, "v2:any")


@pytest.mark.parametrize(("status", "is_identity"), [(404, True), (501, True), (503, False)])
def test_a_server_may_have_no_metadata(status, is_identity):
    with answering(b"{}", status) as (url, _):
        assert read_metadata(url, None, "v2:any", is_identity=is_identity) is None


def test_metadata_that_repeat_the_key_are_refused_without_repeating_it():
    body = b'{"inputs": [{"name": "\\u006b3yThatNobodyMaySee0123456789"}]}'
    with answering(body) as (url, _), pytest.raises(InvalidInput, match="repeats the key") as refused:
        read_metadata(url, KEY, "v2:any")
    assert not KEY.is_in(str(refused.value))


def test_cookies_are_not_kept():
    async def ask(url: str) -> list[object]:
        line = Exchange(url, None, 100)
        try:
            # More than there are connections, so that some are used again.
            return [await line.send(Outgoing("GET", url, b"", {}), 10.0) for _ in range(20)]
        finally:
            await line.close()

    with answering(b"{}") as (url, cookies):
        assert all(isinstance(reply, Reply) for reply in asyncio.run(ask(url)))
    assert cookies == [None] * 20


def test_a_key_without_encryption_is_warned_of(caplog):
    for url in ("http://127.0.0.1:1/any", "https://example.invalid/any"):
        Exchange(url, KEY, 100)
    assert not caplog.messages
    Exchange("http://example.invalid/any", KEY, 100)
    assert caplog.messages == [
        "Key($CKD_API_KEY) goes to example.invalid without encryption; use https there if it can"
    ]


@pytest.mark.parametrize("proxy", ["bogus://user:hunter2@127.0.0.1:1", "http://user:hunter2@[:::"])
def test_a_proxy_that_cannot_be_is_refused_before_anything_is_charged(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(InvalidInput, match="the proxies") as refused:
        Exchange("http://example.invalid/any", None, 100)
    assert "hunter2" not in str(refused.value)
    Exchange("http://127.0.0.1:1/any", None, 100)
