"""One request and its answer, on httpx: nothing is repeated, no redirect is followed, no more is read than is allowed.

Whether anything was sent decides who may be billed for a fault: httpcore says when the first byte of a request leaves.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.util import find_spec
from typing import Any

import httpx
import msgspec

from ground.errors import InvalidInput
from teacher_cache.teachers.attempts import Failure
from teacher_cache.teachers.remote import faults
from teacher_cache.teachers.remote.keys import Key, identifier

log = logging.getLogger(__name__)

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_POOLS = 8
_SENDING = "send_request_headers.started"
METADATA_SECONDS = 10.0
_MOST_METADATA_BYTES = 4 << 20
_REQUEST_IDS = ("x-request-id", "request-id", "apim-request-id", "x-amzn-requestid")
# Bytes on their way are what was asked for: a packed answer could be a thousand times larger than it looks.
_HEADERS = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "teacher-cache"}

# httpcore looks for it a dozen times a request, and where it is not installed each look walks the whole import path;
# that it is not there is noted once.
if find_spec("sniffio") is None:
    sys.modules["sniffio"] = None  # type: ignore[assignment]
# What they log of requests and answers could hold what a server repeats of a key.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request.

    Args:
        headers: beside those of every request and the key's.
        query: name -> value.
    """

    method: str
    url: str
    content: bytes
    headers: Mapping[str, str]
    query: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


