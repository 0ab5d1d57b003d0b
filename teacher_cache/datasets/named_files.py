"""Files that a list or a table names: each inside one folder, there, and named once."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ground.errors import InvalidInput
from ground.terminal import plain


@dataclass(slots=True)
class NamedFiles:
    """What was named so far.

    Args:
        root: the folder that paths are relative to.
    """

    root: Path
    _line_of: dict[str, str] = field(default_factory=dict)
    _is_inside: dict[Path, bool] = field(default_factory=dict)

    def require(self, name: str, line: str) -> str:
        """A path as it is kept: relative to the folder, with forward slashes.

        Args:
            line: where it was read, as "line 3 of train.txt".

        Raises:
            InvalidInput: it leads out of the folder, is no file, or was named before.
        """
        path = PurePosixPath(name)
        kept = path.as_posix()
        if not name or "\0" in name or path.is_absolute() or ".." in path.parts or not self._leads_inside(kept):
            raise InvalidInput(
                f"{line} names {plain(repr(name))}, which leads out of {self.root}; name files inside it"
            )
        if not _is_file(self.root / kept):
            raise InvalidInput(f"{line} names {plain(kept)}, and there is no such file in {self.root}; remove the line")
        if kept in self._line_of:
            raise InvalidInput(f"{line} names {plain(kept)} again, after {self._line_of[kept]}; remove one of them")
        self._line_of[kept] = line
        return kept

    def _leads_inside(self, name: str) -> bool:
        """Whether no link on the way leads out; folders are looked at once."""
        path = self.root / name
        if os.path.islink(path):
            return self._is_below(path)
        if path.parent not in self._is_inside:
            self._is_inside[path.parent] = self._is_below(path.parent)
        return self._is_inside[path.parent]

    def _is_below(self, path: Path) -> bool:
        # Unlike `Path.resolve` it takes links in a circle.
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root))


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False
