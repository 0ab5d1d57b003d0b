"""What a rule is that says which images to buy answers for, and what it may look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ground.errors import InvalidInput
from ground.spec import Settings, spelled_settings
from ground.user_code import UserCode
from models.compute import Compute
from storage.identity import Identity
from teacher_cache.datasets.base import Split
from teacher_cache.datasets.made_split import MadeSplit


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pool:
    """The training images of a data set before a round is bought. Validation and test images are not among them.

    Args:
        images: the training split, read by index or recipe; a rule that looks at `labels` says so.
        left: (c,) int64, indices of those that may be bought, in the order that the sample's seed gives.
        bought: (b,) int64, indices of those that were bought, in the order of purchase; some may be recipes of images
            that were made of others, whose classes `labels_of` says.
        identity: of the store, for how images are shown, and which teacher is the paid one.
        store_ids: of the store and of those it was made from; empty before there is one.
        compute: where networks of the user's own run.
        code: what is done with networks that are code from outside this program.
    """

    images: Split = field(repr=False)
    left: np.ndarray
    bought: np.ndarray
    identity: Identity
    store_ids: frozenset[str] = frozenset()
    compute: Compute
    code: UserCode = UserCode.REFUSED

    @property
    def num_classes(self) -> int:
        """K, of the data."""
        return len(self.identity.dataset.classes)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, the class of every training image; `UNLABELLED` where there is none."""
        return self.images.labels

    def labels_of(self, index: np.ndarray) -> np.ndarray:
        """(n,) int64, the classes of images by their index, those that are made of others among them."""
        return MadeSplit(self.images).labels_of(index)


class Selector(ABC):
    """A rule: which of the images that are left to buy next.

    A rule is made of settings that a user writes, `NAME:key=value,...`, which are the arguments of its `__init__`; what
    is out of its range it refuses with a `ValueError`. It never asks the teacher, and sees no answer but through
    students that were trained on those that were bought.

    Attributes:
        name: what `--select` calls it.
        source: paper and section.
        needs_labels: whether it looks at the labels of images that are not bought, which cost something too.
        makes: whether it may choose images that are made of those that were bought (`storage.made_images`).
    """

    name: ClassVar[str]
    source: ClassVar[str]
    needs_labels: bool = False
    makes: bool = False

    @classmethod
    def made_of(cls, name: str, values: Mapping[str, str], make: Callable[[str], Selector]) -> Selector:
        """The rule of its settings.

        Args:
            name: what it was called, for messages.
            values: settings as they were written, in that order.
            make: another rule of its text, for one that is made of others.

        Raises:
            UnknownName, InvalidInput: a setting is none, is missing, or is out of its range.
        """
        settings = Settings("rule", name, values)
        arguments = settings.arguments(cls)
        settings.finish()
        return settings.call(cls, arguments)

    @classmethod
    def spelled(cls, values: Mapping[str, str], spell: Callable[[str], str]) -> dict[str, str]:
        """Its settings as they are usually written, by which rules are compared; see `ground.spec.spelled_settings`.

        Args:
            values: settings as they were written, in that order.
            spell: the usual text of another rule, for one that is made of others.
        """
        reads_its_own = next(base for base in cls.__mro__ if "made_of" in vars(base)) is not Selector
        # What its settings mean, and which are defaults, it alone knows then.
        return dict(values) if reads_its_own else spelled_settings(cls, values)

    def num_images(self, count: int) -> int:
        """How many of so many rows are images that are left, and not made of others."""
        return count

    def require(self, pool: Pool, count: int) -> None:
        """Refuse what cannot be chosen, before anything is computed.

        Raises:
            InvalidInput: it needs more memory than is free, a network that is not there, or the like.
        """
        return

    @abstractmethod
    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
        """Indices to buy, (count,) int64, distinct and all of `pool.left`, the most wanted first; a rule that makes
        images may choose recipes, of what was bought and what it chose before them.

        Args:
            count: at least 1 and at most `len(pool.left)`.
            rng: the only source of chance; the same state gives the same images.
        """

    def looked_at(self) -> Mapping[str, str]:
        """What it computes on beside pixels and labels, for the record: a name, and what identifies the thing there."""
        return {}


def require_labelled(rule: Selector, pool: Pool) -> None:
    """Raise `InvalidInput` where a rule needs labels, and images that may be bought have none."""
    missing = int(np.count_nonzero(pool.labels[pool.left] < 0)) if rule.needs_labels else 0
    if missing:
        raise InvalidInput(
            f"--select {rule.name} looks at labels, and {missing} of the {len(pool.left)} images that may be bought "
            "have none; choose a rule that needs none, as kcenter, or label them"
        )


def require_left(pool: Pool, count: int) -> None:
    """Raise `InvalidInput` where more images are to be bought than are left."""
    if count > len(pool.left):
        raise InvalidInput(
            f"{count} images are to be bought, and {len(pool.left)} are left: every fifth is kept for validation; "
            "lower --n, or buy more views or mixes, as mix:random=0.2,mixup=0.8"
        )
