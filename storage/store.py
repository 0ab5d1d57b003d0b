"""The store: a folder with everything the teacher said, and all that training a student needs.

A *cell* is one view of one row, the place of one teacher call. It is visible once `publish` has returned: its outputs
are on the disk, then their digests and its valid flag are. Readers recompute the digests, so a cell that was torn or
changed is reported, not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ground.durable import fsync_path, remove_partials
from ground.errors import InvalidInput, OlderFormat, StoreIncomplete, StoreUnreadable, UnknownName, store_command
from ground.geometry import lie_inside, numbers_of_view, shows_boxes
from ground.places import ObjectUrl, Place, only_read
from storage.blocks import DIGEST_DIGITS, BlockHasher, RowSource
from storage.digest import output_digests
from storage.float_types import converted
from storage.foreign import no_store
from storage.formats import FORMATS, make_arrays, open_arrays
from storage.identity import Identity
from storage.locks import exclusive_lock
from storage.manifest import EXTENSION, FILE_NAME, FORMAT_VERSION, Manifest, Round
from storage.new_manifest import counted, new_manifest
from storage.row_places import Appended, asked_of_the_rest, neighbours, runs_of_places
from storage.rows import Rows
from storage.sample_blocks import SampleBlocks
from storage.schema import (
    DIGEST,
    DIGEST_BYTES,
    SOURCE_INDEX,
    VALID,
    VIEWS,
    ArraySpec,
    OutputSpec,
    output_arrays,
    parameter_array,
    parameter_arrays,
    sample_arrays,
)
from storage.store_folder import BUILD_LOCK, desks, prepare_folder
from storage.zarr_arrays import zarr_files

if TYPE_CHECKING:
    from storage.ledger import Ledger
    from storage.object_arrays import ObjectArrays
    from storage.stage import Stage

# Of a sample array that are written at once.
_WRITTEN_BYTES = 64 << 20


class Store:
    """An open store.

    Args:
        place: its folder, or its URL in object storage, where it is only read.
        manifest: what it is; `Store.open` reads it.
        file_name: of the manifest.

    Raises:
        StoreUnreadable: the arrays are not there or do not match the manifest.
        StorageFailed: object storage does not give them.
    """

    def __init__(self, place: Place, manifest: Manifest, file_name: str = FILE_NAME) -> None:
        if manifest.array_format not in FORMATS:
            raise StoreUnreadable(f"{place} holds {manifest.array_format!r} arrays; known: {', '.join(FORMATS)}")
        kind = FORMATS[manifest.array_format]
        if Path(manifest.arrays).suffix != kind.suffix:
            raise StoreUnreadable(
                f"{place} holds {manifest.arrays}, which is no name of {manifest.array_format} arrays"
            )
        self.place = place
        self.manifest = manifest
        self.file_name = file_name
        specs = array_specs(manifest.identity, aligned=manifest.aligned_chunks)
        self.arrays = open_arrays(place, manifest.array_format, manifest.arrays, specs)
        for name, spec in self.arrays.specs.items():
            if self.arrays.num_rows(name) < manifest.array_rows(spec):
                raise self.arrays.unreadable(
                    name, f"it has {self.arrays.num_rows(name)} rows, {manifest.array_rows(spec)} are needed"
                )
        # Arrays of older formats, whose one digest is of all their rows, that were looked at.
        self._whole: set[str] = set()

    @classmethod
    def open(cls, place: Place, file_name: str = FILE_NAME) -> Store:
        """Open what is there; raises `StoreUnreadable` when it is no store."""
        return cls(place, Manifest.load(place, file_name), file_name)

    @property
    def is_published(self) -> bool:
        """Whether it is in object storage: without a ledger beside it, and without anybody who changes it."""
        return isinstance(self.place, ObjectUrl)

    @property
    def folder(self) -> Path:
        """Where it is on the disk; raises `InvalidInput` for one in object storage, which nobody writes to."""
        if isinstance(self.place, ObjectUrl):
            raise only_read(self.place)
        return self.place

    @property
    def desk(self) -> Path:
        """Where who builds it keeps locks and answers in hand: its folder; for one in object storage, a folder of this
        machine, which is made.
        """
        if not isinstance(self.place, ObjectUrl):
            return self.place
        desk = desks() / self.manifest.store_id
        desk.mkdir(parents=True, exist_ok=True)
        return desk

    @classmethod
    def create(
        cls,
        folder: Path,
        identity: Identity,
        *,
        array_format: str,
        samples: Mapping[str, RowSource],
        rest: int = 0,
        ledger: str | None = None,
        history: Sequence[Mapping[str, str]] = (),
        sources: Mapping[str, str] | None = None,
        rounds: tuple[Round, ...] = (),
    ) -> Store:
        """Make a store whose outputs are still to be paid for.

        Args:
            folder: new, empty, or left without a manifest by an earlier attempt.
            identity: what the rows will have in common.
            array_format: "zarr" or "hdf5".
            samples: array name -> rows, for every sample array and, with a row axis, every parameter of the teacher;
                row counts come from here.
            rest: how many of the last training images the teacher is not asked about.
            ledger: URL without password of a shared ledger, for the record.
            history: the stores it is made from.
            sources: what it is built from, for the record.
            rounds: how rows were chosen, where the sample's seed did not choose all.
        """
        if array_format not in FORMATS:
            raise UnknownName("format", array_format, FORMATS)
        prepare_folder(folder)
        manifest = new_manifest(
            identity, array_format=array_format, samples=samples, rest=rest, ledger=ledger, sources=sources
        )
        store = cls.lay_out(folder, replace(manifest, history=tuple(history), rounds=rounds), samples)
        store.save()
        fsync_path(folder.parent)
        return store

    @classmethod
    def lay_out(
        cls, place: Place, manifest: Manifest, samples: Mapping[str, RowSource], file_name: str = FILE_NAME
    ) -> Store:
        """Make the arrays that a manifest describes, durably; its file is what makes them a store.

        Args:
            manifest: the digests of its samples come from what is written, and each row lies at its own number.
        """
        manifest = replace(manifest, places=())
        specs = array_specs(manifest.identity, aligned=manifest.aligned_chunks)
        make_arrays(place, manifest.array_format, manifest.arrays, specs, manifest.rows_of)
        store = cls(place, manifest, file_name)
        digests = {name: store._fill(name, rows) for name, rows in samples.items()}
        store.arrays.sync()
        store.manifest = counted(replace(manifest, samples=digests), samples)
        return store

    def grow(
        self, samples: Mapping[str, RowSource], n: int | None = None, rounds: tuple[Round, ...] | None = None
    ) -> None:
        """Append images: `samples` holds whole arrays, of which the rows the store has are neither read nor written.

        Where a rule bought images of the rest, these are appended once more, as the next rows, and leave the rest: what
        the store has written stays as it is.

        Args:
            n: how many of them the teacher is asked about, those first that it was not asked about so far; None for
                all.
            rounds: how the rows were chosen; None for as it is.

        Raises:
            StoreUnreadable: the last rows of an array that grows, which share a block with new ones, were changed.
        """
        self.require_current()
        before = self.manifest
        num_images = len(samples["train/labels"])
        manifest = before.grown(num_images if n is None else n, num_images, len(samples["val/labels"]), rounds)
        places = self._places(samples[SOURCE_INDEX], manifest)
        manifest = replace(manifest, places=runs_of_places(places))
        self.arrays.grow(manifest.array_rows)
        digests = {}
        for name, rows in samples.items():
            spec = self.arrays.specs[name]
            first = before.array_rows(spec)
            if manifest.places and spec.is_training_sample:
                rows = Appended(rows, first, np.flatnonzero(places >= first))
            digests[name] = self._fill(name, rows, first)
        self.arrays.sync()
        self.save(counted(replace(manifest, samples=digests), samples))

    def _places(self, index: RowSource, manifest: Manifest) -> np.ndarray:
        """Where the training rows of a larger store will lie, (n + R,) int64.

        Args:
            index: of their images, as in `SOURCE_INDEX`.
        """
        before, spec = self.manifest, self.arrays.specs[SOURCE_INDEX]
        there, end = before.places_of(spec, np.arange(before.num_images)), before.array_rows(spec)
        if manifest.n > before.n and before.rest:
            kept, wanted = self.read_sample(SOURCE_INDEX), index[0 : manifest.num_images]
            if not np.array_equal(wanted[: len(kept)], kept[: len(wanted)]):
                if not np.isin(kept, wanted).all():
                    raise self.arrays.unreadable(SOURCE_INDEX, "the rest has images that are not of the sample's")
                return asked_of_the_rest(there, end, (before.n, manifest.n), kept, wanted)
        return np.concatenate([there, end + np.arange(manifest.num_images - before.num_images)])

    def _fill(self, name: str, rows: RowSource, first: int = 0) -> str:
        """Write the rows of a source from `first` on, those before being there; digests of all blocks of the array."""
        spec = self.arrays.specs[name]
        if first and first >= len(rows):
            return self.manifest.samples[name]
        kept = first // spec.block_rows
        hasher = BlockHasher(spec.block_rows * spec.row_bytes)
        if first > kept * spec.block_rows:
            hasher.update(self.blocks.read_at(name, np.arange(kept * spec.block_rows, first)))
        step = spec.block_rows * max(1, _WRITTEN_BYTES // (spec.block_rows * spec.row_bytes))
        for start in range(first, len(rows), step):
            values = np.ascontiguousarray(rows[start : start + step], dtype=spec.dtype)
            self.arrays.write(name, start, values)
            hasher.update(values)
        return self.manifest.samples.get(name, "")[: kept * DIGEST_DIGITS] + hasher.hexdigests()

    def upgrade(self, added: Mapping[str, np.ndarray], ledger: Ledger | None) -> None:
        """Write the store as one of the current format, and record the step in its history and its ledger.

        Everything that the new manifest speaks of is there before it is, and it takes the old one's place in one
        rename; the entry of the ledger, chained before, holds for both. So whenever it stops, the store is the old one
        or the new one, and doing it again finishes.

        Args:
            added: name -> values of parameters of the teacher that are to be kept from now on.
            ledger: that the store's calls are recorded in; None if none was begun.

        Raises:
            StoreUnreadable: a sample array is not what was written.
        """
        before = self.manifest
        specs = tuple(OutputSpec(name, values.shape, values.dtype.name) for name, values in added.items())
        rows = {parameter_array(name): values[None] for name, values in added.items()}
        samples = {name: self.blocks.digests(name) for name in before.samples}
        self.arrays.add(parameter_arrays(specs), before.rows_of)
        samples |= {name: self._fill(name, values) for name, values in rows.items()}
        self.arrays.sync()
        after = replace(
            before,
            identity=replace(before.identity, parameters=(*before.identity.parameters, *specs)),
            samples=samples,
            history=(*before.history, {"store_id": before.store_id, "made_by": "upgrade"}),
            older=None,
        )
        if ledger is not None:
            content = {"manifest": after.digest, "made_by": "upgrade", "replaces": before.digest}
            ledger.record_store(before.store_id, content)
            after = replace(after, ledger_head=ledger.head(), ledger_genesis=ledger.genesis())
        self.save(after)

    @staticmethod
    @contextmanager
    def alone(folder: Path, *, clean: bool = True, older: bool = False) -> Iterator[None]:
        """Be the only one who writes to a folder, and delete what killed writers left if it is to be clean.

        Args:
            older: whether the store may be of an older format.

        Raises:
            StoreBusy: a build is at work.
            OlderFormat: the store is of an older format.
        """
        if not (folder / FILE_NAME).exists():
            raise StoreUnreadable(no_store(folder, FILE_NAME))
        with exclusive_lock(folder / BUILD_LOCK, f"a build is writing to {folder}"):
            if not older:
                require_current(Manifest.load(folder), folder)
            if clean:
                remove_partials(folder)
            yield

    def require_current(self) -> None:
        """Raise `OlderFormat` for a store that can be read and not written to."""
        require_current(self.manifest, self.place)

    def record_ledger_head(self, head: str, genesis: str | None = None) -> None:
        """Note the ledger's state in the manifest: an older copy of the ledger, or another one, is then found out.

        Args:
            genesis: hash of the ledger's entry 1; None leaves what is noted of it.
        """
        noted = replace(
            self.manifest, ledger_head=head, ledger_genesis=self.manifest.ledger_genesis if genesis is None else genesis
        )
        if noted != self.manifest:
            self.save(noted)

    @property
    def _objects(self) -> ObjectArrays:
        from storage.object_arrays import ObjectArrays  # obstore, for who needs it

        assert isinstance(self.arrays, ObjectArrays), "it is in object storage"
        return self.arrays

    def answered_chunks(self) -> set[int]:
        """Of a store in object storage: numbers of the chunks of rows that somebody has answered."""
        return self._objects.answered_chunks()

    def is_answered(self, number: int) -> bool:
        """Likewise, whether the chunk of rows of this number is one of them."""
        return self._objects.is_answered(number)

    def unanswered_files(self) -> set[str]:
        """Likewise, the files of its arrays that are not there, as nobody has answered their rows; by their path."""
        arrays = self._objects
        names = zarr_files(arrays.specs.values(), lambda spec: arrays.num_rows(spec.name))
        return {f"{self.manifest.arrays}/{name}" for name, _ in names if arrays.is_unanswered(name)}

    @contextmanager
    def staged(self, stage: Stage) -> Iterator[None]:
        """Read and write the rows of a stage there, in this block, and all others in object storage."""
        self._objects.stage = stage
        try:
            yield
        finally:
            self._objects.stage = None

    def put_stage(self, stage: Stage, remedy: str) -> None:
        """Write the rows of a stage to object storage; see `ObjectArrays.put_stage`."""
        self._objects.put_stage(stage, remedy)

    # Rows and cells

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """What is kept of each call."""
        return self.manifest.identity.outputs

    def array_of(self, output: str) -> str:
        """Path of the array that keeps one output, by its name."""
        return self.manifest.identity.array_of(output)

    def read(self, name: str, rows: int | None = None) -> np.ndarray:
        """The first `rows` rows of an array, or all of them."""
        return self.read_rows(name, 0, self.manifest.rows_of(self.arrays.specs[name]) if rows is None else rows)

    def read_rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows first..last of an array; nothing is checked."""
        places = self.manifest.places_of(self.arrays.specs[name], np.arange(first, last))
        pieces = [self.arrays.read(name, start, start + count) for start, count in neighbours(places) or [(first, 0)]]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def valid(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Which (row, view) of rows start..stop, or of all, are whole: (rows, V) bool."""
        flags = self.arrays.read(VALID, start, self.manifest.n if stop is None else stop)
        # Anything but 1 is no flag that we wrote.
        return np.asarray(flags.view(np.uint8) == 1)

    def is_whole(self, cell: int) -> bool:
        """Whether one cell is."""
        return bool(self.arrays.read_cells(VALID, cell, cell + 1).view(np.uint8)[0] == 1)

    def missing_cells(self, rows: Rows | None = None) -> np.ndarray:
        """Cells of some rows, or of all, that are not whole: row * V + view; rows that the store lacks are missing."""
        rows = Rows.first(self.manifest.n) if rows is None else rows
        n, views = self.manifest.n, self.manifest.identity.views
        # Flags of rows before the first are not looked at: who goes through a store block by block asks at each.
        first = min(rows.runs[0][0], n) if rows.runs else 0
        known = self.valid(first, min(rows.end, n)).reshape(-1)
        cells = rows.cells(views)
        there = cells[: len(rows.below(n)) * views]
        return np.concatenate([there[~known[there - first * views]], cells[len(there) :]])

    @property
    def blocks(self) -> SampleBlocks:
        """The sample arrays, block by block."""
        return SampleBlocks(self.arrays, self.manifest, self._whole)

    def read_sample(self, name: str, rows: Rows | None = None) -> np.ndarray:
        """Some rows of a sample array, or all, after checking the blocks that they are in against the manifest.

        A store of a format before 4 has one digest for all rows: the whole array is checked, once.

        Raises:
            StoreUnreadable: they are not what was written.
        """
        spec = self.arrays.specs[name]
        total = self.manifest.rows_of(spec)
        index = (Rows.first(total) if rows is None else rows.below(total)).index
        kept = self.blocks.read_at(name, self.manifest.places_of(spec, index))
        identity = self.manifest.identity
        if name == VIEWS and shows_boxes(identity.view_policy) and not lie_inside(kept, identity.geometry.image_size):
            raise self.arrays.unreadable(name, "it holds boxes that do not lie inside their images")
        return kept

    def require_sample(self, name: str, rows: int | None = None) -> None:
        """Raise `StoreUnreadable` unless a sample array, or its first rows, are what was written; nothing of it is
        kept.
        """
        for error in self.sample_problems(name, rows):
            raise error

    def sample_problems(self, name: str, rows: int | None = None) -> Iterator[StoreUnreadable]:
        """Each block of a sample array, or of its first rows, that cannot be read, or is not what was written; nothing
        of it is kept.
        """
        return self.blocks.problems(name, rows)

    def valid_prefix(self) -> int:
        """Rows from the first on that are whole without a gap."""
        missing = self.missing_cells()
        return int(missing[0]) // self.manifest.identity.views if len(missing) else self.manifest.n

    def write_outputs(self, cells: Sequence[int], outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Write what the teacher said of some cells; not visible until `publish`.

        Args:
            cells: row * V + view, in increasing order.
            outputs: name -> (C, ...) array of any type, for every kept output.

        Returns:
            Digests of the outputs, (C, O, 16) uint8.
        """
        self.require_current()
        stored = {output.name: converted(outputs[output.name], output.dtype) for output in self.outputs}
        digests, place = output_digests(self.outputs, stored), 0
        for first, count in runs_of(cells):
            for name, values in stored.items():
                self.arrays.write_cells(self.array_of(name), first, values[place : place + count])
            self.arrays.write_cells(DIGEST, first, digests[place : place + count])
            place += count
        return digests

    def publish(self, cells: Sequence[int]) -> None:
        """Make written cells visible; returns when they are durable."""
        self.arrays.sync()
        self._flag(cells, whole=True)

    def retract(self, cells: Sequence[int]) -> None:
        """Make cells invisible: their outputs are not what they should be."""
        self._flag(cells, whole=False)
        # Nor may they ever be adopted, by a call that is charged and not made.
        spec = self.arrays.specs[DIGEST]
        for first, count in runs_of(cells):
            self.arrays.write_cells(DIGEST, first, np.zeros((count, *spec.row_shape[1:]), spec.dtype))
        self.arrays.sync()

    def _flag(self, cells: Sequence[int], *, whole: bool) -> None:
        self.require_current()
        for first, count in runs_of(cells):
            self.arrays.write_cells(VALID, first, np.full(count, whole))
        self.arrays.sync()

    def read_cell(self, cell: int, outputs: Sequence[OutputSpec]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Some outputs of one cell, name -> (1, ...), and what they digest to: (O, 16) uint8."""
        values = {output.name: self.arrays.read_cells(self.array_of(output.name), cell, cell + 1) for output in outputs}
        return values, output_digests(outputs, values)[0]

    def adopt(self, cells: Sequence[int], further: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        """Make cells durable and visible that others wrote, or answered.

        Args:
            cells: in increasing order.
            further: those of them that are still to be written: cell -> name -> (1, ...).
        """
        if self.is_published:
            # Each of its objects is whole from the first moment on.
            assert not further, "what is written to object storage is a whole chunk"
            return
        for cell in cells:
            # Once more, as whoever wrote it may not have lived to make it durable.
            self.write_outputs([cell], further.get(cell) or self.read_cell(cell, self.outputs)[0])
        self.publish(cells)

    def cell_digests(self, cell: int) -> np.ndarray | None:
        """Digests of a cell's outputs if all of them are what was written last, else None: (O, 16) uint8."""
        try:
            _, found = self.read_cell(cell, self.outputs)
            written = self.arrays.read_cells(DIGEST, cell, cell + 1)[0]
        except StoreUnreadable:
            return None
        return found if np.array_equal(found, written) else None

    def found_digests(self, output: OutputSpec, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """What one output of the cells of rows start..stop digests to, (rows, V, 16) uint8, and where it can be read
        at all, (rows, V) bool.
        """
        views = self.manifest.identity.views
        found = np.zeros((stop - start, views, DIGEST_BYTES), dtype=np.uint8)
        readable = np.zeros((stop - start, views), dtype=np.bool_)
        array = self.array_of(output.name)
        for first, last in Rows.between(start, stop).blocks(self.arrays.specs[array].chunk_rows):
            with suppress(StoreUnreadable):
                values = self.arrays.read(array, first, last)
                here, flat = slice(first - start, last - start), values.reshape(-1, *values.shape[2:])
                found[here] = output_digests((output,), {output.name: flat}).reshape(len(values), views, -1)
                readable[here] = True
        return found, readable

    def read_outputs(self, names: Sequence[str], rows: Rows) -> dict[str, np.ndarray]:
        """Some rows of some outputs, in order, after checking that every one of them is whole.

        Raises:
            StoreIncomplete: not all of them are there.
            StoreUnreadable: a row does not match its digest.
            UnknownName: an output is not in the store.
        """
        places = {output.name: place for place, output in enumerate(self.outputs)}
        for name in names:
            if name not in places:
                raise UnknownName("stored output", name, places)
        self.require_rows(rows)
        return {name: self._read_output(places[name], rows) for name in names}

    def _read_output(self, place: int, rows: Rows) -> np.ndarray:
        """Some rows of an output, by its place among the outputs, checked."""
        output = self.outputs[place]
        array = self.array_of(output.name)
        spec = self.arrays.specs[array]
        values = np.empty((len(rows), *spec.row_shape), dtype=spec.dtype)

        def read(piece: tuple[int, tuple[int, int]]) -> None:
            begin, (first, last) = piece
            block = values[begin : begin + last - first]
            block[:] = self.arrays.read(array, first, last)
            flat = block.reshape(-1, *output.shape)
            found = output_digests((output,), {output.name: flat}).reshape(last - first, -1, DIGEST_BYTES)
            written = self.arrays.read(DIGEST, first, last)[:, :, place]
            wrong = np.argwhere((found != written).any(axis=2))
            if len(wrong):
                raise StoreUnreadable(
                    f"{array} of row {first + int(wrong[0, 0])} of {self.place} does not match its digest; see all "
                    f"damage with: {self.command('verify')}"
                )

        blocks = list(rows.blocks(spec.chunk_rows))
        begins = accumulate((last - first for first, last in blocks), initial=0)
        self.arrays.for_each(read, zip(begins, blocks, strict=False))
        return values

    def require_rows(self, rows: Rows | None = None) -> None:
        """Refuse to go on where some rows, or any, are not whole, and say how to finish."""
        n, rows = self.manifest.n, Rows.first(self.manifest.n) if rows is None else rows
        if rows.end > n:
            which = " that the teacher was asked about" if self.manifest.rest else ""
            raise InvalidInput(
                f"{rows.end} rows are asked for and {self.place} has {n} images{which}; ask for fewer, or grow it "
                f"with: {self.build_command(rows.end)}"
            )
        if len(self.missing_cells(rows)):
            raise StoreIncomplete(
                f"{self.place} has {self.valid_prefix()} whole rows, {rows.end} are needed; finish it with: "
                f"{self.build_command(n)}"
            )

    def record_sources(self, sources: Mapping[str, str]) -> None:
        """Note what the store is built from now, if anything is known of it."""
        if sources and sources != self.manifest.sources:
            self.save(replace(self.manifest, sources=sources))

    def command(self, name: str, **options: object) -> str:
        """A command of `ckd-cache` to suggest for this store, with the ledger that it shares."""
        is_built_here = name == "build" and self.manifest.aligned_chunks
        if self.is_published and name != "verify" and not is_built_here:
            command = store_command(name, "DIR", ledger=self.manifest.ledger, **options)
            return (
                f"{command}, where DIR is the folder that it was published from, or that convert fetches it into, then "
                "publish that to a new URL"
            )
        return store_command(name, self.place, ledger=self.manifest.ledger, **options)

    def build_command(self, n: int) -> str:
        """The command that makes this store hold n whole rows; its own settings need not be said."""
        of_teacher = {name: self.manifest.sources.get(name) for name in ("teacher", "prompts")}
        weights = self.manifest.sources.get("weights")
        return self.command("build", n=n, **of_teacher, **self.image_options, weights=weights)

    @property
    def image_options(self) -> dict[str, str | None]:
        """Options of a command that say where the store's images lie."""
        found = {name: self.manifest.sources.get(name) for name in ("dataset", "data_root", "split", "split_seed")}
        if found["dataset"] is None and ":" in self.manifest.identity.dataset.name:
            # Of a store from before it was noted the name is known, not where this machine keeps the images.
            found["dataset"] = f"{self.manifest.identity.dataset.name.partition(':')[0]}:PATH"
        return found

    def size_bytes(self) -> int:
        """Bytes on the disk, ledger included; in object storage, of the arrays."""
        if self.is_published:
            return self.arrays.size_bytes()
        others = (file for file in self.folder.iterdir() if file.is_file() and file != self.arrays.path)
        return self.arrays.size_bytes() + sum(file.stat().st_size for file in others)

    def samples(self) -> dict[str, RowSource]:
        """Every sample array and parameter of the teacher, by name; rows are checked when they are asked for."""
        return {name: _StoredRows(self, name) for name in self.manifest.samples}

    def read_parameters(self) -> dict[str, np.ndarray]:
        """What is kept of the teacher itself, checked: head/weight (K, D), head/bias (K,), and for the batch norm that
        makes a kept pre-activation norm/LAYER/scale and norm/LAYER/shift (C,); all float32.

        Raises:
            StoreIncomplete: nothing is, as in a store that was made before anything was.
        """
        specs = self.manifest.identity.parameters
        if not specs:
            raise StoreIncomplete(
                f"{self.place} keeps nothing of the teacher itself, and its last layer is needed; add it with: "
                f"{self.command('upgrade', weights=self.manifest.sources.get('weights', 'FILE'))}"
            )
        return {spec.name: self.read_sample(parameter_array(spec.name))[0] for spec in specs}

    def save(self, manifest: Manifest | None = None) -> None:
        """Write the manifest, or another one in its place, durably."""
        manifest = self.manifest if manifest is None else manifest
        require_current(manifest, self.folder)
        self.manifest = manifest
        self.manifest.save(self.folder, self.file_name)


@dataclass(frozen=True, slots=True)
class _StoredRows:
    """A sample array of a store, as what another store is made of."""

    store: Store
    name: str

    def __len__(self) -> int:
        return self.store.manifest.rows_of(self.store.arrays.specs[self.name])

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        return self.store.read_sample(self.name, Rows.between(first, last))


def require_current(manifest: Manifest, folder: Place) -> None:
    """Raise `OlderFormat` for the manifest of a store that can be read and not written to."""
    if manifest.older is not None:
        raise OlderFormat(
            f"{folder} is of format {manifest.older.version}, which this release reads and does not write; bring it up "
            f"to format {FORMAT_VERSION} with: {store_command('upgrade', folder, ledger=manifest.ledger)}"
        )


def open_extension(folder: Path) -> Store | None:
    """An extension of a store that was begun and can be finished; one that cannot is for `repair`."""
    with suppress(StoreUnreadable):
        return Store.open(folder, EXTENSION) if (folder / EXTENSION).exists() else None
    return None


def array_specs(identity: Identity, *, aligned: bool = False) -> tuple[ArraySpec, ...]:
    """Every array of a store with this identity; `aligned` as in `ArraySpec`."""
    samples = sample_arrays(identity.geometry.image_size, identity.views, numbers_of_view(identity.view_policy))
    parameters = parameter_arrays(identity.parameters)
    outputs = output_arrays(identity.outputs, identity.views, identity.answer_names)
    return tuple(replace(spec, aligned=aligned) for spec in (*samples, *parameters, *outputs))


def runs_of(cells: Sequence[int]) -> list[tuple[int, int]]:
    """Cells in increasing order as (first, count) runs of neighbours."""
    cells = [int(cell) for cell in cells]
    if not cells:
        return []
    cuts = [0, *(place + 1 for place, (cell, after) in enumerate(pairwise(cells)) if after != cell + 1), len(cells)]
    return [(cells[start], stop - start) for start, stop in pairwise(cuts)]
