"""A method as data: losses by name with their settings, and how batches are drawn, compared and mixed.

Nothing here learns or is bound to a training, so a spec can be compared, hashed and sent to another process;
`student_train.bound_method` makes of it what trains.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ground.errors import InvalidInput
from ground.spec import Settings
from ground.user_code import UserCode
from student_train.comparison import Comparison
from student_train.losses import DistillationLoss
from student_train.mixing import Mixing
from student_train.needs import Needs, Wanted
from student_train.registry import UnseenLoss, find_loss, loss_name, own_code
from student_train.rest.spec import RestSpec
from student_train.sampling import AllViews, ClassSampling, EpochSampling, Sampling

# What every loss takes, beside its own settings.
TERM_SETTINGS = ("weight", "compared", "standardised")
# Where a loss is given none.
USUAL_WEIGHT = 1.0

Value = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class LossSpec:
    """One summand of a method's loss.

    Args:
        name: as runs record it: in the table of losses, or "package.module:Class".
        settings: (argument, value); what is said that is the default anyway is left out, so equal losses are equal.
        compared: apply the loss to differences between samples.
        standardised: give it logits of mean 0 and deviation 1 in each row (LSKD), before any comparison.
        code: whether a class of the user's is imported; it goes with the spec to other processes.

    Raises:
        UnknownName, InvalidInput: there is no such loss, it is not allowed, it cannot be compared, or its settings
            cannot be recorded.
    """

    name: str
    settings: tuple[tuple[str, Value], ...] = ()
    weight: float = USUAL_WEIGHT
    compared: bool = False
    standardised: bool = False
    code: UserCode = field(default=UserCode.REFUSED, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InvalidInput(f"the weight of a loss must be a finite number of at least 0, got {self.weight}")
        kind = self._kind
        if not self.is_unseen:
            object.__setattr__(self, "name", loss_name(kind))
        object.__setattr__(self, "settings", _telling(kind, self.settings))
        if self.compared and not self.needs.comparable:
            raise InvalidInput(
                f"{self.name} has no meaning on differences between samples (it needs {self.needs.describe()}); "
                "leave compared=true out"
            )
        self.describe()  # refuses a loss whose settings cannot be recorded

    @classmethod
    def from_settings(cls, kind: type[DistillationLoss], settings: Settings, weight: float, **more: Any) -> LossSpec:
        """A loss with those of some settings that are its arguments.

        Args:
            more: the fields beside.

        Raises:
            InvalidInput: see `Settings.build`.
        """
        arguments = settings.arguments(kind)
        settings.call(kind, arguments)  # what the loss itself refuses is told with the name that was typed
        return cls(loss_name(kind), tuple(arguments.items()), weight, **more)

    def make(self) -> DistillationLoss:
        """The loss itself, new and not bound to anything."""
        return self._kind(**dict(self.settings))

    @property
    def is_unseen(self) -> bool:
        """Whether it is a class of the user's that was not imported, so that nothing is known of it."""
        return self._kind is UnseenLoss

    @property
    def _kind(self) -> type[DistillationLoss]:
        return find_loss(self.name, self.code)

    @property
    def needs(self) -> Needs:
        """What must be there for it."""
        return self.make().needs

    @property
    def constrains_logits(self) -> bool:
        """Whether it determines the level of the logits by itself."""
        return not self.compared and self.weight > 0 and self.make().constrains_logits

    def describe(self) -> dict[str, Any]:
        """Everything that makes it what it is, in plain values."""
        loss = self.make()
        flags = {name: getattr(self, name) for name in TERM_SETTINGS}
        # Runs from before revisions were told said nothing, and stay what they were.
        revision = {"revision": loss.revision} if loss.revision != 1 else {}
        return {"loss": self.name, **revision, **own_code(type(loss)), **loss.settings, **flags}


