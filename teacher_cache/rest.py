"""The rest: images of the same pool that a store keeps, with their labels, without asking the teacher about them.

They follow the n rows that it is asked about, in the sample's order, so a larger n asks about the first of them, or
about those of them that a rule chooses. None of them is ever a validation image, whatever n becomes. What a store keeps
is never taken away from it: an image leaves the rest by being asked about.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ground.errors import InvalidInput
from storage.manifest import Manifest
from teacher_cache.sample import NestedSample

_COUNT = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Rest:
    """How much of it is asked for; `count` is None for all there is."""

    count: int | None

    @classmethod
    def read(cls, text: str) -> Rest:
        """As users write it; raises `InvalidInput` for anything but a number, all and none."""
        if text in ("all", "none"):
            return cls(None if text == "all" else 0)
        if _COUNT.fullmatch(text) is None:
            raise InvalidInput(f"--rest is {text[:40]!a}; give a number of images, all, or none")
        return cls(int(text))


def rest_to_keep(
    asked: Rest | None, sample: NestedSample, before: Manifest | None, drawn: NestedSample | None = None
) -> int:
    """Rows that a store keeps without an answer, once a build of a sample is done.

    Args:
        asked: None for as many images in all as the store has, but for those that a rule makes of others.
        sample: with all of the pool's rest.
        before: of the store, where it is there.
        drawn: the sample before a rule chose of its rest; None where none did.

    Raises:
        InvalidInput: the pool has fewer.
    """
    answered = len(sample.train) if before is None else max(len(sample.train), before.n)
    there = int(np.isin(_kept(drawn or sample, before), sample.train, invert=True).sum())
    if asked is None:
        return there
    room = max(0, len(sample.train) + len(sample.rest) - answered)
    if asked.count is not None and asked.count > room:
        raise InvalidInput(
            f"--rest {asked.count} is more than the {room} images that are left beside --n {answered} and those for "
            f"validation; give --rest {room} or less, or all"
        )
    return max(there, room if asked.count is None else asked.count)


def images_twice(sample: NestedSample, before: Manifest | None, drawn: NestedSample) -> int:
    """Images that a store of a sample keeps twice, since rules bought them of its rest (`storage.row_places`).

    Args:
        sample, before, drawn: as for `rest_to_keep`.
    """
    if before is None:
        return 0
    there = before.num_places - before.num_images
    kept, rows = _kept(drawn, before), sample.images[before.n : before.num_images]
    return there if np.array_equal(rows, kept) else there + int(np.isin(kept, sample.train).sum())


def _kept(drawn: NestedSample, before: Manifest | None) -> np.ndarray:
    """The rest that a store has, (r,) int64."""
    return drawn.rest[:0] if before is None else drawn.images[before.n : before.num_images]
