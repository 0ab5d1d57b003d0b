"""Canaries: a few fixed images that every build asks a teacher that is elsewhere about, before anything else.

Nobody can look at the weights of such a teacher. What it said of these images when the store was begun is kept beside
the manifest (`storage/canaries.py`); a build in which it says something else, within the tolerance that its card
states, is a build of another teacher, and refused. They are calls like any others, charged under a purpose of their
own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch

from ground.errors import BudgetRefused, Interrupted, TeacherChanged
from ground.terminal import StopRequest
from ground.views import plain_views, resize, view_pixels
from storage.canaries import CANARY_ROW, CanaryRecord, Said, digest_of_answer
from storage.ledger import Ledger
from storage.ledger_records import CallRequest
from storage.rows import Rows
from storage.schema import DIGEST_BYTES
from storage.store import Store
from teacher_cache.plan import BuildPlan
from teacher_cache.remote.attempts import Attempts, Finished
from teacher_cache.teachers.attempts import RemoteTeacher

NUM_CANARIES = 4

_POLL_SECONDS = 0.1


class Canaries:
    """The canaries of one store: its first validation images, plain."""

    def __init__(self, plan: BuildPlan, store: Store, ledger: Ledger, teacher: RemoteTeacher) -> None:
        self._plan, self._store, self._ledger, self._teacher = plan, store, ledger, teacher

    def ask(self, session: int, attempts: Attempts, stop: StopRequest) -> None:
        """Ask about them, and compare with what was said before, if there was a before.

        Raises:
            TeacherChanged: something else is said, or another model says it.
            TeacherFailed, BudgetRefused, Interrupted: not all of them are answered.
        """
        recorded = CanaryRecord.load(self._store.folder)
        count = NUM_CANARIES if recorded is None else len(recorded.inputs)
        images, samples = self._images(count)
        if recorded is not None:
            attempts.watch.expected = recorded.model
        said = self._answers(session, attempts, stop, images, samples)
        found = CanaryRecord(
            teacher=self._plan.identity.teacher.fingerprint,
            model=attempts.watch.expected,
            inputs=tuple(map(_digest, images)),
            answers=tuple(said),
        )
        found.create(self._store.folder)
        self._require_same(CanaryRecord.load(self._store.folder) or found, found, samples)

    def _images(self, count: int) -> tuple[np.ndarray, list[int]]:
        """What the teacher is shown, (C, 3, h, w) uint8, and which images of the training split these are."""
        rows, rendering = Rows.first(min(count, self._store.manifest.num_val)), self._teacher.card.rendering
        images = torch.from_numpy(self._store.read_sample("val/images", rows))
        pixels = view_pixels(images, plain_views(rendering.geometry, len(images)), rendering)
        shown = resize(pixels, rendering.size, rendering.interpolation).contiguous().numpy()
        return shown, self._store.read_sample("val/source_index", rows).tolist()

    def _answers(
        self, session: int, attempts: Attempts, stop: StopRequest, images: np.ndarray, samples: list[int]
    ) -> list[Said]:
        # No input of any store has this digest: a canary is asked again by each build, and answers for no row.
        inputs = [_digest(np.frombuffer(b"canary %d " % session + _digest(image), np.uint8)) for image in images]
        place_of, todo = {digest: place for place, digest in enumerate(inputs)}, list(inputs)
        answered: dict[bytes, Finished] = {}
        while todo or not attempts.is_idle:
            if stop.requested:
                attempts.stop()
            todo = [*todo, *attempts.due()]
            if todo and not attempts.is_stopped:
                places = [place_of[digest] for digest in todo]
                requests = [CallRequest(inputs[place], samples[place], CANARY_ROW, place) for place in places]
                self._charge(session, attempts, requests, images)
            todo = []
            with stop.held(1):
                attempts.collect(_POLL_SECONDS)
            answered |= {one.digest: one for one in attempts.finished}
            attempts.finished = []
        self._ledger.commit(
            {one.call: digest_of_answer(one.values) for one in answered.values()},
            sum(one.seconds for one in answered.values()),
            {one.call: one.bill for one in answered.values()},
        )
        attempts.raise_ending()
        if len(answered) < len(inputs):
            raise Interrupted("stopped before the build had begun; run the same command again to go on")
        return [answered[digest].values for digest in inputs]

    def _charge(self, session: int, attempts: Attempts, requests: list[CallRequest], images: np.ndarray) -> None:
        try:
            reservation = self._ledger.reserve(session, requests, upper_micros=attempts.rates.upper_micros)
        except BudgetRefused as error:
            attempts.end(error)
            return
        attempts.send(reservation.ids, images[[request.view for request in requests]])

    def _require_same(self, before: CanaryRecord, now: CanaryRecord, samples: list[int]) -> None:
        name, what = self._plan.identity.teacher.name, None
        if before.inputs != now.inputs:
            raise TeacherChanged(
                f"the images that {name} is compared by are others than when {self._store.folder} was begun; bring "
                "the store back from a copy"
            )
        for place, (said, answer) in enumerate(zip(before.answers, now.answers, strict=True)):
            difference = difference_of(said, answer, self._teacher.tolerance)
            if difference is not None:
                what = f"of validation image {samples[place]} (canary {place}) {difference}"
                break
        if what is not None:
            raise TeacherChanged(
                f"{name} is another teacher now than when {self._store.folder} was begun: {what}; what it answered "
                "before is kept: go on with the teacher as it was, or build a new --store with this one"
            )


def difference_of(before: Said, now: Said, tolerance: float) -> str | None:
    """How two answers to one image differ; None where they are alike.

    Args:
        tolerance: largest difference of a value; ids beside values count by these.
    """
    if before is None or now is None:
        return None if before is now else f"it {'refuses' if now is None else 'answers'}, which it did not before"
    if {*before} != {*now}:
        return f"it says {', '.join(now)}, and said {', '.join(before)}"
    for name in before:
        if f"{name.partition('.')[0]}.values" in before and name.endswith(".ids"):
            continue
        difference = _difference(*(_by_class(name, said) for said in (before, now)))
        if not difference <= tolerance:
            return f"its {name} differs by {difference:.3g}, and its tolerance is {tolerance:g}"
    return None


def _by_class(name: str, said: Mapping[str, np.ndarray]) -> Mapping[int, float]:
    """Place, or class where the answer has ids -> value."""
    values = said[name].reshape(-1).astype(np.float64)
    ids = said.get(f"{name.partition('.')[0]}.ids") if name.endswith(".values") else None
    places = range(len(values)) if ids is None else ids.reshape(-1).tolist()
    return dict(zip(places, values.tolist(), strict=True))


def _difference(before: Mapping[int, float], now: Mapping[int, float]) -> float:
    """The largest of any place; of one that a side left out it is known to be no larger than the least that it has."""
    if not before or not now:
        return 0.0 if not before and not now else float("inf")
    least = [min(values.values()) for values in (before, now)]
    pairs = [(before.get(place, least[0]), now.get(place, least[1])) for place in {*before, *now}]
    return max(0.0 if one == other else abs(one - other) for one, other in pairs)


def _digest(content: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(content).data).digest()[:DIGEST_BYTES]
