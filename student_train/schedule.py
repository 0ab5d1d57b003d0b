"""How the learning rate falls: at plateaus of the validation accuracy, or by half a cosine."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ground.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Schedule(ABC):
    """The rate of each step, as a share of the first.

    Args:
        patience: evaluations without a better validation accuracy that make a plateau, where there are plateaus.
        max_evals: evaluations after which the training ends; None for no limit.
    """

    patience: int
    max_evals: int | None
    name: ClassVar[str]

    @abstractmethod
    def is_plateau(self, since_best: int) -> bool:
        """Whether so many evaluations without a better one are a plateau, which lowers the rate or ends it all."""

    @abstractmethod
    def share(self, done: float, reached: int) -> float:
        """The rate over the first one.

        Args:
            done: training so far, in evaluations: half a one is in the middle between two.
            reached: plateaus so far.
        """


@dataclass(frozen=True, slots=True)
class AtPlateaus(Schedule):
    """A tenth of the rate after each plateau: the paper's released code."""

    name: ClassVar[str] = "plateau"

    def is_plateau(self, since_best: int) -> bool:
        """After `patience` evaluations."""
        return since_best >= self.patience

    def share(self, done: float, reached: int) -> float:
        """A power of ten."""
        return 0.1**reached


@dataclass(frozen=True, slots=True)
class Cosine(Schedule):
    """Half a cosine from the first rate to 0, over all evaluations; a step at a time, without restarts.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5.

    Raises:
        InvalidInput: it is not said how many there are.
    """

    name: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        if self.max_evals is None:
            raise InvalidInput(
                "a cosine schedule is as long as the training, which nothing else ends; say after how many evaluations "
                "it ends, with --max-evals, or max_evals in a grid"
            )

    def is_plateau(self, since_best: int) -> bool:
        """Never: it is known when the rate is low, and when the training ends."""
        return False

    def share(self, done: float, reached: int) -> float:
        """1 at the beginning, a half in the middle, 0 at the end."""
        assert self.max_evals is not None
        return (1 + math.cos(math.pi * done / self.max_evals)) / 2


SCHEDULES: Mapping[str, type[Schedule]] = {schedule.name: schedule for schedule in (AtPlateaus, Cosine)}
