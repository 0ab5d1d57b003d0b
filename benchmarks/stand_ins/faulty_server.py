"""A server that answers like a paid one and fails like one, and counts by itself what it bills, by input.

It speaks chat completions (`/v1/chat/completions`), the Open Inference Protocol (`/v2/models/any`) and scores of its
own (`/scores`), on a loopback address, for a bounded time. Which fault an input meets on which attempt follows from the
seed, so the same requests fail the same way in whatever order they come.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import io
import json
import math
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from typing import Any

import numpy as np
from PIL import Image

HOST = "127.0.0.1"
_MOST_BODY = 256 << 20
_MOST_HEAD = 64 << 10
# What comes before an answer is late, so that others overtake it.
_LATE_SECONDS = 0.2
_SHARE_ELSEWHERE = 0.02

# Fault -> whether the server bills it; a share is the share of these attempts that it does.
FAULTS: Mapping[str, float] = {
    "429": 0.0,
    "429-seconds": 0.0,
    "429-date": 0.0,
    "400": 0.0,
    "500": 0.5,
    "503": 0.5,
    "redirect": 0.0,
    "hang-before": 1.0,
    "hang-within": 1.0,
    "cut-before": 0.5,
    "cut-within": 1.0,
    "invalid-json": 1.0,
    "nan": 1.0,
    "short": 1.0,
    "foreign": 1.0,
    "deep": 1.0,
    "endless": 1.0,
    "packed": 1.0,
    "refusal": 1.0,
    "late": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What a server does.

    Args:
        classes: their names.
        faults: name of `FAULTS` -> share of the attempts that meet it.
        first: what the first attempts meet, in the order in which they come, before `faults` count; "" is none.
        latency: seconds before each answer.
        hang: seconds that a hanging answer hangs.
        retry_seconds: that a 429 asks for.
        key: that it wants; None for none.
        repeats_key: puts what it was sent as a key into everything that it answers, as no server should.
        changes_after: requests after which another `system_fingerprint`, or version, answers.
        splits_digits: has a token for each digit, and not for whole numbers.
        gives_logprobs: whether chat completions have them.
        size: of images that the model of the Open Inference Protocol takes; -1 is any.
        datatype: of its input.
        has_binary: whether it takes tensors as bytes.
        has_metadata: whether it says what it takes.
    """

    classes: tuple[str, ...] = tuple(f"class {place}" for place in range(10))
    seed: int = 0
    faults: Mapping[str, float] = field(default_factory=dict)
    first: tuple[str, ...] = ()
    latency: float = 0.0
    hang: float = 5.0
    retry_seconds: float = 0.05
    key: str | None = None
    repeats_key: bool = False
    changes_after: int | None = None
    splits_digits: bool = False
    gives_logprobs: bool = True
    size: int = -1
    datatype: str = "FP32"
    has_binary: bool = False
    has_metadata: bool = True

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """What it thinks of an image (3, h, w) uint8, or of the numbers that were made of it: (K,) float64."""
        generator = np.random.default_rng(int.from_bytes(hashlib.sha256(pixels.tobytes()).digest()[:8], "big"))
        return np.round(generator.normal(scale=2.0, size=len(self.classes)), 4)


@dataclass
class Counts:
    """What a server counted.

    Args:
        requests: that came, whatever became of them.
        attempts: by input, the SHA-256 of what the server was shown; of a batch each image is one.
        billed: by input.
        faults: met, by name.
        most_at_once: requests that were under way at the same time.
    """

    requests: int = 0
    attempts: dict[str, int] = field(default_factory=dict)
    billed: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    most_at_once: int = 0

    @property
    def total_billed(self) -> int:
        """Over all inputs."""
        return sum(self.billed.values())


class _Cut(Exception):
    """The connection is broken off."""


