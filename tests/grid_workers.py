"""Workers of a grid that start in milliseconds, for tests that are not about how they start.

They are forked from a process that has torch and the trainer imported, instead of each importing them. All else is as
in earnest: processes of their own with pipes, signals and exit codes, and the environment and the paths of who started
them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

# The last is what torch imports when the first optimizer is made.
IMPORTED_ONCE = ("experiments.engines.local", "student_train.trainer", "models.evaluation", "torch._dynamo")


class _Worker(ForkServerProcess):
    def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> None:
        super().__init__(target=_with_environment, args=(dict(os.environ), target, args), daemon=daemon)


def _with_environment(environment: dict[str, str], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Work in the environment of who asked: the process that was forked has that of the first who did."""
    os.environ.clear()
    os.environ.update(environment)
    work(*arguments)


class _Context(ForkServerContext):
    Process = _Worker


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """In this block a process that is to be spawned is forked."""
    get_context, context = multiprocessing.get_context, _Context()
    context.set_forkserver_preload(list(IMPORTED_ONCE))

    def get(method: str | None = None) -> BaseContext:
        return context if method == "spawn" else get_context(method)

    with mock.patch.object(multiprocessing, "get_context", get):
        yield


@contextlib.contextmanager
def started_here(folder: Path) -> Iterator[None]:
    """In this block workers are forked from a copy of this process as it is now, which has everything imported, instead
    of from one that imports it first; they meet in a folder.

    The copy ends with this process, however that ends. As a process that is spawned in earnest, workers ignore Ctrl-C.
    """
    if sys.version_info >= (3, 14):  # where more is said between the two
        yield
        return
    server, (alive, ours), address = forkserver._forkserver, os.pipe(), str(folder / "workers")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        copy = os.fork()
        if copy == 0:
            _fork_workers(listener, alive, ours)
        os.close(alive)
        server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, ours, copy
    yield


def _fork_workers(listener: socket.socket, alive: int, ours: int) -> None:
    try:
        os.close(ours)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        forkserver.main(listener.fileno(), alive, [])
    finally:
        os._exit(0)
