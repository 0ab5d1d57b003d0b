"""An array format is a name, a suffix and a class that is loaded when it is needed."""

from __future__ import annotations

import pytest

from storage.arrays import ArrayFile
from storage.formats import FORMATS


def test_the_formats_are_those_of_the_manual():
    assert {name: kind.suffix for name, kind in FORMATS.items()} == {"zarr": ".zarr", "hdf5": ".h5"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_loads_arrays_of_its_own(name):
    assert issubclass(FORMATS[name].load(), ArrayFile)
    assert len({kind.load() for kind in FORMATS.values()}) == len(FORMATS)
