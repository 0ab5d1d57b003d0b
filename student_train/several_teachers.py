"""Several teachers over one sample: the answers of several stores, combined when the data are loaded.

The store with the most whole rows gives images, labels, validation and test; each answers its own first rows, as far
as they are whole, so that a small teacher may have answered many and a large one the first few. Rows are the same where
source index, label, views and image are; anything that differs is refused before answers are read. From here on a
student has one teacher: losses, batches and training know of no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch

from ground.errors import IdentityMismatch, InvalidInput, StoreIncomplete
from ground.places import Place
from storage.answers import AnswerForm
from storage.blocks import DIGEST_DIGITS
from storage.rows import Rows
from storage.run_record import RunTeacher
from storage.schema import IMAGES, UNLABELLED, VIEWS
from storage.store import Store
from storage.store_ledger import newest_head
from student_train.combining import COMBINABLE, WAYS, combined
from student_train.needs import Wanted

_LABELS = "train/labels"
# What makes a row the same row, the cheapest first.
_SAMPLE = ("train/source_index", _LABELS, VIEWS, IMAGES)
_READ_BYTES = 64 << 20
_MOST_SHOWN = 40


@dataclass(frozen=True, slots=True)
class TeacherStore:
    """One teacher's answers.

    Args:
        rows: the first so many rows are answered by it.
        ledger_head: newest hash of the store's ledger.
    """

    store: Store
    rows: int
    ledger_head: str | None

    @property
    def num_calls(self) -> int:
        """That were paid for these answers."""
        return self.rows * self.store.manifest.identity.views

    def recorded(self) -> RunTeacher:
        """For a run's record."""
        manifest = self.store.manifest
        return RunTeacher(
            store=str(self.store.place.resolve()),
            store_id=manifest.store_id,
            teacher=manifest.identity.teacher.name,
            teacher_fingerprint=manifest.identity.teacher.fingerprint,
            ledger_head=self.ledger_head,
            rows=self.rows,
            teacher_calls=self.num_calls,
        )