def _telling(kind: type[DistillationLoss], settings: Sequence[tuple[str, Value]]) -> tuple[tuple[str, Value], ...]:
    """Settings that differ from the defaults, by name."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    return tuple(
        sorted((name, value) for name, value in settings if value != defaults.get(name, inspect.Parameter.empty))
    )


@dataclass(frozen=True)
class MethodSpec:
    """A recipe.

    Args:
        name: what run.json calls it.
        losses: summands; those with weight 0 are left out.
        sampling: draws the batches.
        comparison: applied for compared losses; None where there are none.
        mixing: makes inputs of several images; None for plain ones.
        anchor: where comparisons leave the level of the logits open, set it (`student_train/anchor.py`).
        rest: losses of rows that the teacher was not asked about.
    """

    name: str
    losses: tuple[LossSpec, ...]
    sampling: Sampling = field(default_factory=EpochSampling)
    comparison: Comparison | None = None
    mixing: Mixing | None = None
    anchor: bool = True
    rest: tuple[RestSpec, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", tuple(loss for loss in self.losses if loss.weight))
        if not self.losses:
            raise InvalidInput(f"every loss of {self.name} has weight 0; nothing would be learned")
        if any(loss.compared for loss in self.losses) and (self.comparison is None or self.mixing is not None):
            raise InvalidInput(f"{self.name} compares single images of a batch, so it cannot mix them")
        alone = [loss.name for loss in self.losses if loss.needs.index or loss.needs.views]
        if alone and self.mixing is not None:
            raise InvalidInput(f"{alone[0]} follows single images through the training, so they cannot be mixed")

    @property
    def needs(self) -> tuple[Needs, ...]:
        """What every loss needs."""
        return tuple(loss.needs for loss in self.losses)

    @property
    def unseen(self) -> list[str]:
        """Losses of which nothing is known, because they were not imported."""
        return [loss.name for loss in self.losses if loss.is_unseen]

    @property
    def asks_teacher(self) -> bool:
        """Whether any answer of the teacher is used."""
        return any(needs.teacher for needs in self.needs)

    @property
    def is_anchored(self) -> bool:
        """Whether the level of the logits is open, and to be set."""
        opened = self.comparison is not None and self.comparison.opens_level
        constrained = any(loss.constrains_logits for loss in self.losses)
        return self.anchor and opened and not constrained and not any(spec.kind.constrains_logits for spec in self.rest)

    @property
    def term_names(self) -> tuple[str, ...]:
        """A name for each loss, unlike all others: a second `kd` is `kd.2`."""
        names = [loss.name for loss in self.losses]
        counts = [names[: place + 1].count(name) for place, name in enumerate(names)]
        return tuple(name if count == 1 else f"{name}.{count}" for name, count in zip(names, counts, strict=True))

    def wanted(self, student: Sequence[str], teacher: Sequence[str], *, logits: bool = True) -> Wanted:
        """What is to be loaded and computed, for the layer names that student and teacher have.

        Args:
            logits: whether the teacher's are there; then they are loaded with any other output of it.

        Raises:
            UnknownName, InvalidInput: a loss asks for layers that one of them lacks.
        """
        pairs = [pair for needs in self.needs for pair in needs.pairs(student, teacher)]
        answers = [*(["logits"] if logits else []), *(theirs for _, theirs in pairs)]
        return Wanted(
            student=tuple(dict.fromkeys(ours for ours, _ in pairs if ours != "logits")),
            teacher=tuple(dict.fromkeys(answers)) if pairs else (),
            parameters=any(needs.head or needs.norms for needs in self.needs),
            unstreamable=self.sampling.unstreamable,
            rest=bool(self.rest),
            rest_labels=any(spec.kind.reads_labels for spec in self.rest),
        )

    def sampling_of(self, num_views: int) -> Sampling:
        """How batches are drawn from a store with so many views of each image."""
        if not any(needs.views for needs in self.needs):
            return self.sampling
        if not isinstance(self.sampling, (EpochSampling, ClassSampling)):
            raise InvalidInput(f"{self.name} needs all views of single images, which compared batches do not have")
        return AllViews(self.sampling, num_views)

    def describe(self, n: int | None = None) -> dict[str, Any]:
        """Everything that makes this recipe what it is, in plain values.

        Args:
            n: rows whose answers it learns from, where that is known; 0 for labels alone.
        """
        return {
            "losses": [loss.describe() for loss in self.losses],
            "sampling": _described(self.sampling),
            "comparison": _described(self.comparison),
            "mixing": _described(self.mixing),
            "anchored": self.is_anchored,
            # Runs from before there was a rest said nothing, and stay what they were.
            **({"rest": [spec.describe(beside_answers=n != 0) for spec in self.rest]} if self.rest else {}),
        }


def _described(part: Sampling | Comparison | Mixing | None) -> dict[str, Any] | None:
    # Each is a dataclass; asdict cannot know that from the abstract class.
    return None if part is None else {"kind": type(part).__name__, **asdict(part)}  # type: ignore[arg-type]
