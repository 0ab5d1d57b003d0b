"""What a student is to be trained from, checked as far as that needs no reading of images or answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ground.errors import InvalidInput, StoreIncomplete
from ground.geometry import Rendering
from ground.main_memory import free_main_memory
from storage.rows import Rows, num_validation
from storage.store import Store
from storage.store_ledger import newest_head
from student_train.needs import Wanted
from student_train.rest.beyond import Beyond
from student_train.several_teachers import SeveralTeachers
from student_train.shown_images import takes_no_more

# The rest is for the student, its optimizer and its batches.
_SHARE_OF_FREE = 0.8


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be loaded.

    Args:
        rows: of the training split.
        names: outputs to read.
        rest: further rows, whose images alone are wanted.
        rest_order: of the store's rows where those are wanted, see `Beyond`.
        num_labelled: rows whose labels are at hand, which is what the validation images go with.
        unasked: whether the rows are labelled ones of the whole store, whatever the teacher was asked about.
        rendering: how the student is shown images.
        ledger_head: newest hash of the store's ledger.
        readers: processes of this machine that load it, each for itself.
        teachers: whose answers are combined, where there are several; the store is then the one of their images.
    """

    store: Store
    rows: Rows
    names: tuple[str, ...]
    rendering: Rendering
    ledger_head: str | None
    num_labelled: int
    readers: int = 1
    rest: Rows = field(default=Rows(()))
    rest_order: str | None = None
    unasked: bool = False
    teachers: SeveralTeachers | None = None

    @classmethod
    def checked(
        cls,
        store: Store,
        n: int | None,
        wanted: Wanted,
        rendering: Rendering | None,
        readers: int = 1,
        teachers: SeveralTeachers | None = None,
    ) -> Request:
        """As `StudentData.load` says."""
        shown = _require_size(store, rendering)
        _require_measurable(store)
        head = newest_head(store, witnessed=True)
        n = store.manifest.n if n is None else n
        unasked = n == 0 and wanted.rest_labels
        if n < 2 and not unasked:
            raise InvalidInput(f"--n {n} is too small to train on; give at least 2, or --n 0 with --rest ce")
        rows = Rows.first(n)
        if not unasked:
            _require_whole(store, rows)
        beyond = Beyond.of(store, n) if wanted.rest else None
        labelled = beyond.labelled if beyond is not None and wanted.rest_labels else np.empty(0, np.int64)
        return cls(
            store=store,
            rows=_require_labelled(store, labelled) if unasked else rows,
            names=tuple(_require_outputs(store, wanted.teacher)),
            rendering=shown,
            ledger_head=head,
            num_labelled=n + len(labelled),
            readers=readers,
            rest=Rows(()) if beyond is None else beyond.rows,
            rest_order=None if beyond is None else beyond.order,
            unasked=unasked,
            teachers=teachers,
        )

    def read_outputs(self) -> dict[str, np.ndarray]:
        """What is said of the rows, as `Store.read_outputs` gives it; empty where no teacher is involved."""
        if not self.names:
            return {}
        return (self.teachers or self.store).read_outputs(self.names, self.rows)

    @property
    def val_rows(self) -> Rows:
        """Validation images, in the paper's proportion to the labels at hand, as far as the store has them."""
        return Rows.first(min(num_validation(self.num_labelled), self.store.manifest.num_val))

    @property
    def row_bytes(self) -> int:
        """What a row of images and outputs takes."""
        specs = self.store.arrays.specs
        return sum(specs[name].row_bytes for name in ["train/images", *map(self.store.array_of, self.names)])

    @property
    def needed_bytes(self) -> int:
        """What all of it takes in memory, validation images as they are stored and as they are shown."""
        specs, rows_of = self.store.arrays.specs, self.store.manifest.rows_of
        evaluated = sum(rows_of(spec) * spec.row_bytes for spec in (specs["val/images"], specs["test/images"]))
        rest = len(self.rest) * specs["train/images"].row_bytes
        shown = 3 * self.rendering.size**2 * len(self.val_rows) if takes_no_more(self.rendering) else 0
        return len(self.rows) * (self.row_bytes + specs["train/views"].row_bytes) + evaluated + rest + shown

    @property
    def fits_memory(self) -> bool:
        """Whether what is free now holds it, and leaves room for the student and its batches."""
        return self.readers * self.needed_bytes <= _SHARE_OF_FREE * free_main_memory()

    def require_memory(self) -> None:
        """Raise `InvalidInput` unless it does."""
        if not self.fits_memory:
            raise InvalidInput(
                f"{self.shown_size}; leave it to a stream, as --stream does, lower --n, or use losses that need fewer "
                "features"
            )

    @property
    def shown_size(self) -> str:
        """For a message."""
        rest = f" and {len(self.rest)} more images" if self.rest.runs else ""
        times = f" in each of {self.readers} ranks" if self.readers > 1 else ""
        return (
            f"{', '.join(['images', *self.names])} of {len(self.rows)} rows{rest} take {self.needed_bytes / 1e9:.1f} GB"
            f"{times} and {free_main_memory() / 1e9:.1f} GB of memory are free, a fifth of it for the student"
        )


def _require_size(store: Store, rendering: Rendering | None) -> Rendering:
    """The rendering to use, for base images as the store has them."""
    identity = store.manifest.identity
    if rendering is None:
        return identity.teacher_rendering
    asked, found = rendering.geometry.image_size, identity.geometry.image_size
    if asked != found:
        raise InvalidInput(f"the student's views are cut from {asked} pixels, and {store.place} has images of {found}")
    return rendering


def _require_measurable(store: Store) -> None:
    """Refuse what gives accuracies that say nothing, which no build makes."""
    manifest = store.manifest
    for split, images in (("validation", manifest.num_val), ("test", manifest.num_test)):
        if not images:
            raise InvalidInput(
                f"{store.place} has no {split} images, so no student's accuracy can be measured; build another store"
            )
    if len(manifest.identity.dataset.classes) < 2:
        raise InvalidInput(
            f"{store.place} has a single class, so every student would be right; build a store of two classes or more"
        )


def _require_labelled(store: Store, index: np.ndarray) -> Rows:
    """Rows to learn from by their labels alone."""
    if len(index) < 2:
        raise InvalidInput(
            f"{len(index)} rows of {store.place} have a label, and --n 0 learns from labels alone; give another --n"
        )
    return Rows.of(index)


def _require_whole(store: Store, rows: Rows) -> None:
    """Refuse rows that are not whole, and say which could be trained on instead."""
    try:
        store.require_rows(rows)
    except StoreIncomplete as error:
        prefix = store.valid_prefix()
        if prefix < 2:
            raise
        raise StoreIncomplete(f"{error}; or train on what is whole, with: --n {prefix}") from error


def _require_outputs(store: Store, needs: Iterable[str]) -> list[str]:
    wanted = sorted(needs)
    if not wanted:
        return []
    identity = store.manifest.identity
    known = {output.name for output in identity.outputs}
    missing = [name for name in wanted if name not in known]
    if missing:
        raise StoreIncomplete(
            f"{store.place} holds {', '.join(sorted(known))} and the loss needs {', '.join(missing)}; add it with: "
            f"{store.command('extend', features=','.join(missing), weights=store.manifest.sources.get('weights'))}"
        )
    return sorted({*(output.name for output in identity.answers), *wanted})
