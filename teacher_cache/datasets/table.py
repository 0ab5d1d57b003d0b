"""A table of the user's images: a CSV file with the header `path,label` and, where it says the splits, `split`.

Paths are relative to the file's folder and stay inside it. A row without a label is a training image without one. In
which order rows and other columns come does not matter.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from ground.errors import DatasetMissing, InvalidInput
from ground.terminal import plain
from teacher_cache.datasets.base import ImageDataset
from teacher_cache.datasets.named_files import NamedFiles
from teacher_cache.datasets.photographs import Entry, Listing, as_dataset, label_of, place_of, split_called
from teacher_cache.datasets.request import Request

TABLE = "a table has the header path,label or path,label,split, and in split train, test or val"
_PATH, _LABEL, _SPLIT = "path", "label", "split"


def open_table(request: Request) -> ImageDataset:
    """Open the images that a CSV file names, and say in the log what was listed.

    Raises:
        DatasetMissing: there is no such file, or it says no splits and none are asked for.
        InvalidInput: a row cannot be used; the message has its line.
    """
    path = place_of(request)
    if not path.is_file():
        raise DatasetMissing(f"{path} is not a file; write csv:FILE, where {TABLE}")
    listing = Listing(
        name=f"csv:{path.name}",
        place=path,
        root=path.parent,
        entries=sorted(_entries(path), key=lambda entry: entry.name),
        remedy="replace it or remove its row:",
        hint=TABLE,
    )
    return as_dataset(listing, request)


def _entries(path: Path) -> Iterator[Entry]:
    named = NamedFiles(path.parent)
    for line, row in _rows(path):
        said = row.get(_SPLIT, "").strip()
        split = split_called(said)
        if said and split is None:
            raise InvalidInput(f"{line} has the split {plain(said)}, which is none of train, test and val")
        yield Entry(named.require(row[_PATH].strip(), line), label_of(row[_LABEL]), split)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(where it is, column -> text) of each row that is not empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = [name.strip().lower() for name in next(reader, [])]
            if any(columns.count(name) != 1 for name in (_PATH, _LABEL)) or columns.count(_SPLIT) > 1:
                raise InvalidInput(f"line 1 of {path} is {plain(','.join(columns)) or 'empty'}; {TABLE}")
            for cells in reader:
                line = f"line {reader.line_num} of {path}"
                if len(cells) not in (0, len(columns)):
                    raise InvalidInput(f"{line} has {len(cells)} cells, and the header {len(columns)}; mend the row")
                if any(cell.strip() for cell in cells):
                    yield line, dict(zip(columns, cells, strict=True))
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text ({error.reason}); save it as that") from error
    except csv.Error as error:
        raise InvalidInput(f"line {reader.line_num} of {path} is not CSV ({error}); mend it") from error
