"""Processes that torchrun would start, forked in milliseconds: ranks of one machine, which meet at a port of ours."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable

from torch.distributed import TCPStore


def exit_codes_of_ranks(
    count: int, work: Callable[[int], object], meanwhile: Callable[[], object] = lambda: None
) -> list[int]:
    """Fork a process for each rank, whose environment is as torchrun makes it; negative for a signal.

    Args:
        work: what a rank does; it ends with the exit code of a `SystemExit`, and with 1 for any other error.
        meanwhile: what is done here until they end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ.update({name: str(value) for name, value in said.items()}, RANK=str(rank), LOCAL_RANK=str(rank))
            _work(rank, work)
        children.append(child)
    # Afterwards: it has threads. As torchrun's, it is there until all ranks have ended.
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    meanwhile()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    del store
    return codes


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
