"""Steps in float64 of one process and of several: python -m tests.student_train.ranked_steps RANKS STORE OUT METHOD...

A METHOD is "kd", or "kd + ce + pseudo" with losses of the rest. Writes OUT/one.pt and OUT/rankN.pt, for each of them:
what every step cost, its gradients, and the state after the last.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ground.ranks import ALONE, Ranks, joined
from models import Representation
from models.compute import Compute
from student_train.data import StudentData
from student_train.methods import parse_method
from student_train.rest import terms
from student_train.rest.spec import parse_rest
from student_train.run_folder import RunFolder
from student_train.sampling import Batch
from student_train.student_views import show
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer
from tests.rank_processes import exit_codes_of_ranks

# Batches of 7, 7 and 2: shares are uneven, and with three ranks one of them is empty.
ROWS, BATCH_SIZE, STEPS = 16, 7, 4


class DoubleData:
    """A store's data in float64."""

    def __init__(self, data: StudentData) -> None:
        self._data = data

    def __getattr__(self, name: str) -> object:
        return getattr(self._data, name)

    def inputs(self, batch: Batch, step: int, *, seed: int, student_view: str) -> tuple[Tensor, Tensor]:
        inputs, which = self._data.inputs(batch, step, seed=seed, student_view=student_view)
        return inputs.double(), which

    def teacher(self, rows: Tensor, which: Tensor) -> Representation | None:
        said = self._data.teacher(rows, which)
        return None if said is None else said.map(Tensor.double)


def show_double(*args: object, **options: object) -> Tensor:
    """Images of the rest in float64."""
    return show(*args, **options).double()


def steps_of(method: str, store: Path, out: Path, ranks: Ranks) -> dict[str, object]:
    """A few steps from the same beginning."""
    config, compute = TrainConfig(student="resnet8", batch_size=BATCH_SIZE), Compute(torch.device("cpu"), "fp32")
    name, *rest = method.split(" + ")
    spec = replace(parse_method(name), rest=parse_rest(rest))
    trainer = Trainer.open(config, store, ROWS, spec, compute, RunFolder(out), ranks=ranks)
    trainer.prepare()
    trainer.stepper.data = DoubleData(trainer.data)
    state = trainer.state
    state.modules.double().train()
    gradients = []

    def keep(*_: object) -> None:
        parameters = state.modules.named_parameters()
        gradients.append({name: value.grad.clone() for name, value in parameters if value.grad is not None})

    state.optimizer.register_step_pre_hook(keep)
    losses = [trainer.train_step() for _ in range(STEPS)]
    kept = {name: tensor.clone() for name, tensor in state.modules.state_dict().items()}
    costs = [{"total": found.total, "terms": found.terms} for found in losses]
    return {"losses": costs, "gradients": gradients, "state": kept}


def main(count: int, store: Path, out: Path, methods: list[str]) -> list[int]:
    def run(ranks: Ranks, name: str) -> None:
        torch.save({method: steps_of(method, store, out / "run", ranks) for method in methods}, out / f"{name}.pt")

    def work(rank: int) -> None:
        with joined() as ranks:
            run(ranks, f"rank{rank}")

    return exit_codes_of_ranks(count, work, lambda: run(ALONE, "one"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    terms.show = show_double
    codes = main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    sys.exit(any(codes))
