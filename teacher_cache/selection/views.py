"""Views: the images that were bought, once more, each by another view of it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ground.errors import InvalidInput
from storage.made_images import Kind, Recipes, is_made
from teacher_cache.selection.contract import Pool
from teacher_cache.selection.made_rule import MadeRule


class Views(MadeRule):
    """A further view of the images that have the fewest, in the order of purchase.

    See `MadeRule` for its settings. A store of plain views has one view of each image, and nothing more to ask.
    """

    name: ClassVar[str] = "views"
    source: ClassVar[str] = "Beyer et al. 2022, arXiv:2106.05237, section 3.1: a fixed teacher of several views"

    def require(self, pool: Pool, count: int) -> None:
        """See `Selector.require`."""
        super().require(pool, count)
        if pool.identity.view_policy == "plain":
            raise InvalidInput(
                "--select views buys further views, and with --view-policy plain all views of an image are the same; "
                "give another policy, or choose images"
            )

    def candidates(self, pool: Pool, images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """See `MadeRule.candidates`."""
        made = Recipes.of(pool.bought[is_made(pool.bought)])
        again = made.kind == Kind.AGAIN
        # Of each image that was bought, the number of its last view; one of those may have been passed over.
        places = np.argsort(images, kind="stable")
        row_of = places[np.searchsorted(images[places], made.first[again])]
        have = np.zeros(len(images), np.int64)
        np.maximum.at(have, row_of, made.second[again])
        # As many turns as bring enough, wherever they begin; no image gets its next view before those that have fewer.
        turns, rows = (found.ravel() for found in np.indices((-(-count // len(images)) + int(have.max()), len(images))))
        number = have[rows] + turns + 1
        order = np.lexsort((rows, number))[:count]
        zeros = np.zeros(count, np.int64)
        return Recipes(
            kind=np.full(count, Kind.AGAIN, np.int64), first=images[rows[order]], second=number[order], parts=zeros
        ).index
