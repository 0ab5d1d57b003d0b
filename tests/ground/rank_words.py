"""What ranks say to each other, in processes of their own: python -m tests.ground.rank_words RANKS HOW.

HOW is "talk", which ends well if all were understood, "fail": all find the same fault, the last one another too, or
"die": the last one is killed while the others wait for it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from ground.errors import InvalidInput
from ground.ranks import Ranks, joined
from ground.terminal import reported_errors
from tests.rank_processes import exit_codes_of_ranks


def talk(ranks: Ranks) -> None:
    first, last = ranks.rank == 0, ranks.rank == ranks.count - 1
    assert (ranks.is_first, ranks.alone) == (first, False)
    assert ranks.any(last)
    assert not ranks.any(False)
    assert ranks.totals(ranks.rank, 2**40) == (sum(range(ranks.count)), ranks.count * 2**40)
    assert ranks.told(b"a word" if first else b"") == b"a word"
    assert ranks.told(b"" if first else b"not heard") == b""
    tensor = torch.full((2, 3), float(ranks.rank))
    assert ranks.gather(tensor.T)[:, 0, 0].tolist() == list(range(ranks.count))
    assert ranks.gather(torch.zeros(2, 0)).shape == (ranks.count, 2, 0)
    whole = torch.arange(6.0).reshape(2, 3) + ranks.rank
    view = whole.T
    ranks.align([view, tensor])
    assert torch.equal(whole, torch.arange(6.0).reshape(2, 3))
    assert not tensor.any()
    ranks.add(tensor.add_(1))
    assert tensor.unique().tolist() == [ranks.count]
    assert ranks.device("auto") == ranks.device("cpu") == "cpu"
    # What training imports while the ranks are joined.
    torch.optim.SGD([torch.nn.Parameter(tensor)], lr=0.1).step()


def fail(ranks: Ranks) -> None:
    raise InvalidInput("this is one rank's own fault" if ranks.rank == 2 else "this is everybody's fault")


def die(ranks: Ranks) -> None:
    if ranks.rank == ranks.count - 1:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.any(False)


def threads_of_gloo() -> list[str]:
    names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    torch.set_num_threads(1)
    work = {"talk": talk, "fail": fail, "die": die}[sys.argv[2]]

    def one(rank: int) -> None:
        with reported_errors(debug=False), joined() as ranks:
            work(ranks)
        assert threads_of_gloo() == [], "they abort the process where they end after Python"

    print(exit_codes_of_ranks(int(sys.argv[1]), one))
