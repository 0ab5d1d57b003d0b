"""Standard input, output and error as a command can rely on them, whatever it was started with.

An output that is full, closed or no longer read is an error, found at the latest when the command ends. Standard
error may fail without harm, for there is nobody left to tell: the command does the same, and ends with the same code.
Closed descriptors are filled, or the next file that is opened, a ledger for instance, would receive what libraries
print. Streams that are not the process's own, as in a test, are left alone.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ground.errors import NobodyReads, OutputLost


class _Output(io.FileIO):
    """Standard output: the first write that fails raises `OutputLost`, and what comes after it is dropped."""

    lost: OutputLost | None = None

    def write(self, data: Any) -> int:
        """Write all or some of it."""
        if self.lost is not None:
            return len(data)
        try:
            return _written(super().write, self, data)
        except OSError as error:
            kind = NobodyReads if error.errno == errno.EPIPE else OutputLost
            self.lost = kind(
                f"the output could not be written to ({error.strerror}), and the rest of the result is not shown; "
                "what was done is kept"
            )
            raise self.lost from error


class _Errors(io.FileIO):
    """Standard error: what cannot be written is dropped."""

    def write(self, data: Any) -> int:
        """Write all or some of it."""
        try:
            return _written(super().write, self, data)
        except OSError:  # it must not end the work, nor change the exit code, that it was to speak of
            return len(data)


@contextmanager
def lasting_errors() -> Iterator[None]:
    """Run with an input and an error stream that do not fail."""
    stdin, stderr = sys.stdin, sys.stderr
    if stdin is None:
        sys.stdin = open(os.open(os.devnull, os.O_RDONLY))  # noqa: SIM115
    if stderr is None and _is_closed(2):
        os.open(os.devnull, os.O_WRONLY)
    if isinstance(stderr, io.TextIOWrapper) and stderr is sys.__stderr__:
        sys.stderr = _like(stderr, _Errors(stderr.fileno(), "w", closefd=False))
    try:
        yield
    finally:
        sys.stdin, sys.stderr = stdin, stderr


@contextmanager
def checked_output() -> Iterator[None]:
    """Run with an output that says when it was lost.

    Raises:
        OutputLost, NobodyReads: not everything could be written.
    """
    stdout = sys.stdout
    if stdout is not sys.__stdout__:
        yield
        return
    if stdout is None:
        # Closed: a descriptor that refuses what is written to it.
        output = _Output(os.open(os.devnull, os.O_RDONLY), "w", closefd=False)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(output), encoding="utf-8")
    else:
        assert isinstance(stdout, io.TextIOWrapper)
        stdout.flush()
        output = _Output(stdout.fileno(), "w", closefd=False)
        sys.stdout = _like(stdout, output)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        finally:
            sys.stdout = stdout
        # Said here once more: it may have been taken for the end of something else.
        if output.lost is not None:
            raise output.lost


def _like(stream: io.TextIOWrapper, raw: io.FileIO) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _written(write: Callable[[Any], int | None], file: io.FileIO, data: Any) -> int:
    while (count := write(data)) is None:  # a full pipe that somebody has made non-blocking
        select.select([], [file], [])
    return count


def _is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False
