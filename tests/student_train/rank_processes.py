"""Processes that torchrun would start, forked in milliseconds: ranks in one machine, which meet at a free port."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable


def start_ranks(count: int, work: Callable[[int], object]) -> list[int]:
    """Fork a process for each rank, whose environment is as torchrun makes it; returns their ids.

    Args:
        work: what a rank does; it ends with the exit code of a `SystemExit`, and with 1 for any other error.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ.update({name: str(value) for name, value in said.items()}, RANK=str(rank), LOCAL_RANK=str(rank))
            _work(rank, work)
        children.append(child)
    return children


def _work(rank: int, work: Callable[[int], object]) -> None:
    code = 1
    try:
        work(rank)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_codes(children: list[int]) -> list[int]:
    """Of all of them once they have ended; negative for a signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
