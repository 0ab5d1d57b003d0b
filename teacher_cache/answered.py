"""What was answered, made ready for a store: new answers in the store's types, beside what was paid for before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from storage.float_types import stored_type
from storage.store import Store
from teacher_cache.in_hand import AnswersInHand, Batch
from teacher_cache.outputs import as_said, find_misfit, rows_that_fit, to_arrays
from teacher_cache.plan import BuildPlan
from teacher_cache.reuse import PaidAnswers
from teacher_cache.settle import Misfits
from teacher_cache.teachers import Answers
from teacher_cache.worklist import WorkList

# Of each input, the outputs that are not to come from a new call: name -> (1, ...).
Copies = Mapping[bytes, Mapping[str, np.ndarray]]


@dataclass(slots=True)
class Answered:
    """Outputs of some cells, in increasing order: name -> (C, ...), with the input of each; and the calls for them.

    Args:
        called: what of it was called for now; None if nothing was.
    """

    cells: list[int]
    inputs: list[bytes]
    values: dict[str, np.ndarray]
    called: Batch | None
    seconds: float


class Assembly:
    """Puts answers together, for one builder.

    Attributes:
        misfits: answers that the store's types cannot keep, so far.
    """

    def __init__(self, plan: BuildPlan, store: Store, work: WorkList, in_hand: AnswersInHand) -> None:
        self._plan, self._work, self._in_hand = plan, work, in_hand
        self._kept = PaidAnswers(store)
        self.misfits: Misfits = {}

    def copies(self, inputs: Sequence[bytes]) -> Copies:
        """What of some inputs is to be copied; asked for before anything is charged, as it has to be there."""
        return {digest: self._read_kept(digest) for digest in inputs}

    def _read_kept(self, digest: bytes) -> dict[str, np.ndarray]:
        outputs, called = self._plan.identity.outputs, self._plan.called_outputs
        if self._work.is_answered(digest):
            return self._kept.read(self._work.paid[digest], outputs)
        rest = [output for output in outputs if output not in called]
        return self._kept.read(self._work.paid[digest], rest) if rest else {}

    def storable(self, batch: Batch, said: Answers) -> Batch:
        """The answers that the store's types can keep, in these types; the others stay in hand as they were said."""
        outputs = self._plan.called_outputs
        fits = rows_that_fit(said, outputs)
        parts = [batch.part(fits, to_arrays(said, outputs, fits))]
        if not fits.all():
            parts.append(batch.part(~fits, as_said(said, outputs, ~fits)))
            for place, cell in enumerate(parts[1].cells):
                misfit = find_misfit({name: values[place] for name, values in parts[1].values.items()}, outputs)
                assert misfit is not None, "it does not fit"
                self.misfits[cell] = misfit
        for part in parts:
            self._in_hand.take(part)
        self._in_hand.lay_down(batch)
        return parts[0]

    def answered(self, inputs: Sequence[bytes], called: Batch | None, copies: Copies, seconds: float) -> Answered:
        """All outputs of the cells of some inputs."""
        values, cells_of = self._put_together(inputs, called, copies), self._work.cells_of
        cells = sorted((cell, place) for place, digest in enumerate(inputs) for cell in cells_of[digest])
        order = [place for _, place in cells]
        if order != list(range(len(inputs))):
            values = {name: array[order] for name, array in values.items()}
        return Answered([cell for cell, _ in cells], [inputs[place] for place in order], values, called, seconds)

    def _put_together(self, inputs: Sequence[bytes], called: Batch | None, copies: Copies) -> dict[str, np.ndarray]:
        """All outputs of some inputs, name -> (C, ...)."""
        identity, said = self._plan.identity, called.values if called else {}
        places = {digest: place for place, digest in enumerate(called.ids if called else ())}
        if list(places) == inputs and len(said) == len(identity.outputs):
            return dict(said)
        values = {
            output.name: np.empty((len(inputs), *output.shape), stored_type(output.dtype))
            for output in identity.outputs
        }
        for place, digest in enumerate(inputs):
            for name, array in copies[digest].items():
                values[name][place] = array[0]
            for name, array in said.items() if digest in places else ():
                values[name][place] = array[places[digest]]
        return values
