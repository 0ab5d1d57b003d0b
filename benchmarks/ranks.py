"""What a training step of two ranks costs over the same step of one process, and what the ranks send each other.

    OMP_NUM_THREADS=1 python -m benchmarks.ranks [--student wrn_16_2] [--rounds 5]

One process has as many threads as there are ranks, and each rank has one, so that both have the same cores; they take
turns. Bytes are what one rank gives to the others in a step, before any of them passes it on: what the student said of
its share, its gradients, sums of batch norm.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.measure import Timing
from benchmarks.stand_ins.random_store import make_store
from ground.ranks import ALONE, RankGroup, Ranks
from models.compute import Compute
from student_train.methods import parse_method
from student_train.run_folder import RunFolder
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer

METHODS = ("kd", "ckd", "ckd:pairs=all", "rkd", "dist", "crd", "fitnets", "vid", "vid+ckd")
CPU = Compute(torch.device("cpu"), "fp32")


class CountingRanks(RankGroup):
    """Ranks that know how many bytes they sent, by what for."""

    def __init__(self, board: dist.Store, rank: int, count: int) -> None:
        super().__init__(board, rank, rank, count)
        self.sent: Counter[str] = Counter()

    def add(self, tensor: Tensor) -> None:
        # A vector is all gradients together; batch norm's sums are two rows.
        self.sent["gradients" if tensor.dim() == 1 else "batch norm"] += tensor.nbytes
        super().add(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        self.sent["batch norm" if tensor.dim() == 1 else "gathered"] += tensor.nbytes
        return super().gather(tensor)


def steps_in_rounds(
    trainer: Trainer, board: dist.Store, who: str, steps: int, rounds: int, before: Callable[[], None] = lambda: None
) -> None:
    """Take so many steps when asked, and say how long they took; one round more, that does not count."""
    trainer.state.student.train()
    for number in range(rounds + 1):
        board.get(f"{who} may begin {number}")
        if number == 1:
            before()
        started = time.perf_counter()
        for _ in range(steps):
            trainer.train_step()
        if trainer.ranks.is_first:
            board.set(f"{who} took {number}", str(time.perf_counter() - started))


@dataclass(frozen=True)
class Subject:
    """What is measured, on both sides."""

    store: Path
    student: str
    method: str
    count: int
    steps: int
    rounds: int

    def open(self, ranks: Ranks) -> Trainer:
        config, folder = TrainConfig(student=self.student), RunFolder(self.store / "unused")
        return Trainer.open(config, self.store, None, parse_method(self.method), CPU, folder, ranks=ranks)

    def alone(self, board: dist.Store) -> None:
        torch.set_num_threads(self.count)
        steps_in_rounds(self.open(ALONE), board, "one", self.steps, self.rounds)

    def one_of_ranks(self, board: dist.Store, rank: int) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", store=board, rank=rank, world_size=self.count)
        ranks = CountingRanks(board, rank, self.count)
        steps_in_rounds(self.open(ranks), board, "ranks", self.steps, self.rounds, ranks.sent.clear)
        if ranks.is_first:
            taken = self.steps * self.rounds
            board.set("sent", json.dumps({name: size / taken for name, size in ranks.sent.items()}))

    def measure(self) -> tuple[Timing, Timing, dict[str, float]]:
        """Of one process, of the ranks, and bytes of a step; each of them a process of its own."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        works = [self.alone, *(partial(self.one_of_ranks, rank=rank) for rank in range(self.count))]
        children = [in_child(work, port) for work in works]
        board = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        seconds: dict[str, list[float]] = {"one": [], "ranks": []}
        for number in range(self.rounds + 1):
            for who, taken in seconds.items():
                board.set(f"{who} may begin {number}", "")
                taken.append(float(board.get(f"{who} took {number}")))
        sent = json.loads(board.get("sent"))
        for child in children:
            os.waitpid(child, 0)
        return Timing(tuple(seconds["one"][1:])), Timing(tuple(seconds["ranks"][1:])), sent


def in_child(work: Callable[[dist.Store], None], port: int) -> int:
    """Fork a process that does some work; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            work(dist.TCPStore("127.0.0.1", port, is_master=False))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    return child


@click.command()
@click.option("--student", default="wrn_16_2", show_default=True)
@click.option("--n", default=640, show_default=True)
@click.option("--ranks", "count", default=2, show_default=True)
@click.option("--steps", default=4, show_default=True, help="Steps in each round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--method", "methods", multiple=True, default=METHODS, help="Repeatable.")
def main(student: str, n: int, count: int, steps: int, rounds: int, methods: tuple[str, ...]) -> None:
    if torch.get_num_threads() != 1:
        raise click.UsageError("threads do not survive a fork; run it with OMP_NUM_THREADS=1 in the environment")
    with tempfile.TemporaryDirectory() as name:
        store = Path(name) / "store"
        make_store(store, n, layers=None)
        click.echo(f"{student}, batches of 64, {count} ranks of one thread over one process of {count}")
        click.echo(f"{'method':<15} {'process':>10} {'ranks':>10} {'ratio':>6}   MB a step: gathered, gradients, norm")
        for method in methods:
            one, ranks, sent = Subject(store, student, method, count, steps, rounds).measure()
            sizes = "".join(f"{sent.get(kind, 0) / 1e6:9.3f}" for kind in ("gathered", "gradients", "batch norm"))
            times = "".join(f"{timing.median / steps * 1e3:8.1f} ms" for timing in (one, ranks))
            click.echo(f"{method:<15}{times} {ranks.over(one):6.3f}   {sizes}")


if __name__ == "__main__":
    main()
