"""The array formats of a store by name: each says its suffix, and its library is loaded when arrays are opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from storage.arrays import ArrayFile


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
