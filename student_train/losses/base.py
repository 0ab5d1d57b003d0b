"""What every loss is: a module that binds a formula to signals and declares what it needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ground.errors import InvalidInput
from ground.spec import argument_names
from models import Network, Representation
from student_train.binding import Binding
from student_train.losses.kinds import CENTRED, Kinds
from student_train.losses.requirements import Requirement
from student_train.needs import LayerPair, Needs
from student_train.signals import Moment, Signals

TeacherRows = Callable[[Tensor], Representation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the published results used a loss: what `--method NAME` adds up.

    Args:
        weight: of the loss.
        ce: weight of cross-entropy.
        kd: weight of KD at temperature 4.
        per_class: draw batches of up to so many images of each class; 0 for ordinary batches.
    """

    weight: float = 1.0
    ce: float = 1.0
    kd: float = 0.0
    per_class: int = 0


class DistillationLoss(nn.Module, ABC):
    """A scalar from signals; learned parts, if any, are its parameters and are trained with the student.

    Every argument of `__init__` is kept in an attribute of the same name: that is how runs record settings. Arguments
    have a default and are bool, int, float, str, or one of these or None.

    Attributes:
        name: what `--loss` calls it; the class of a user needs none.
        source: paper and equation.
        recipe: what `--method` of the same name adds up.
        revision: raised when the same settings come to mean another formula, so that a grid trains its runs again.
        dresses: whether it changes what the student is (`dress`).
        pulls_to_teacher: whether, uncompared, it pulls the student's logits to the teacher's.
        needs: what must be there; a property where it depends on settings.
        requires: what those outputs must be, checked in this order before `build`.
        kinds: what it makes of a teacher's answers that are no logits, where it reads the teacher's logits; unless a
            subclass says more, both sides' rows are centred, which is right whatever a loss does with logits.
        constrains_logits: whether, uncompared, it determines the level of the logits.
        pairs: after `bind`, (student's, teacher's) names of the outputs it needs.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    recipe: ClassVar[Recipe] = Recipe()
    revision: ClassVar[int] = 1
    dresses: ClassVar[bool] = False
    pulls_to_teacher: ClassVar[bool] = False
    requires: ClassVar[tuple[Requirement, ...]] = ()
    kinds: ClassVar[Kinds] = CENTRED

    pairs: tuple[LayerPair, ...] = ()

    @property
    def needs(self) -> Needs:
        """What must be there: the logits of both, unless a subclass says more."""
        return Needs(outputs="logits")

    @property
    def constrains_logits(self) -> bool:
        """It does where it reads them, unless a subclass says otherwise."""
        return "logits" in self.needs.outputs.split("+")

    @property
    def settings(self) -> dict[str, Any]:
        """What it was made with, for the record.

        Raises:
            InvalidInput: an argument is not kept.
        """
        names = argument_names(type(self))
        lost = [name for name in names if not hasattr(self, name)]
        if lost:
            raise InvalidInput(
                f"{type(self).__name__} does not keep its argument {lost[0]}, so no run could record it; set "
                f"self.{lost[0]} in its __init__"
            )
        return {name: getattr(self, name) for name in names}

    def bind(self, binding: Binding) -> None:
        """Find its outputs and make its learned parts; called once, before training.

        Raises:
            InvalidInput: shapes do not fit (`Binding.misfit`).
        """
        self.pairs = binding.pairs(self.needs)
        for requirement in self.requires:
            requirement(self.name, binding, self.pairs)
        self.build(binding)

    def build(self, binding: Binding) -> None:
        """Make learned parts; `pairs` is set and fits `requires`. Random numbers are already seeded."""

    def prepare(self, teacher: TeacherRows, moment: Moment) -> None:
        """Train parts that are learned from the stored answers alone, before the first step.

        Args:
            teacher: rows (B,) of the sample -> what the teacher said of them.
        """

    def dress(self, student: Network) -> Network:
        """The student to train and keep, where the loss changes what it is; called after `build`.

        Every other loss is bound to what comes out.
        """
        return student

    @abstractmethod
    def forward(self, signals: Signals) -> Tensor:
        """The loss of a batch, or of comparisons."""

    def of_weights(self, signals: Signals) -> Tensor:
        """The loss of single samples where the teacher's side is weights of classes: see `kinds`, and `Weights`."""
        raise AssertionError(f"{self.name} declares no kind of answers that is weights")

    @property
    def has_closed_form(self) -> bool:
        """Whether `over_all_pairs` gives one."""
        return type(self).over_all_pairs is not DistillationLoss.over_all_pairs

    def over_all_pairs(self, signals: Signals) -> Tensor | None:
        """The loss over all ordered pairs of a batch in closed form, or None where there is none."""
        return None

    def logit_target(self, signals: Signals) -> Tensor | None:
        """Logits (B, K) that the loss, uncompared, pulls samples to; None if it does not say."""
        return self.logits(signals)[1] if self.pulls_to_teacher else None

    # For subclasses

    def logits(self, signals: Signals) -> tuple[Tensor, Tensor]:
        """Logits of student and teacher."""
        return signals.pair("logits", "logits")

    def outputs(self, signals: Signals) -> list[tuple[Tensor, Tensor]]:
        """(student's, teacher's) tensor of every pair, in order."""
        return [signals.pair(*pair) for pair in self.pairs]