@dataclass(frozen=True, slots=True)
class SeveralTeachers:
    """Stores of one sample, and how their answers become one.

    Args:
        way: name of one of `student_train.combining.WAYS`.
        pool: the store that gives everything but answers; one of them too.
        teachers: in the order that they were named.
        n: rows, each of which is answered by one of them at least.
    """

    way: str
    pool: Store
    teachers: tuple[TeacherStore, ...]
    n: int

    @classmethod
    def open(cls, places: Sequence[Place], way: str, n: int | None) -> SeveralTeachers:
        """Open stores and check that they are of one sample, which reads no answers.

        Args:
            n: rows to learn from; None for all that any of them has.

        Raises:
            IdentityMismatch: two are of different pools or samples, or of different kinds of answers.
            InvalidInput: they cannot be combined, or not in this way.
            RolledBack: a store's ledger is older than its witness, or a fork.
            StoreUnreadable, StoreIncomplete: a store is damaged, or has none of these rows whole.
        """
        stores = [Store.open(place) for place in places]
        whole = [store.valid_prefix() for store in stores]
        pool = stores[whole.index(max(whole))]
        n = pool.manifest.n if n is None else n
        if n < 1:
            raise InvalidInput(f"--n {n} learns from no teacher's answers; give one --store, without --combine")
        _require_kinds(stores)
        _require_different_teachers(stores)
        if not min(whole):
            none = stores[whole.index(0)]
            raise StoreIncomplete(
                f"{none.place} has no whole row to combine; leave it out, or finish it with: "
                f"{none.build_command(none.manifest.n)}"
            )
        for store, rows in zip(stores, whole, strict=True):
            if store is not pool:
                _require_same_sample(pool, store, min(rows, n))
        if WAYS[way].needs_labels:
            _require_labelled(pool, way, min(n, pool.manifest.n))
        teachers = tuple(
            TeacherStore(store, min(rows, n), newest_head(store, witnessed=True))
            for store, rows in zip(stores, whole, strict=True)
        )
        return cls(way, pool, teachers, n)

    def wanted(self, wanted: Wanted) -> Wanted:
        """What is to be loaded for a method.

        Raises:
            InvalidInput: it learns from something else of a teacher than answers over the classes, or from nothing.
        """
        layers = [name for name in wanted.teacher if name not in self.pool.manifest.identity.answer_names]
        if not wanted.teacher:
            raise InvalidInput("the method asks no teacher, so there is nothing to combine; give one --store")
        if layers or wanted.parameters:
            what = ", ".join(layers) or "the teacher's last layer or norms"
            raise InvalidInput(
                f"the method learns from {what}, and layers of different teachers have nothing in common that could be "
                "combined; give a method of answers alone, as kd, dist or ckd, or one --store"
            )
        return replace(wanted, unstreamable="answers of several stores are combined in memory; give one --store")

    def read_outputs(self, names: Sequence[str], rows: Rows) -> dict[str, np.ndarray]:
        """As `Store.read_outputs`, of combined answers: name -> (n, V, K) float32, NaN where no teacher answered.

        Args:
            names: the one output that answers are kept in.
            rows: the first n.
        """
        identity, kind = self.pool.manifest.identity, _form_of(self.pool).kind
        (name,) = names
        labels = torch.from_numpy(self.pool.read_sample(_LABELS, rows))
        shape = (identity.views, len(identity.dataset.classes))
        result = np.empty((len(rows), *shape), np.float32)
        step = max(1, _READ_BYTES // (8 * prod(shape) * len(self.teachers)))
        for first, last in rows.blocks(step):
            said = np.stack([_read(teacher, name, first, last, shape) for teacher in self.teachers])
            of_cells = labels[first:last].repeat_interleave(identity.views)
            flat = torch.from_numpy(said.reshape(len(self.teachers), -1, shape[1]))
            found = combined(WAYS[self.way], kind, flat, of_cells)
            result[first:last] = found.reshape(last - first, *shape).numpy()
        return {name: result}

    @property
    def num_calls(self) -> int:
        """Of all teachers together."""
        return sum(teacher.num_calls for teacher in self.teachers)

    @property
    def name(self) -> str:
        """Of all teachers together."""
        return "+".join(teacher.store.manifest.identity.teacher.name for teacher in self.teachers)

    def settings(self) -> Mapping[str, Any]:
        """What a run's settings say of it: what decides the answers."""
        return {
            "combine": self.way,
            "stores": tuple(teacher.store.manifest.store_id for teacher in self.teachers),
            "store_rows": tuple(teacher.rows for teacher in self.teachers),
        }

    def recorded(self) -> tuple[RunTeacher, ...]:
        """What a run's record says of it: whose answers, and what they cost."""
        return tuple(teacher.recorded() for teacher in self.teachers)


def _read(teacher: TeacherStore, name: str, first: int, last: int, shape: tuple[int, ...]) -> np.ndarray:
    """(last - first, V, K): answers of these rows, NaN beyond those that it has."""
    said = np.full((last - first, *shape), np.nan, np.float32)
    there = min(last, teacher.rows) - first
    if there > 0:
        said[:there] = teacher.store.read_outputs([name], Rows.between(first, first + there))[name]
    return said


def _require_kinds(stores: Sequence[Store]) -> None:
    """Refuse answers that are not of one kind, or of one that has no mean."""
    first = _form_of(stores[0])
    for store in stores:
        form = _form_of(store)
        if form != first:
            raise IdentityMismatch(
                f"{store.place} keeps answers as {form.text}, and {stores[0].place} as {first.text}; give stores of "
                "one kind of answers"
            )


def _form_of(store: Store) -> AnswerForm:
    form = store.manifest.identity.answer_form
    if form is None:
        raise InvalidInput(
            f"{store.place} keeps features only, and no answers over the classes that could be combined; leave it out"
        )
    if form.kind not in COMBINABLE:
        raise InvalidInput(
            f"{store.place} keeps answers as {form.text}, which say nothing of some classes and so have no mean; "
            f"combine stores of {', '.join(COMBINABLE)}"
        )
    return form


def _require_different_teachers(stores: Sequence[Store]) -> None:
    """Refuse a teacher that is there twice: its calls were paid for once."""
    known: dict[str, Store] = {}
    for store in stores:
        teacher = store.manifest.identity.teacher
        other = known.setdefault(teacher.fingerprint, store)
        if other is not store:
            raise InvalidInput(
                f"{other.place} and {store.place} hold answers of the same teacher, {teacher.name}; give each once"
            )


def _facts(store: Store) -> dict[str, object]:
    """What stores of one sample have in common, by the name that a manifest has for it."""
    identity = store.manifest.identity
    return {
        "dataset.digest": identity.dataset.digest,
        "dataset.classes": identity.dataset.classes,
        "dataset.squares": identity.dataset.squares,
        **{f"geometry.{name}": value for name, value in asdict(identity.geometry).items()},
        "view_policy": identity.view_policy,
        "views": identity.views,
        "seed": identity.seed,
    }


def _require_same_sample(pool: Store, other: Store, rows: int) -> None:
    """Raise `IdentityMismatch` unless two stores say the same of the first rows, but for the answers."""
    theirs = _facts(other)
    for name, value in _facts(pool).items():
        if theirs[name] != value:
            raise _mismatch(pool, other, f"{name} is {_short(value)} in one and {_short(theirs[name])} in the other")
    for name in _SAMPLE:
        first = _first_difference(pool, other, name, rows)
        if first is not None:
            raise _mismatch(pool, other, f"{name} differs, from row {first} on")


def _mismatch(pool: Store, other: Store, what: str) -> IdentityMismatch:
    return IdentityMismatch(
        f"{pool.place} and {other.place} are not of one sample ({what}); give stores that were built from the same "
        "data set with the same seed, rules, rounds and views"
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def _first_difference(pool: Store, other: Store, name: str, rows: int) -> int | None:
    """The first row, or the first of the block, in which an array differs; None where the first rows are the same.

    Whole blocks of images are compared by the digests in the manifests, by which `ckd-cache verify` checks them; all
    else is read.
    """
    spec = pool.arrays.specs[name]
    size, manifests = pool.manifest.block_rows(spec), (pool.manifest, other.manifest)
    # Blocks are of places, which in few stores are not the rows of the same number.
    alike = (
        other.manifest.block_rows(other.arrays.specs[name]) == size and not pool.manifest.places + other.manifest.places
    )
    blocks = rows // size if alike and name == IMAGES else 0
    for block in range(blocks):
        ours, theirs = (found.samples[name][block * DIGEST_DIGITS :][:DIGEST_DIGITS] for found in manifests)
        if ours != theirs:
            return block * size
    step = max(1, _READ_BYTES // max(1, spec.row_bytes))
    for first, last in Rows.between(blocks * size, rows).blocks(step):
        mine, its = (store.read_sample(name, Rows.between(first, last)) for store in (pool, other))
        differing = np.flatnonzero((mine != its).reshape(last - first, -1).any(axis=1))
        if len(differing):
            return first + int(differing[0])
    return None


def _require_labelled(pool: Store, way: str, rows: int) -> None:
    bare = int(np.count_nonzero(pool.read_sample(_LABELS, Rows.first(rows)) == UNLABELLED))
    if bare:
        raise InvalidInput(
            f"--combine {way} weighs a teacher by what it says of a row's label, and {bare} of {rows} rows of "
            f"{pool.place} have none; give --combine mean or best"
        )
