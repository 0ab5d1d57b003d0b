"""Losses of the rest as data: what `--rest` stands for, and the only place that lists them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ground.errors import InvalidInput, UnknownName
from storage.run_proof import RunProofs
from storage.store import Store
from student_train.auto_weights import LOSS_WEIGHTS, refuse_auto
from student_train.rest.base import RestLoss
from student_train.rest.labels import Labels
from student_train.rest.mean_teacher import MeanTeacher
from student_train.rest.proxy import Proxy, ProxyRun
from student_train.rest.pseudo import PseudoLabels

log = logging.getLogger(__name__)

REST_LOSSES: dict[str, type[RestLoss]] = {kind.name: kind for kind in (Labels, PseudoLabels, MeanTeacher, Proxy)}


@dataclass(frozen=True, slots=True)
class RestSpec:
    """One loss of the rest, made of text; it can be compared, hashed and sent to another process.

    Args:
        name: in `REST_LOSSES`.
        settings: (argument, value) of it.
        text: as it was given.
    """

    name: str
    settings: tuple[tuple[str, Any], ...]
    text: str = field(compare=False)

    @classmethod
    def read(cls, text: str) -> RestSpec:
        """See `parse_rest`."""
        refuse_auto(text, LOSS_WEIGHTS)
        name = text.partition(":")[0]
        if name not in REST_LOSSES:
            raise UnknownName("loss of the rest", name, REST_LOSSES)
        return cls(name, tuple(REST_LOSSES[name].arguments(text).items()), text.removesuffix(":"))

    def make(self) -> RestLoss:
        """The loss itself, new."""
        return self.kind(**dict(self.settings))

    @property
    def kind(self) -> type[RestLoss]:
        """Its class."""
        return REST_LOSSES[self.name]

    @property
    def proxies(self) -> tuple[ProxyRun, ...]:
        """Runs whose students answer in it."""
        return tuple(dict(self.settings).get("runs", ()))

    @property
    def drew_on_calls(self) -> bool:
        """Whether answers of the teacher are behind what its proxies say."""
        return any(run.record.teacher_calls for run in self.proxies)

    def describe(self, *, beside_answers: bool = True) -> dict[str, Any]:
        """Everything that makes it what it is, in plain values.

        Args:
            beside_answers: whether rows that were asked about are learned from too. Labels that are alone have nothing
                to be weighed against, which is written as a weight of 1.
        """
        said = {"loss": self.name, **self.make().describe()}
        return said if beside_answers or said["weight"] is not None else said | {"weight": 1.0}


def default_of_rest(text: str, setting: str) -> Any:
    """What a loss of the rest, as it is written, has for a setting that is not given, 1 for a weight that follows from
    the rows; raises `UnknownName` for no loss.
    """
    name = text.partition(":")[0]
    if name not in REST_LOSSES:
        raise UnknownName("loss of the rest", name, REST_LOSSES)
    default = inspect.signature(REST_LOSSES[name]).parameters[setting].default
    return 1.0 if default is None else default


def parse_rest(texts: Sequence[str]) -> tuple[RestSpec, ...]:
    """Losses of the rest as users write them: "ce", "pseudo:confidence=0.9,ratio=2", "proxy:runs/big,weight=0.5".

    Raises:
        UnknownName, InvalidInput: there is no such loss or setting, a value is refused, one is given twice, or a proxy
            is no finished run.
    """
    specs = tuple(RestSpec.read(text) for text in texts)
    for place, spec in enumerate(specs):
        if spec.name in (other.name for other in specs[:place]):
            raise InvalidInput(f"--rest {spec.name} is given twice; give it once, with the settings of your choice")
    return specs


def require_rest(
    specs: Sequence[RestSpec], store: Store, n: int, *, asks_teacher: bool, student_view: str = "auto"
) -> tuple[ProxyRun, ...]:
    """Refuse what cannot be learned from the rest of a store.

    Args:
        n: rows of the store whose answers are learned from.
        asks_teacher: whether the method beside learns from any answer.
        student_view: as it is asked for.

    Returns:
        Proxies that nothing vouches for; the log says so of each.

    Raises:
        InvalidInput: the method needs answers, and n is 0; or labels are given a weight where nothing is beside them.
        IdentityMismatch: a proxy is of another store, drew on other answers, or is not what was trained.
    """
    if not n and student_view == "teacher":
        raise InvalidInput(
            "--n 0 learns from rows that the teacher was not asked about, whose views nobody saw; give another "
            "--student-view than teacher"
        )
    if not n and asks_teacher:
        raise InvalidInput(
            "--n 0 learns from no answer of the teacher, and this method needs some; give --method vanilla, or an n of "
            "at least 2"
        )
    proofs, unproven = RunProofs(), []
    for spec in specs:
        if not n and spec.kind.reads_labels and spec != RestSpec.read(spec.name):
            raise InvalidInput(
                f"--n 0 draws all labelled rows alike, and {spec.text!a} says how to weigh them against others; give "
                f"--rest {spec.name}"
            )
        for run in spec.proxies:
            doubt = run.require_of(store, n, proofs, exactly=not asks_teacher)
            if doubt is not None:
                log.warning("%s", doubt)
                unproven.append(run)
    return tuple(unproven)