class FaultyServer:
    """See the module; use `running`, or `running_apart` for one in a process of its own."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour, self.counts, self.port = behaviour, Counts(), 0
        self._under_way = 0
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://{HOST}:{self.port}"

    async def serve(self, seconds: float, ready: threading.Event | None = None, port: int = 0) -> None:
        """Serve until the time is over, or `stop`."""
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(self._connection, HOST, port, limit=_MOST_HEAD)
        self.port = server.sockets[0].getsockname()[1]
        if ready is not None:
            ready.set()
        else:
            sys.stdout.write(f"{self.port}\n")
            sys.stdout.flush()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        server.close()
        # Connections that are open end with the loop.
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def stop(self) -> None:
        """From any thread."""
        if self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ", 2)
                headers = dict(line.lower().split(":", 1) for line in head[1:] if ":" in line)
                headers = {name: value.strip() for name, value in headers.items()}
                given = next((line.partition(":")[2].strip() for line in head if line.lower().startswith("auth")), "")
                length = int(headers.get("content-length", 0))
                if length > _MOST_BODY:
                    return
                body = await reader.readexactly(length)
                await self._answer(writer, method, path.partition("?")[0], headers, given, body)
        except (asyncio.IncompleteReadError, ConnectionError, _Cut, asyncio.CancelledError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        method: str,
        path: str,
        headers: Mapping[str, str],
        given: str,
        body: bytes,
    ) -> None:
        behaviour = self.behaviour
        if method == "GET":
            await self._get(writer, path)
            return
        self.counts.requests += 1
        self._under_way += 1
        self.counts.most_at_once = max(self.counts.most_at_once, self._under_way)
        try:
            if behaviour.key is not None and given != f"Bearer {behaviour.key}":
                await self._send(writer, 401, {"error": {"message": f"no such key: {given}"}}, given)
                return
            inputs, make = _asked(path, headers, body, behaviour)
            fault = self._fault(inputs)
            if behaviour.latency or fault == "late":
                await asyncio.sleep(behaviour.latency + (_LATE_SECONDS if fault == "late" else 0.0))
            await self._said(writer, fault, make, given)
        finally:
            self._under_way -= 1

    async def _get(self, writer: asyncio.StreamWriter, path: str) -> None:
        behaviour = self.behaviour
        if path == "/counts":
            await self._send(writer, 200, asdict(self.counts))
        elif path == "/v2":
            extensions = ["binary_tensor_data"] if behaviour.has_binary else []
            await self._send(writer, 200, {"name": "faulty", "version": "1", "extensions": extensions})
        elif path.startswith("/v2/models/") and behaviour.has_metadata:
            size = behaviour.size
            shape = [-1] if behaviour.datatype == "BYTES" else [-1, 3, size, size]
            given = {"name": "images", "datatype": behaviour.datatype, "shape": shape}
            said = {"name": "logits", "datatype": "FP32", "shape": [-1, len(behaviour.classes)]}
            await self._send(
                writer, 200, {"name": "any", "versions": ["1"], "platform": "", "inputs": [given], "outputs": [said]}
            )
        else:
            await self._send(writer, 404, {"error": "nothing is there"})

    def _fault(self, inputs: Sequence[str]) -> str:
        """What becomes of a request, by its first input and how often that came before; counted."""
        behaviour, counts = self.behaviour, self.counts
        draw = random.Random(f"{behaviour.seed} {inputs[0]} {counts.attempts.get(inputs[0], 0)}")
        if counts.requests <= len(behaviour.first):
            fault = behaviour.first[counts.requests - 1]
        else:
            names = [*behaviour.faults, ""]
            shares = [*behaviour.faults.values(), max(0.0, 1.0 - sum(behaviour.faults.values()))]
            fault = draw.choices(names, shares)[0]
        is_billed = draw.random() < FAULTS.get(fault, 1.0)
        for one in inputs:
            counts.attempts[one] = counts.attempts.get(one, 0) + 1
            if is_billed:
                counts.billed[one] = counts.billed.get(one, 0) + 1
        if fault:
            counts.faults[fault] = counts.faults.get(fault, 0) + 1
        return fault

    async def _said(self, writer: asyncio.StreamWriter, fault: str, make: Any, given: str) -> None:
        behaviour = self.behaviour
        after = behaviour.changes_after
        version = "2" if after is not None and self.counts.requests > after else "1"
        if fault in ("hang-before", "cut-before"):
            await asyncio.sleep(behaviour.hang if fault == "hang-before" else 0)
            raise _Cut
        if fault in ("429", "429-seconds", "429-date", "400", "500", "503", "redirect"):
            further = {
                "429-seconds": {"retry-after": f"{behaviour.retry_seconds:g}"},
                "429-date": {"retry-after": formatdate(time.time() + max(1.0, behaviour.retry_seconds), usegmt=True)},
                "redirect": {"location": f"http://localhost:{self.port}/elsewhere"},
            }.get(fault, {})
            status = 307 if fault == "redirect" else int(fault[:3])
            await self._send(writer, status, {"error": {"message": f"{fault} {given}"}}, given, further)
            return
        document = make(fault, version, given if behaviour.repeats_key else "")
        text = json.dumps(document).encode()
        text = _damaged(fault, text)
        packed = {"content-encoding": "gzip"} if fault == "packed" else {}
        head = _head(200, len(text), self._names(given) | packed)
        if fault in ("hang-within", "cut-within"):
            writer.write(head + text[: len(text) // 2])
            await writer.drain()
            await asyncio.sleep(behaviour.hang if fault == "hang-within" else 0.01)
            raise _Cut
        writer.write(head + text)
        await writer.drain()

    def _names(self, given: str) -> dict[str, str]:
        own = given if self.behaviour.repeats_key and given else f"req-{self.counts.requests}"
        return {"x-request-id": own}

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        document: Any,
        given: str = "",
        further: Mapping[str, str] | None = None,
    ) -> None:
        text = json.dumps(document).encode()
        writer.write(_head(status, len(text), {**self._names(given), **(further or {})}) + text)
        await writer.drain()


def _damaged(fault: str, text: bytes) -> bytes:
    if fault == "invalid-json":
        return text[: len(text) // 2] + b"}"
    if fault == "deep":
        return b"[" * 200_000 + b"]" * 200_000
    return b" " * (24 << 20) + text if fault == "endless" else text


def _head(status: int, length: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def input_of(pixels: np.ndarray) -> str:
    """What a server counts an image by, or the numbers that were made of one."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _pixels(file: bytes) -> np.ndarray:
    """(3, h, w) uint8 of a PNG file."""
    image = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _asked(path: str, headers: Mapping[str, str], body: bytes, behaviour: Behaviour) -> tuple[list[str], Any]:
    """The inputs of a request, and what makes its answer of a fault, a version, and a key to repeat."""
    if path.endswith("/infer"):
        shown = _tensors(headers, body)
        name = path.split("/")[3]
        identifier = json.loads(_json_part(headers, body)).get("id", "")
        return [input_of(one) for one in shown], lambda fault, version, key: _inferred(
            shown, behaviour, name, identifier, fault, version
        )
    if path.endswith("/chat/completions"):
        request = json.loads(body)
        parts = {part["type"]: part for part in request["messages"][0]["content"]}
        pixels = _pixels(base64.b64decode(parts["image_url"]["image_url"]["url"].partition("base64,")[2]))
        return [input_of(pixels)], lambda fault, version, key: _completion(
            request, pixels, behaviour, fault, version, key
        )
    pixels = _pixels(_file_in(headers, body))
    return [input_of(pixels)], lambda fault, version, key: _scores(pixels, behaviour, fault, version, key)


