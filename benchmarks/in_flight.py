"""A build from a teacher that is elsewhere, by requests in flight, over what its server gives by itself.

    python -m benchmarks.in_flight [--n 1000] [--latency-ms 100] [--in-flight 1,8,32]

The server is one of the standard library on loopback, in a process of its own, which answers after so many
milliseconds. Bare is a loop that keeps as many requests open and throws the answers away; the build reserves, asks,
writes and commits. They take turns. Start-up, plan and canaries are left out of a build's time, as is what a bare loop
takes to begin.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.stand_ins.scripted_teacher import CLASSES, ScriptedTeacher
from ground.terminal import print_table
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.datasets import open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.remote.policy import AskingConfig
from teacher_cache.teachers import Card
from teacher_cache.teachers.attempts import Answer, Failure


def serve(latency: float, pipe: Connection) -> None:
    """Answer POSTs with the mean of the body in every class, after a while, until killed."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(latency)
            answer = json.dumps([sum(body[:CLASSES])] * CLASSES).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 1024

    server = Server(("127.0.0.1", 0), Handler)
    pipe.send(server.server_port)
    server.serve_forever()


class LoopbackTeacher(ScriptedTeacher):
    """Asks the server, over connections that stay open.

    Attributes:
        port: of the server.
        first, last: when it was first asked, and last answered, once the canaries were.
    """

    port = 0
    skipped = 4

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.first = self.last = 0.0
        self.asked = 0

    async def ask(self, images: np.ndarray, deadline: float) -> Sequence[Answer | Failure]:
        """See `RemoteTeacher.ask`."""
        streams = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self.port)
        self.asked += 1
        if self.asked == self.skipped + 1:
            self.first = time.perf_counter()
        body = images.tobytes()
        streams[1].write(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head = await streams[0].readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split()[0])
        values = np.array(json.loads(await streams[0].readexactly(size)), np.float32)
        self._idle.append(streams)
        self.last = time.perf_counter()
        return [Answer(values={"logits": values}, model="loopback")] * len(images)

    async def close(self) -> None:
        """Close what is open."""
        for _, writer in self._idle:
            writer.close()
        await asyncio.sleep(0)


@contextmanager
def server_of(latency: float):
    """The port of a server that runs until the block ends."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(latency, there), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()
        process.join()


async def ask_all(teacher: LoopbackTeacher, n: int, in_flight: int) -> float:
    """Requests a second of a loop that does nothing else."""
    left, image = iter(range(n)), np.zeros((1, 3, 32, 32), np.uint8)

    async def work() -> None:
        for _ in left:
            await teacher.ask(image, 60.0)

    await asyncio.gather(*(work() for _ in range(in_flight)))
    await teacher.close()
    return n / (teacher.last - teacher.first)


@click.command()
@click.option("--n", default=1000, show_default=True, help="Images of each build.")
@click.option("--latency-ms", default=100.0, show_default=True)
@click.option("--in-flight", "numbers", default="1,8,32", show_default=True)
@click.option("--rounds", default=1, show_default=True, help="Of which the best counts, on both sides.")
def main(n: int, latency_ms: float, numbers: str, rounds: int) -> None:
    """Print requests a second by requests in flight: bare, of a build, and their ratio."""
    torch.set_num_threads(1)
    digits, rows = open_dataset("digits"), []
    with server_of(latency_ms / 1000) as port:
        LoopbackTeacher.port = port
        for in_flight in map(int, numbers.split(",")):
            # What is asked one at a time takes its time.
            count = min(n, max(50, 40 * in_flight))
            bare, built = [], []
            for _ in range(rounds):
                teacher = LoopbackTeacher.of(digits)
                teacher.skipped = 0
                bare.append(asyncio.run(ask_all(teacher, count, in_flight)))
                teacher = LoopbackTeacher.of(digits)
                with tempfile.TemporaryDirectory() as folder:
                    config = BuildConfig(
                        store=Path(folder) / "store",
                        teacher="openai:loopback",
                        dataset="digits",
                        n=count,
                        device="cpu",
                        trust_teacher=True,
                        asking=AskingConfig(in_flight=in_flight),
                    )
                    build(*prepare_build(config, digits, teacher))
                built.append(count / (teacher.last - teacher.first))
            best = max(bare), max(built)
            rows.append((in_flight, count, *(f"{rate:.0f}" for rate in best), f"{best[1] / best[0]:.2f}"))
    print_table(("in flight", "requests", "bare/s", "build/s", "ratio"), rows)


if __name__ == "__main__":
    main()
