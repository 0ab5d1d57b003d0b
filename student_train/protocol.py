"""When to stop and when to lower the learning rate: by default the training protocol of the paper's released code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum

from ground.errors import InvalidInput, UnknownName
from student_train.schedule import SCHEDULES, AtPlateaus, Schedule


class Decision(Enum):
    """What the training loop does after an evaluation."""

    IMPROVED = "remember these weights as the best"
    GO_ON = "go on"
    LOWER = "go back to the best weights, divide the learning rate by 10"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolConfig:
    """The protocol's constants; the defaults are the paper's.

    Args:
        patience: evaluations without a better validation accuracy that make a plateau.
        plateaus: the plateau that ends the training.
        max_evals: evaluations after which it ends in any case; None for no limit.
        schedule: how the learning rate falls, by name; with "cosine" there are no plateaus.
        steps_per_eval: steps from one evaluation to the next; None for as many as go once through the rows, so that
            trainings on few rows are short ones, and are evaluated often.
    """

    patience: int = 50
    plateaus: int = 3
    max_evals: int | None = None
    schedule: str = AtPlateaus.name
    steps_per_eval: int | None = None

    def __post_init__(self) -> None:
        if self.patience < 1 or self.plateaus < 1 or (self.max_evals is not None and self.max_evals < 1):
            raise InvalidInput(f"patience, plateaus and evaluations must be at least 1, got {self}")
        if self.schedule not in SCHEDULES:
            raise UnknownName("schedule", self.schedule, SCHEDULES)
        if self.steps_per_eval is not None and self.steps_per_eval < 1:
            raise InvalidInput(f"--steps-per-eval must be at least 1, got {self.steps_per_eval}")
        self.made()

    def made(self) -> Schedule:
        """The schedule; raises `InvalidInput` where it needs to know more."""
        return SCHEDULES[self.schedule](self.patience, self.max_evals)


@dataclass(slots=True)
class Protocol:
    """Watches the validation accuracy.

    Attributes:
        evals: evaluations so far.
        since_best: evaluations since the best one, or since the last plateau.
        best: best validation accuracy, below 0 before the first.
        reached: plateaus so far.
    """

    config: ProtocolConfig
    evals: int = 0
    since_best: int = 0
    best: float = -1.0
    reached: int = 0

    def update(self, val_accuracy: float) -> Decision:
        """Take note of an evaluation and say what follows from it."""
        self.evals += 1
        self.since_best += 1
        improved = val_accuracy > self.best
        if improved:
            self.best, self.since_best = val_accuracy, 0
        plateau = self.config.made().is_plateau(self.since_best)
        if plateau:
            self.reached, self.since_best = self.reached + 1, 0
        if self.finished:
            return Decision.IMPROVED if improved else Decision.STOP
        if plateau:
            return Decision.LOWER
        return Decision.IMPROVED if improved else Decision.GO_ON

    def share_of_lr(self, done: float) -> float:
        """The learning rate over the first one, after so many evaluations' worth of steps."""
        return self.config.made().share(done, self.reached)

    @property
    def finished(self) -> bool:
        """Whether the last plateau, or the last evaluation, is reached."""
        out_of_evals = self.config.max_evals is not None and self.evals >= self.config.max_evals
        return out_of_evals or self.reached >= self.config.plateaus

    def state(self) -> dict[str, float]:
        """Everything but the constants."""
        return {name: value for name, value in asdict(self).items() if name != "config"}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from a `state`."""
        self.evals, self.since_best = int(state["evals"]), int(state["since_best"])
        self.best, self.reached = float(state["best"]), int(state["reached"])