def _file_in(headers: Mapping[str, str], body: bytes) -> bytes:
    kind = headers.get("content-type", "")
    if kind.startswith("application/json"):
        return base64.b64decode(json.loads(body)["image"]["b64"])
    if kind.startswith("multipart/form-data"):
        return body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
    return body


def _json_part(headers: Mapping[str, str], body: bytes) -> bytes:
    return body[: int(headers.get("inference-header-content-length", len(body)))]


def _tensors(headers: Mapping[str, str], body: bytes) -> list[np.ndarray]:
    """Each image of a request, as it is shown to the model."""
    head = _json_part(headers, body)
    given = json.loads(head)["inputs"][0]
    if given["datatype"] == "BYTES":
        return [_pixels(base64.b64decode(file)) for file in given["data"]]
    kind = {"FP32": np.float32, "UINT8": np.uint8}[given["datatype"]]
    flat = np.asarray(given["data"], dtype=kind) if "data" in given else np.frombuffer(body[len(head) :], dtype=kind)
    return list(flat.reshape(given["shape"]))


def _inferred(
    shown: Sequence[np.ndarray], behaviour: Behaviour, name: str, identifier: str, fault: str, version: str
) -> dict[str, Any]:
    rows = [behaviour.logits(one).tolist() for one in shown]
    if fault == "nan":
        rows[0][0] = float("nan")
    if fault == "foreign":
        rows[0][0] = "cat"
    if fault in ("short", "fewer"):
        rows[0].pop()
    output = {
        "name": "logits",
        "datatype": "FP32",
        "shape": [len(rows), len(behaviour.classes)],
        "data": [value for row in rows for value in row],
    }
    return {"model_name": name, "model_version": version, "id": identifier, "outputs": [output]}


def _scores(pixels: np.ndarray, behaviour: Behaviour, fault: str, version: str, key: str) -> dict[str, Any]:
    logits = behaviour.logits(pixels)
    shares = np.exp(logits - np.logaddexp.reduce(logits)).tolist()
    names = list(behaviour.classes)
    if fault == "nan":
        shares[0] = float("nan")
    if fault == "foreign":
        names[0] = f"no class {key}"
    if fault in ("short", "fewer"):
        names, shares = names[:1], shares[:1]
    best = sorted(zip(names, shares, strict=True), key=lambda pair: -pair[1])
    return {
        "model": {"version": key or f"v{version}"},
        "id": key or "scored",
        "label": f"no class {key}" if fault == "foreign" else best[0][0],
        "scores": shares,
        "logits": logits.tolist(),
        "by_name": dict(zip(names, shares, strict=True)),
        "predictions": [{"label": name, "score": score} for name, score in best],
        "usage": {"in": 7, "out": 3},
    }


