"""A training that kills itself: python -m tests.student_train.killed_student EVALUATION ARGUMENTS OF ckd-train.

The state is saved at every evaluation; SIGKILL comes in the step after the given one.
"""

from __future__ import annotations

import os
import signal
import sys

import torch

from student_train import trainer
from student_train.bound_method import Losses
from student_train.cli import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer.SAVE_EVERY_SECONDS = 0.0
    last, step = int(sys.argv[1]), trainer.Trainer.train_step

    def step_or_die(self: trainer.Trainer) -> Losses:
        if self.state.protocol.evals == last and self.state.losses:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self)

    trainer.Trainer.train_step = step_or_die
    main(sys.argv[2:])
