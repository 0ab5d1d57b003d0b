"""The array formats of a store by name: each says its suffix, and its library is loaded when arrays are opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from ground.errors import StoreUnreadable, store_command
from ground.places import ObjectUrl, Place
from storage.arrays import ArrayFile
from storage.schema import ArraySpec, RowsOf


@dataclass(frozen=True, slots=True)
class ArrayFormat:
    """How arrays are kept.

    Args:
        suffix: of the file or folder that holds them.
        home: module and class, "module:Class".
    """

    suffix: str
    home: str

    def load(self) -> type[ArrayFile]:
        """The class whose objects are such arrays; this loads the format's library."""
        module, _, name = self.home.partition(":")
        return cast(type[ArrayFile], getattr(import_module(module), name))


FORMATS: Mapping[str, ArrayFormat] = {
    "zarr": ArrayFormat(".zarr", "storage.zarr_arrays:ZarrArrays"),
    "hdf5": ArrayFormat(".h5", "storage.hdf5_arrays:Hdf5Arrays"),
}


def make_arrays(place: Place, array_format: str, name: str, specs: Sequence[ArraySpec], rows: RowsOf) -> None:
    """Make the arrays of a store, zero until written; see `ArrayFile.create` and `storage.object_arrays.describe`."""
    if not isinstance(place, ObjectUrl):
        FORMATS[array_format].load().create(place / name, specs, rows)
        return
    from storage.object_arrays import describe
    from storage.objects import Objects

    describe(Objects(place), name, specs, rows)


def open_arrays(place: Place, array_format: str, name: str, specs: Sequence[ArraySpec]) -> ArrayFile:
    """The arrays of a store.

    Args:
        place: the store's folder or URL.
        name: of the arrays' file or folder there.

    Raises:
        StoreUnreadable: they are not there, not such arrays, or a file where only objects can be read.
    """
    if not isinstance(place, ObjectUrl):
        return FORMATS[array_format].load()(place / name, specs)
    if array_format != "zarr":
        raise StoreUnreadable(
            f"{place} holds {array_format} arrays, which are one file and are read from a local disk; copy it into a "
            f"folder, and publish it as Zarr: {store_command('convert', 'DIR', to='zarr', out='DIR-zarr')}"
        )
    # As each format's library: obstore is loaded where it is used.
    from storage.object_arrays import ObjectArrays
    from storage.objects import Objects

    return ObjectArrays(Objects(place), name, specs)
