"""Errors a user can act on, one class per remedy.

    CKDError                    exit 2
    ├── InvalidInput            a name, value or file cannot be used: give another
    │   └── TooNarrow           the type of a store's features does not hold an answer: widen it
    ├── UnknownName             no such thing: pick one of the names listed
    ├── CheckpointError         a file is not a checkpoint that can be read safely: give another
    ├── CheckpointMismatch      it is one, of another network or number of classes: give another
    ├── DatasetMissing          the images are not where they were looked for
    ├── IdentityMismatch        the store was made from something else
    ├── StoreUnreadable         missing, truncated or malformed: rebuild it
    ├── RolledBack              the ledger is an older one, or a fork: bring back the newer one, or accept it
    ├── OlderFormat             the store can only be read as it is: upgrade it
    ├── StoreIncomplete         rows are missing: run the build again
    ├── StorageFailed           object storage gives no answer, or another than it should: see that it does
    ├── StoreBusy               another builder holds the store: wait for it
    ├── Diverged                a loss is not finite: lower the learning rate
    ├── TeacherDoubted          exit 1: the first answers look wrong: check the teacher, or trust it
    ├── TeacherFailed           exit 1: a teacher that is elsewhere gives no answer: see that it does, then run it again
    ├── TeacherChanged          exit 1: it is another model than before: build another store
    ├── RankLost                exit 1: another process of the same training is gone: see why, then run it again
    ├── DiskFull                no room: free some, then run the same command again
    ├── OutputLost              what was to be printed was not: print it somewhere else
    │   └── NobodyReads         exit 141, as a shell says of a broken pipe
    ├── BudgetRefused           exit 3: raise the budget or ask for less
    └── Interrupted             exit 130: run the same command again to go on

A message is one sentence that says what is wrong, with values, then what to do. Anything that is not a
`CKDError` is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

_MOST_NAMES = 24


class CKDError(Exception):
    """Something the user can put right; `exit_code` is what the command returns."""

    exit_code = 2

    def __reduce__(self) -> tuple[Any, ...]:
        # As it is, in another process too: constructors make the sentence from other things than itself.
        return _remade, (type(self), self.args, self.__dict__)


def _remade(kind: type[CKDError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> CKDError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(fields)
    return error


class InvalidInput(CKDError):
    """A name, value or file the user gave cannot be used."""


class TooNarrow(InvalidInput):
    """An answer that is paid for is not held by the type that a store keeps it in, and is by a wider one.

    Args:
        why: the part of the message that says so.
        store: folder of the store; None for the one that is being built.
    """

    def __init__(self, message: str, why: str, store: Path | None = None) -> None:
        super().__init__(message)
        self.why, self.store = why, store


class UnknownName(InvalidInput):
    """A name is not among the known ones; the message lists the nearest, or all that are known, nearest first.

    Args:
        kind: what the name stands for, for instance "student".
        name: what the user gave.
        known: every name that would have been accepted.
        plain: what of a spelling counts when the nearest are looked for.
        listed_by: the command that lists them, where they are many.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        known: Iterable[str],
        plain: Callable[[str], str] = lambda name: name,
        *,
        listed_by: str | None = None,
    ) -> None:
        names = {plain(found): found for found in sorted(known)}
        nearest = [names[match] for match in difflib.get_close_matches(plain(name), names, n=3, cutoff=0.5)]
        hint = f"did you mean {', '.join(nearest)}?" if nearest else f"known: {_listed(plain(name), names, listed_by)}"
        super().__init__(f"no {kind} is called {name!r}; {hint}")


class CheckpointError(InvalidInput):
    """A file of weights is missing, damaged, or holds more than tensors and numbers."""


class CheckpointMismatch(InvalidInput):
    """A checkpoint's tensors are not those of the network."""


class DatasetMissing(InvalidInput):
    """The images are not where they were looked for."""


class IdentityMismatch(CKDError):
    """An existing store was made from something else than what is asked for now."""


class StoreUnreadable(CKDError):
    """A store is missing, truncated or malformed."""


class RolledBack(CKDError):
    """A ledger is older than what was seen of it, or two copies of it both grew."""


class OlderFormat(CKDError):
    """A store is of an older format, which is read and not written."""


class StoreIncomplete(CKDError):
    """A store lacks rows, or arrays, that the caller needs."""


class StorageFailed(CKDError):
    """Object storage gives no answer, does not permit what is asked, or cannot do it."""


class StoreBusy(CKDError):
    """Another process is building this store."""


class FewerBusy(StoreBusy):
    """A build of fewer rows is at work on a store that is to grow."""


class BoughtOtherwise(StoreBusy):
    """Another builder chose other rows to buy at the same time; who prepares the build again goes on from those."""


class Diverged(CKDError):
    """A student's training went wrong in its numbers."""


class TeacherDoubted(CKDError):
    """A teacher's first answers do not go with the labels."""

    exit_code = 1


class TeacherFailed(CKDError):
    """A teacher that is elsewhere gives no answer."""

    exit_code = 1


class TeacherChanged(CKDError):
    """A teacher that is elsewhere is another model, or another version of it, than before."""

    exit_code = 1


class RankLost(CKDError):
    """Another process that does the same work is gone, or does something else."""

    exit_code = 1


class DiskFull(CKDError):
    """The disk has no room for what has to be written."""


class OutputLost(CKDError):
    """Standard output is full or closed."""


class NobodyReads(OutputLost):
    """Standard output is a pipe that its reader has left."""

    exit_code = 141


class BudgetRefused(CKDError):
    """The teacher's budget does not allow the calls that are asked for."""

    exit_code = 3


class Interrupted(CKDError):
    """The user stopped long work; everything finished so far is kept."""

    exit_code = 130


def store_command(name: str, place: object, **options: object) -> str:
    """`suggested` of `ckd-cache`, for a store in a folder, or at a URL."""
    return suggested(f"ckd-cache {name}", store=place, **options)


def suggested(command: str, *arguments: object, **options: object) -> str:
    """A command to suggest; a shell takes it as it is.

    Args:
        command: program and subcommand, for instance "ckd-cache build".
        arguments: what is not an option; one that begins like an option is taken as a path.
        options: name with underscores for dashes -> value; None leaves it out, True makes a flag of it.
    """
    words = [_as_argument(str(argument)) for argument in arguments]
    for option, value in options.items():
        if value is not None:
            words += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    return f"{command} {shlex.join(words)}"


def _as_argument(text: str) -> str:
    return f"./{text}" if text.startswith("-") else text


def _listed(name: str, names: Mapping[str, str], listed_by: str | None) -> str:
    """The names most like one first; what is equally like it keeps its order."""
    matcher = difflib.SequenceMatcher(b=name)

    def likeness(other: str) -> float:
        matcher.set_seq1(other)
        return matcher.ratio()

    nearest = [names[other] for other in sorted(names, key=likeness, reverse=True)]
    more = len(nearest) - _MOST_NAMES
    if more <= 0:
        return ", ".join(nearest)
    see = "" if listed_by is None else f"; see all with: {listed_by}"
    return f"{', '.join(nearest[:_MOST_NAMES])} and {more} more{see}"
