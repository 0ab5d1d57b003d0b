"""Rounds: which rows a build buys next, where a rule chooses them and not the sample's seed alone.

A store's order is the order of purchase. The rows of a round are chosen together, before any of their calls: they are
in the store when the first call is made, so a build that is stopped goes on with the same rows, and what is bought
stays bought. Validation images are those of the seed, whatever the rule.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import chain

import numpy as np

from ground.documents import is_line
from ground.errors import BoughtOtherwise, InvalidInput
from ground.places import Place
from models.compute import Compute
from storage.blocks import RowSource
from storage.identity import Identity
from storage.made_images import first_unsound, is_made
from storage.manifest import Manifest, Round, is_store
from storage.rows import Rows
from storage.schema import SOURCE_INDEX
from storage.store import Store
from teacher_cache.config import BuildConfig
from teacher_cache.datasets.base import Split
from teacher_cache.datasets.made_split import MadeSplit
from teacher_cache.plan import BuildPlan
from teacher_cache.sample import NestedSample
from teacher_cache.selection import Pool, Selector, SelectorSpec
from teacher_cache.selection.contract import require_labelled, require_left
from teacher_cache.selection.random_order import Random


def round_ends(n: int, bought: int, size: int | None) -> list[int]:
    """Where the rounds end that take a store from `bought` rows to n, each of `size` rows or, the last, of fewer.

    Args:
        size: None for all in one round.
    """
    return [n] if size is None or n <= bought else list(chain(range(bought + size, n, size), [n]))


def bought_by_rules(place: Place, dataset: str, seed: int) -> np.ndarray | None:
    """Of a store that has rows which a rule chose, where in the training split all its rows come from, (n,) int64; None
    for one of other images or another seed, which has yet to be refused.

    Args:
        dataset: digest of the images.
    """
    if not is_store(place):
        return None
    manifest = Manifest.load(place)
    if not manifest.rounds or (manifest.identity.dataset.digest, manifest.identity.seed) != (dataset, seed):
        return None
    store = Store.open(place)
    return store.read_sample(SOURCE_INDEX, Rows.first(store.manifest.n))


def choose_rows(
    config: BuildConfig,
    images: Split,
    identity: Identity,
    compute: Compute,
    sample: NestedSample,
    before: Manifest | None,
) -> tuple[NestedSample, tuple[Round, ...]]:
    """The rows that a build is to have, and how all of them were chosen.

    Args:
        images: the training split.
        sample: the rows that the store has, and then those of the seed's order.
        before: the store's, where it is there.

    Raises:
        InvalidInput: the store has so many rows already, of another rule; or the rule cannot choose.
    """
    have = 0 if before is None else min(before.n, config.n)
    rounds = () if before is None else before.rounds
    spec = config.select or SelectorSpec(Random.name)
    if before is not None and before.n >= config.n:
        if config.select is not None:
            _require_rule(spec, before, config.n)
        return sample, rounds
    made = _round(config, spec, have)
    if spec.is_random:
        return sample, (*rounds, made) if rounds else ()
    rule, left = spec.make(), np.concatenate([sample.train[have:], sample.rest])
    pool = Pool(
        images=MadeSplit(images),
        left=left,
        bought=sample.train[:have],
        identity=identity,
        store_ids=frozenset() if before is None else frozenset(before.ids),
        compute=compute,
        code=config.code,
    )
    chosen = _chosen(rule, pool, config.n - have)
    sample = NestedSample(
        train=np.concatenate([pool.bought, chosen]), val=sample.val, rest=left[~np.isin(left, chosen)]
    )
    return sample, (*rounds, replace(made, looked_at=_recordable(dict(rule.looked_at()))))


def _round(config: BuildConfig, spec: SelectorSpec, first: int) -> Round:
    """The round that is to be bought; raises `InvalidInput` where no manifest could say by which rule."""
    if not is_line(spec.recorded):
        raise InvalidInput(
            f"the rule {spec.recorded[:60]!a} cannot be recorded, for it is no printable line of at most 4096 letters; "
            "give shorter or plainer paths in it"
        )
    return Round(rule=spec.recorded, seed=config.seed, first=first, end=config.n)


def _recordable(looked_at: dict[str, str]) -> dict[str, str]:
    """The same, with a digest in the place of what is too long to be recorded, as the digests of many students."""
    return {
        name: value if is_line(value) else f"sha256 {hashlib.sha256(value.encode()).hexdigest()}"
        for name, value in looked_at.items()
    }


def require_bought(store: Store, plan: BuildPlan, index: RowSource) -> None:
    """Raise `BoughtOtherwise` where a store's images are not those of a plan: another builder was faster, and chose by
    another rule, or on what rounds differently, or added a rest.

    Args:
        index: where all images of the plan come from, its rest included.
    """
    if not store.manifest.rounds and not plan.rounds:
        return  # both are the seed's
    n, there = store.manifest.n, store.read_sample(SOURCE_INDEX)
    if plan.n > n:
        # Images of the rest may be among those that are bought next, and then it is not what it was.
        others = np.flatnonzero(np.concatenate([there[:n] != index[:n], ~np.isin(there[n:], index[n : len(index)])]))
    else:
        num = min(len(there), len(index))
        others = np.flatnonzero(there[:num] != index[:num])
    if len(others):
        first = int(others[0])
        raise BoughtOtherwise(
            f"another builder chose other images for {store.place}, from row {first} on; run the same command again, "
            "which goes on from those"
        )


def _require_rule(spec: SelectorSpec, before: Manifest, n: int) -> None:
    found = before.round_of(n - 1)
    rule = Random.name if found is None else found.rule
    if not spec.is_recorded_as(rule):
        raise InvalidInput(
            f"the store has {before.n} rows already, and its row {n - 1} was chosen by {rule}, not by {spec.recorded}; "
            "give a larger --n to buy more by that, or another --store"
        )


def _chosen(rule: Selector, pool: Pool, count: int) -> np.ndarray:
    """What a rule chooses, checked: it may be anybody's."""
    require_labelled(rule, pool)
    if not rule.makes:
        require_left(pool, count)
    rule.require(pool, count)
    rng = np.random.default_rng([pool.identity.seed, len(pool.bought)])
    chosen = np.asarray(rule.choose(pool, count, rng))
    is_right = chosen.shape == (count,) and chosen.dtype == np.int64 and len(np.unique(chosen)) == count
    if not is_right or not _can_be_bought(chosen, pool, makes=rule.makes):
        raise InvalidInput(
            f"the rule {rule.name} was asked for {count} images and chose others than so many distinct ones of those "
            "that are left; choose another rule, or mend it"
        )
    return chosen


def _can_be_bought(chosen: np.ndarray, pool: Pool, *, makes: bool) -> bool:
    """Whether images are left, and what others are made of was bought, or is chosen before them."""
    made = is_made(chosen)
    if not np.isin(chosen[~made], pool.left).all() or (made.any() and not makes):
        return False
    return first_unsound(np.concatenate([pool.bought, chosen])) is None and not np.isin(chosen, pool.bought).any()
