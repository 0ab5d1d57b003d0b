"""A store in object storage: published from a folder, and fetched back; the same store, byte for byte.

Its objects are the files of its Zarr arrays, each written once, on the condition that there is none of its name, and
the manifest last: so a store is there or it is not, and what a publication that was stopped left is gone on with. The
ledger stays where it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ground.documents import Malformed
from ground.durable import allocate, write_bytes
from ground.errors import InvalidInput, StoreUnreadable, store_command
from ground.places import ObjectUrl
from ground.threads import in_threads
from storage.canaries import CANARIES_FILE, MOST_CANARY_BYTES
from storage.manifest import FILE_NAME, MOST_MANIFEST_BYTES
from storage.objects import Objects
from storage.store import Store
from storage.store_ledger import open_ledger_of
from storage.verify import answer_problems
from storage.zarr_arrays import MAX_METADATA_BYTES, zarr_files
from teacher_cache.convert import made_at, require_new, require_settled

_IN_FLIGHT = 8

Progress = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class PublicationReport:
    """What was published: how many objects there are, and how many of them were written now."""

    store: Path
    out: ObjectUrl
    objects: int
    written: int


def publish(
    folder: Path, url: ObjectUrl, ledger_url: str | None = None, on_progress: Progress = lambda steps, note: None
) -> PublicationReport:
    """Copy a store into object storage, where it is read; no call is made, and the store itself is not changed.

    Raises:
        InvalidInput: it is in HDF5, or something else is at the URL.
        StorageFailed: the bucket is not there or may not be written to, or the service has no conditional writes.
        StoreIncomplete: calls of it are not settled.
        StoreUnreadable: something in it is damaged.
        StoreBusy: a build is at work on it.
    """
    source = Store.open(folder)
    if source.manifest.array_format != "zarr":
        raise InvalidInput(
            f"{folder} is in HDF5, which is one file and stays on a local disk; make it Zarr first, with: "
            f"{store_command('convert', folder, to='zarr', out=f'{folder}-zarr')}"
        )
    objects = Objects(url, make=True)
    objects.require_writable()
    with Store.alone(folder, clean=False):
        source = Store.open(folder)
        with closing(open_ledger_of(source, ledger_url)) as ledger:
            require_settled(source, ledger)
        require_undamaged(source)
        return _write(source, objects, on_progress)


def _write(source: Store, objects: Objects, on_progress: Progress) -> PublicationReport:
    names = [name for name, _ in _files(source)]
    if (source.folder / CANARIES_FILE).is_file():
        names.append(CANARIES_FILE)
    there = _those_there(objects, {*names, FILE_NAME})

    def put(name: str) -> bool:
        content = (source.folder / name).read_bytes()
        is_new = name not in there and objects.create(name, content)
        if not is_new and not objects.holds(name, content):
            raise InvalidInput(
                f"{objects.url / name} is there, and is not of the store at {source.folder} as it is now; publish it "
                "at a new URL, or delete what is there"
            )
        on_progress(1, "")
        return is_new

    written = sum(in_threads(put, names, at_least=_IN_FLIGHT))
    # Last: it is what makes a store of the others.
    written += put(FILE_NAME)
    return PublicationReport(source.folder, objects.url, len(names) + 1, written)


def num_objects(store: Store) -> int:
    """How many steps of progress publishing or fetching it has, but for one or two."""
    return sum(1 for _ in _files(store)) + 1


def _files(store: Store) -> Iterator[tuple[str, int | None]]:
    """The files of a store's arrays, by their path below the store, with their bytes where these are known."""
    specs = store.arrays.specs.values()
    for name, size in zarr_files(specs, lambda spec: store.arrays.num_rows(spec.name)):
        yield f"{store.manifest.arrays}/{name}", size


def _those_there(objects: Objects, ours: set[str]) -> set[str]:
    """Names of what is there already; raises `InvalidInput` for anything that is not the store's."""
    found: set[str] = set()
    for name, _ in objects.sizes():
        if name not in ours:
            raise InvalidInput(
                f"{objects.url} is not empty (it holds {name[:200]!a}, which is not of this store); give a new URL"
            )
        found.add(name)
    return found


def fetch(url: ObjectUrl, out: Path, on_progress: Progress = lambda steps, note: None) -> Store:
    """Copy a published store into a new folder, without a ledger, which is not in object storage.

    Raises:
        InvalidInput: `out` is not new.
        StorageFailed: the service does not give it.
        StoreUnreadable: something in it is damaged, or there is none.
    """
    out = out.absolute()
    require_new(out)
    objects, source = Objects(url), Store.open(url)
    unanswered = source.unanswered_files()
    out.parent.mkdir(parents=True, exist_ok=True)
    with made_at(out) as partial:

        def get(file: tuple[str, int | None]) -> None:
            name, size = file
            place = partial / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if name in unanswered:
                allocate(place, size or 0)
            else:
                write_bytes(place, _read(objects, name, MAX_METADATA_BYTES if size is None else size))
            on_progress(1, "")

        deque(in_threads(get, _files(source), at_least=_IN_FLIGHT), maxlen=0)
        if any(name == CANARIES_FILE for name, _ in objects.sizes()):
            get((CANARIES_FILE, MOST_CANARY_BYTES))
        get((FILE_NAME, MOST_MANIFEST_BYTES))
        require_undamaged(Store.open(partial))
    return Store.open(out)


def _read(objects: Objects, name: str, most_bytes: int) -> bytes:
    try:
        return objects.read(name, most_bytes)
    except (FileNotFoundError, Malformed) as error:
        raise StoreUnreadable(
            f"{objects.url / name} cannot be read ({error}); see all damage with: "
            f"{store_command('verify', objects.url)}"
        ) from error


def require_undamaged(store: Store) -> None:
    """Raise `StoreUnreadable` unless all that a store says it has is what was written; cells may be missing."""
    for name in store.manifest.samples:
        store.require_sample(name)
    for problem in answer_problems(store):
        raise StoreUnreadable(f"{store.place} is damaged ({problem}); see all damage with: {store.command('verify')}")