class Exchange:
    """Requests to one server.

    Args:
        url: that requests go to.
        key: None for a server that wants none.
        most_bytes: of an answer.

    Raises:
        InvalidInput: no request can be made to it; better now than when one is charged.
    """

    def __init__(self, url: str, key: Key | None, most_bytes: int) -> None:
        _require_sendable(url)
        parts = httpx.URL(url)
        if key is not None and parts.scheme == "http" and parts.host not in _LOOPBACK:
            log.warning("%s goes to %s without encryption; use https there if it can", key, parts.host)
        self.key, self._most_bytes = key, most_bytes
        self._clients: list[httpx.AsyncClient] = []
        self._turn = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(self, outgoing: Outgoing, deadline: float) -> Reply | Failure:
        """One request; see `RemoteTeacher.ask`."""
        started, sent = time.monotonic(), False

        async def trace(event: str, _: Any) -> None:
            nonlocal sent
            sent = sent or event.endswith(_SENDING)

        def failed(why: str) -> Failure:
            seconds = time.monotonic() - started
            return faults.broken_off(why, seconds) if sent else faults.not_sent(f"{why} (nothing was sent)", seconds)

        try:
            async with asyncio.timeout(deadline):
                return await self._send(outgoing, trace, started)
        except TimeoutError:
            return failed(f"no answer within {deadline:g} s" if sent else f"no connection within {deadline:g} s")
        except httpx.HTTPError as error:
            # Its own text may hold what the server said.
            return failed(f"the connection failed ({type(error).__name__})")

    async def _send(self, outgoing: Outgoing, trace: Any, started: float) -> Reply | Failure:
        client = self._client_here(outgoing.url)
        request = client.build_request(
            outgoing.method,
            outgoing.url,
            content=outgoing.content,
            params=outgoing.query,
            headers={**outgoing.headers, **({} if self.key is None else self.key.headers)},
            extensions={"trace": trace},
        )
        response = await client.send(request, stream=True)
        try:
            body = bytearray()
            if response.headers.get("content-encoding", "identity") != "identity":
                return self._unread("the server packed its answer, which was not asked for", response, started)
            async for part in response.aiter_raw():
                body += part
                if len(body) > self._most_bytes:
                    why = f"the answer is longer than {self._most_bytes} bytes"
                    return self._unread(why, response, started)
            return Reply(response.status_code, response.headers, bytes(body), time.monotonic() - started)
        finally:
            await response.aclose()

    def _unread(self, why: str, response: httpx.Response, started: float) -> Failure:
        seconds, own = time.monotonic() - started, self.request_id(response.headers)
        if response.status_code != httpx.codes.OK:
            return faults.of_status(response.status_code, response.headers, seconds, request_id=own)
        return faults.unreadable(why, seconds, request_id=own)

    def request_id(self, headers: Mapping[str, str], further: str | None = None) -> str | None:
        """What the server calls a request, by its headers.

        Args:
            further: a header that is looked at first.
        """
        names = (*(() if further is None else (further,)), *_REQUEST_IDS)
        return next((found for name in names if (found := identifier(headers.get(name), self.key))), None)

    def _client_here(self, url: str) -> httpx.AsyncClient:
        """The next one of this event loop: connections belong to one.

        Each request makes a pool look at its connections two by two, so several small pools take less time than one.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            context = httpx.create_ssl_context()
            self._clients = [httpx.AsyncClient(**_settings(url), verify=context, timeout=None) for _ in range(_POOLS)]
            self._loop = loop
        self._turn = (self._turn + 1) % _POOLS
        return self._clients[self._turn]

    async def close(self) -> None:
        """Give connections back."""
        if self._loop is asyncio.get_running_loop():
            for client in self._clients:
                await client.aclose()
        self._clients, self._loop = [], None


def _settings(url: str) -> dict[str, Any]:
    """Of a client: as many connections as there are requests, which the builder limits."""
    return {
        "headers": _HEADERS,
        "follow_redirects": False,
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=15.0),
        # What a server sets would be sent with every other request, and grow as long as it likes.
        "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=())),
        # A proxy of the environment is for other machines.
        "trust_env": httpx.URL(url).host not in _LOOPBACK,
    }


def _require_sendable(url: str) -> None:
    """Refuse an address, or proxies and certificates of the environment, that httpx makes no client of."""
    try:
        httpx.Client(**_settings(url)).close()
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        raise InvalidInput(
            f"no request can be made to this teacher ({type(error).__name__}); correct its host, or the proxies and "
            "certificates in the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE), or name its host in "
            "NO_PROXY"
        ) from None


def read_metadata(url: str, key: Key | None, who: str, *, is_identity: bool = True) -> Any:
    """The JSON document at a URL, by one request that is no call; None where the server has none there.

    Args:
        who: is asked, for messages.
        is_identity: whether the teacher is known by what they say.

    Raises:
        InvalidInput: the server cannot be reached, is not ready to say who it is, wants a key, or answers with what
            cannot be read.
    """
    _require_sendable(url)
    try:
        # In a thread: a notebook has an event loop of its own.
        with ThreadPoolExecutor(1) as thread:
            status, body = thread.submit(lambda: asyncio.run(_fetched(url, key))).result()
    except (TimeoutError, httpx.HTTPError) as error:
        why = type(error).__name__
        raise InvalidInput(f"{who} cannot be reached ({why}); start its server, or name another one") from None
    if status in (401, 403):
        raise InvalidInput(f"{who} wants a key, or another one (status {status}); set CKD_API_KEY")
    is_passing = status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR
    if is_identity and is_passing and status != httpx.codes.NOT_IMPLEMENTED:
        # Not as if it had none: without its versions it would be another teacher.
        raise InvalidInput(f"{who} cannot say now what it is (status {status}); try again later")
    if status != httpx.codes.OK:
        return None
    try:
        if len(body) > _MOST_METADATA_BYTES:
            raise ValueError
        document = msgspec.json.decode(body)
        is_repeated = key is not None and key.is_in(msgspec.json.encode(document).decode())
    except (ValueError, OverflowError, RecursionError):
        raise InvalidInput(f"{who} says of itself what is no JSON document; name another server") from None
    if is_repeated:
        # Names that it says are shown, and kept.
        raise InvalidInput(f"{who} repeats the key in what it says of itself; name another server")
    return document


async def _fetched(url: str, key: Key | None) -> tuple[int, bytes]:
    """Status and body, which is cut off where it is too long; all of it in time, however slowly it comes."""
    async with (
        asyncio.timeout(METADATA_SECONDS),
        httpx.AsyncClient(**_settings(url), timeout=None) as client,
        client.stream("GET", url, headers={} if key is None else key.headers) as response,
    ):
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > _MOST_METADATA_BYTES:
                break
        return response.status_code, bytes(body)
