"""How a builder asks a teacher that is elsewhere: inputs are charged ahead, answers are collected into groups.

More inputs are charged than requests are under way, in one transaction for many, so that the next request never waits
for the ledger. What is charged and not sent when a build ends is given back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ground.errors import BudgetRefused
from ground.geometry import Rendering
from ground.views import resize
from storage.answers import empty_answers
from storage.float_types import converted
from teacher_cache.answered import Answered
from teacher_cache.answers import Conversion
from teacher_cache.asking import Workplace
from teacher_cache.in_hand import Batch, joined
from teacher_cache.remote.attempts import Attempts, Finished
from teacher_cache.teachers import Answers
from teacher_cache.teachers.attempts import RemoteTeacher

# How long `next` waits at most before its caller can look whether the user has asked to stop.
_POLL_SECONDS = 0.1
# And how long an answer waits at most for others to be written with.
_LINGER_SECONDS = 1.0


class RemoteAsking:
    """Keeps as many requests under way as may be; see `Asking`.

    Args:
        attempts: of the workplace's session.
        in_flight: requests under way at once.
    """

    def __init__(self, place: Workplace, teacher: RemoteTeacher, attempts: Attempts, in_flight: int) -> None:
        self._place, self._attempts, self._rendering = place, attempts, teacher.card.rendering
        self._conversion = Conversion.into(place.plan.identity, teacher.card)
        self._step = in_flight * teacher.max_batch
        self._window = most_charged(in_flight, teacher.max_batch)
        self._most, self._refused_at = self._step, -1
        self._copies: dict[bytes, Mapping[str, np.ndarray]] = {}
        self._paid: list[bytes] = []
        self._since: float | None = None

    @property
    def is_busy(self) -> bool:
        """See `Asking`."""
        return bool(self._paid or self._attempts.finished or not self._attempts.is_idle)

    @property
    def is_winding_down(self) -> bool:
        """See `Asking`."""
        return self._attempts.is_stopped

    def next(self) -> Answered | None:
        """See `Asking`."""
        self._charge()
        if not self.is_busy:
            return None
        # A second Ctrl-C waits until what has landed is on the record; a third does not.
        with self._place.stop.held(1):
            self._attempts.collect(_POLL_SECONDS if self._attempts.in_air else 0.0)
            answered = self._handed_out() if self._is_due() else None
        if answered is None and not self._attempts.in_air:
            time.sleep(_POLL_SECONDS)
        return answered

    def wind_down(self) -> None:
        """See `Asking`."""
        self._attempts.stop()

    def salvage(self, *, wait: bool) -> None:
        """See `Asking`."""
        self._attempts.stop()
        try:
            self._attempts.collect(0.0)
            while wait and self._attempts.in_air:
                self._attempts.collect(_POLL_SECONDS)
        finally:
            self._in_hand(self._taken())

    def finish(self) -> None:
        """See `Asking`."""
        self._attempts.add_to(self._place.report)
        self._attempts.raise_ending()

    def _charge(self) -> None:
        """Charge and send the next inputs, as long as there is room for as many as are charged at once."""
        work = self._place.work
        work.put_back(self._attempts.due())
        while work.todo and not self.is_winding_down and self._attempts.in_air <= self._window - self._step:
            if not self._charge_some():
                return

    def _charge_some(self) -> bool:
        """Charge and send some inputs; False if the budget does not allow it, now or at all."""
        place, work = self._place, self._place.work
        if self._refused_at == self._unsettled:
            return False
        batch = work.next_batch(self._most)
        # Before anything is charged: what is to be copied has to be there, or a call would be paid for nothing.
        self._copies |= place.assembly.copies(batch)
        new = [digest for digest in batch if not work.is_answered(digest)]
        pixels = _rendered(place, new, self._rendering)
        if new:
            place.in_hand.take_room(place.session)
        requests, upper = [work.request(digest) for digest in new], self._attempts.rates.upper_micros
        try:
            reservation = place.ledger.reserve(place.session, requests, place.plan.required, upper_micros=upper)
        except BudgetRefused as error:
            work.put_back(batch)
            self._ask_less(error, len(new))
            return False
        self._most, self._refused_at = min(self._step, 2 * self._most), -1
        charged = [place for place, digest in enumerate(new) if digest in reservation.ids]
        self._attempts.send({new[place]: reservation.ids[new[place]] for place in charged}, pixels[charged])
        self._paid += [digest for digest in batch if digest not in {*new} and work.cells_of[digest]]
        place.advance(work.give_up(reservation.known))
        return True

    @property
    def _unsettled(self) -> int:
        """Answers and attempts of ours that may yet turn out cheaper than what is held back for them."""
        return self._attempts.in_air + len(self._attempts.finished) + self._place.in_hand.num_calls

    def _ask_less(self, error: BudgetRefused, wanted: int) -> None:
        """Try half as much; for a single call wait until something of ours is settled, then end."""
        if wanted > 1:
            self._most = max(1, wanted // 2)
        elif self._unsettled:
            self._refused_at = self._unsettled
        else:
            self._attempts.end(error)

    def _is_due(self) -> bool:
        """Whether what is collected is to be written now."""
        count = len(self._attempts.finished) + len(self._paid)
        if not count:
            self._since = None
            return False
        self._since = time.monotonic() if self._since is None else self._since
        is_old = time.monotonic() - self._since >= _LINGER_SECONDS
        return is_old or count >= self._place.plan.config.batch_size or not self._attempts.in_air

    def _taken(self) -> list[Finished]:
        finished, self._attempts.finished = self._attempts.finished, []
        self._place.report.new_calls += len(finished)
        return finished

    def _handed_out(self) -> Answered:
        finished, paid = self._taken(), self._paid
        self._paid, self._since = [], None
        called = self._in_hand(finished)
        inputs = [*(called.ids if called else ()), *paid]
        copies = {digest: self._copies.pop(digest) for digest in inputs}
        return self._place.assembly.answered(inputs, called, copies, sum(one.seconds for one in finished))

    def _in_hand(self, finished: Sequence[Finished]) -> Batch | None:
        """What the store can keep of answers, in its types; all of them are in hand from here on."""
        answered = [one for one in finished if one.values is not None]
        refused = [one for one in finished if one.values is None]
        parts = []
        if refused:
            outputs = self._place.plan.called_outputs
            empty = empty_answers(outputs, len(refused))
            values = {output.name: converted(empty[output.name], output.dtype) for output in outputs}
            parts.append(self._batch(refused, values=values))
            self._place.in_hand.take(parts[0])
        if answered:
            said = _stacked(answered, self._conversion.asked(self._place.plan.called_names))
            said = self._conversion.convert(said, [one.digest for one in answered])
            batch = self._batch(answered, said=said)
            self._place.in_hand.take(batch)
            parts.append(self._place.assembly.storable(batch, said))
        if len(parts) < 2:
            return parts[0] if parts else None
        whole = joined(parts)
        self._place.in_hand.take(whole)
        for part in parts:
            self._place.in_hand.lay_down(part)
        return whole

    def _batch(
        self,
        finished: Sequence[Finished],
        *,
        said: Answers | None = None,
        values: Mapping[str, np.ndarray] | None = None,
    ) -> Batch:
        cells_of = self._place.work.cells_of
        ids = {one.digest: one.call for one in finished}
        cells, copied = [cells_of[digest][0] for digest in ids], [self._copies[digest] for digest in ids]
        refused = frozenset(one.digest for one in finished if one.values is None)
        bills = {one.call: one.bill for one in finished}
        return Batch(ids, cells, copied, said=said or {}, values=values or {}, refused=refused, bills=bills)


def most_charged(in_flight: int, max_batch: int) -> int:
    """Attempts that are charged at once: under way, as many again that wait, and those that were just charged."""
    return 3 * in_flight * max_batch


def _stacked(answered: Sequence[Finished], names: Sequence[str]) -> Answers:
    rows = [one.values or {} for one in answered]
    return {name: torch.from_numpy(np.stack([values[name] for values in rows])) for name in names}


def _rendered(place: Workplace, inputs: Sequence[bytes], rendering: Rendering) -> np.ndarray:
    """What a teacher is shown of some inputs: (C, 3, h, w) uint8, at its own size."""
    if not inputs:
        return np.empty((0, 3, rendering.size, rendering.size), dtype=np.uint8)
    pixels = place.shown.pixels([place.work.cells_of[digest][0] for digest in inputs])
    return resize(pixels, rendering.size, rendering.interpolation).contiguous().numpy()
