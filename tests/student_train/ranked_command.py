"""ckd-train as torchrun starts it: python -m tests.student_train.ranked_command RANKS OUT END... -- ARGUMENTS.

Each rank's output goes to OUT/rankN.out and OUT/rankN.err; the exit codes are printed. END is "RANK:STEP:SIGNAL": what
a rank sends itself before that step, in order. The state is saved at every evaluation.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from student_train import trainer
from student_train.bound_method import Losses
from student_train.cli import main
from tests.rank_processes import exit_codes_of_ranks


def end_at(ends: dict[tuple[int, int], list[int]]) -> None:
    """Replace the step of a training by one that sends signals before it."""
    step = trainer.Trainer.train_step

    def step_or_end(self: trainer.Trainer) -> Losses:
        for number in ends.get((self.ranks.rank, self.state.step), ()):
            os.kill(os.getpid(), number)
        return step(self)

    trainer.Trainer.train_step = step_or_end


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer.SAVE_EVERY_SECONDS = 0.0
    cut = sys.argv.index("--")
    (count, out, *ends), arguments = sys.argv[1:cut], sys.argv[cut + 1 :]
    signals: dict[tuple[int, int], list[int]] = {}
    for rank, step, number in (map(int, end.split(":")) for end in ends):
        signals.setdefault((rank, step), []).append(number)
    end_at(signals)

    def work(rank: int) -> None:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(Path(out, f"rank{rank}.{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        main(arguments)

    print(exit_codes_of_ranks(int(count), work))