def _completion(
    request: Mapping[str, Any], pixels: np.ndarray, behaviour: Behaviour, fault: str, version: str, key: str
) -> dict[str, Any]:
    logits = behaviour.logits(pixels)
    logprobs = logits - np.logaddexp.reduce(logits)
    width = len(str(len(logits) - 1))
    words = [f"{place:0{width}}" for place in range(len(logits))]
    answer = words[int(logits.argmax())]
    message: dict[str, Any] = {"role": "assistant", "content": answer, "refusal": None}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    if fault == "refusal":
        message |= {"content": None, "refusal": f"I will not. {key}"}
    elif fault == "foreign":
        message["content"] = f"a lovely picture {key}"
    if request.get("logprobs") and behaviour.gives_logprobs and fault != "refusal":
        count = 1 if fault in ("short", "fewer") else request["top_logprobs"]
        content = _tokens(words, logprobs, answer, count, split=behaviour.splits_digits)
        if fault == "foreign":
            content = [_token("The", {"The": 0.0, **{f"x{place}": -30.0 for place in range(count)}}, count)]
        if fault == "nan":
            content[0]["top_logprobs"][0]["logprob"] = float("nan")
        choice["logprobs"] = {"content": content}
    return {
        "id": key or f"chatcmpl-{input_of(pixels)[:12]}",
        "object": "chat.completion",
        "model": key or f"{request['model']}-2026",
        "system_fingerprint": key or f"fp_{version}",
        "choices": [choice],
        "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
    }


def _tokens(
    words: Sequence[str], logprobs: np.ndarray, answer: str, count: int, *, split: bool
) -> list[dict[str, Any]]:
    """The tokens of an answer: a whole number, or a digit each; some mass is on words that are none of it."""
    mine = math.log1p(-_SHARE_ELSEWHERE)
    others = {"The": math.log(_SHARE_ELSEWHERE / 2), "A": math.log(_SHARE_ELSEWHERE / 4)}
    if not split:
        listed = {word: mine + float(value) for word, value in zip(words, logprobs, strict=True)} | others
        return [_token(answer, listed, count)]
    found = []
    for place in range(len(answer)):
        begun = [number for number, word in enumerate(words) if word.startswith(answer[:place])]
        total = np.logaddexp.reduce([logprobs[number] for number in begun])
        listed = {}
        for number in begun:
            digit, value = words[number][place], float(logprobs[number] - total)
            listed[digit] = float(np.logaddexp(listed.get(digit, -math.inf), value))
        if place == 0:
            listed = {digit: mine + value for digit, value in listed.items()} | others
        found.append(_token(answer[place], listed, count))
    return found


def _token(own: str, listed: Mapping[str, float], count: int) -> dict[str, Any]:
    """A token with the most probable ones in its place; a vocabulary is always larger than what is asked for."""
    filled = {**{f"~{number}": -40.0 - number for number in range(count)}, **listed}
    best = sorted(filled.items(), key=lambda pair: -pair[1])[:count]
    return {
        "token": own,
        "logprob": listed[own],
        "top_logprobs": [{"token": token, "logprob": value} for token, value in best],
    }


@contextmanager
def running(behaviour: Behaviour | None = None, seconds: float = 120.0) -> Iterator[FaultyServer]:
    """A server in a thread of this process."""
    server, ready = FaultyServer(behaviour or Behaviour()), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(seconds, ready)), daemon=True)
    thread.start()
    assert ready.wait(10), "it did not start"
    try:
        yield server
    finally:
        server.stop()
        thread.join(10)


@dataclass(frozen=True)
class Apart:
    """A server in a process of its own."""

    url: str
    process: subprocess.Popen[str]

    def counts(self) -> Counts:
        """What it counted until now."""
        with urllib.request.urlopen(f"{self.url}/counts", timeout=10) as answer:
            return Counts(**json.load(answer))


@contextmanager
def running_apart(behaviour: Behaviour | None = None, seconds: float = 120.0, port: int = 0) -> Iterator[Apart]:
    """The same in a process of its own, which several builders can ask, and which takes no time from them."""
    document = json.dumps(asdict(behaviour or Behaviour()))
    command = [sys.executable, "-c", "from benchmarks.stand_ins.faulty_server import main; main()"]
    arguments = [document, "--seconds", str(seconds), "--port", str(port)]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Apart(f"http://{HOST}:{int(process.stdout.readline())}", process)
    finally:
        process.terminate()
        process.wait(10)


def main() -> None:
    """Serve what the first argument describes, until the time is over; the port is printed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    document = json.loads(given.behaviour)
    lists = {name: tuple(document[name]) for name in ("classes", "first")}
    asyncio.run(FaultyServer(Behaviour(**{**document, **lists})).serve(given.seconds, port=given.port))
