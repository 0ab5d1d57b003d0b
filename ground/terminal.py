"""How every command talks: results on stdout, progress and errors on stderr, one sentence an error.

`CommandGroup` turns the errors a user can act on into a line and an exit code. Anything else is a bug and keeps
its traceback; `--debug` keeps all of them.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from types import FrameType
from typing import IO, Any, NoReturn, cast

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ground.errors import CKDError, Interrupted, OutputLost
from ground.imports import uncollected
from ground.streams import checked_output, lasting_errors


class _Display:
    """Standard error as it is at each moment, where progress and sentences go; what cannot be written is dropped.

    A terminal that was closed, or a log on a full disk, is no reason to end work that goes on without it.
    """

    def write(self, text: str) -> int:
        """Without a buffer where there is a file behind it: text that waits would fail once more at the very end."""
        try:
            number = self._stream.fileno()
        except (OSError, ValueError, AttributeError):  # captured, closed, or none at all
            number = -1
        with suppress(OSError, ValueError, AttributeError):
            if number < 0:
                self._stream.write(text)
            else:
                self._stream.flush()
                rest = text.encode(self.encoding, "backslashreplace")
                while rest:
                    rest = rest[os.write(number, rest) :]
        return len(text)

    def flush(self) -> None:
        """Nothing waits here."""

    def isatty(self) -> bool:
        """Whether somebody watches."""
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        """Of the stream behind it."""
        return int(self._stream.fileno())

    @property
    def encoding(self) -> str:
        """Of the stream behind it."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def _stream(self) -> Any:
        # A bar that is shown stands in for the stream, to write above itself.
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)


stderr = Console(file=cast(IO[str], _Display()), highlight=False)
_SECONDS_BETWEEN_LINES = 10.0
_WIDTH_WITHOUT_TERMINAL = 200


@dataclass(frozen=True, slots=True)
class CommandAt:
    """Where a command is, so that it is imported when it is used.

    Args:
        home: module and attribute, "module:attribute".
        help: the first paragraph of its help, for the list of commands.
    """

    home: str
    help: str

    def load(self) -> click.Command:
        """The command itself."""
        module, _, name = self.home.partition(":")
        with uncollected():
            command = getattr(import_module(module), name)
        assert isinstance(command, click.Command), self.home
        return command


class LazyGroup(click.Group):
    """A command group that imports a command only when it is run, or its help is asked for.

    Args:
        lazy: name -> where it is; commands can be added as to any group besides.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, CommandAt] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})

    def list_commands(self, context: click.Context) -> list[str]:
        """Names of all commands, sorted."""
        return sorted({*self.lazy, *self.commands})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of a name, imported."""
        return self.lazy[name].load() if name in self.lazy else super().get_command(context, name)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table."""
        listed = {name: click.Command(name, help=command.help) for name, command in self.lazy.items()}
        click.Group(commands={**self.commands, **listed}).format_commands(context, formatter)


class CommandGroup(LazyGroup):
    """A command group whose subcommands report a user's errors in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, help="Show tracebacks.", callback=_keep_debug)
        )

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line, and end it with an error where not all of its output arrived."""
        with lasting_errors():
            try:
                with checked_output():
                    return super().main(*args, **extra)
            except OutputLost as error:
                _leave(str(error), error.exit_code)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the arguments before the subcommand."""
        with _plain_usage_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, context: click.Context) -> Any:
        """Run the subcommand; see the class."""
        with _plain_usage_errors(), reported_errors(debug=context.meta.get("debug", False)):
            return super().invoke(context)


@contextmanager
def _plain_usage_errors() -> Iterator[None]:
    """What click says of an argument quotes it, and arguments may be pasted."""
    try:
        yield
    except click.ClickException as error:
        # Final by click's word, and read again when it is shown.
        error.message = plain_lines(error.message)  # type: ignore[misc]
        raise


def _keep_debug(context: click.Context, _: click.Parameter, debug: bool) -> None:
    context.meta["debug"] = debug
    # A server that goes away is said once, by us.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    handler, form = _log_handler()
    handler.setFormatter(_PlainFormatter(form, "%X"))
    logging.basicConfig(level="INFO", force=True, handlers=[handler])


def _log_handler() -> tuple[logging.Handler, str]:
    """Where log records go, and their form: what is kept in a file has a line each, however long."""
    if stderr.is_terminal:
        return RichHandler(console=stderr, show_path=False, show_level=False), "%(message)s"
    return logging.StreamHandler(stderr.file), "%(asctime)s %(message)s"


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain_lines(super().format(record))


@contextmanager
def reported_errors(*, debug: bool) -> Iterator[None]:
    """Print a user's error as one line on stderr and leave with its exit code."""
    try:
        yield
    except OutputLost:
        raise  # for `CommandGroup.main`, as help is printed outside of a command
    except CKDError as error:
        if debug:
            raise
        _leave(str(error), error.exit_code)
    except OSError as error:
        # One with a file name is about a path that the user gave; any other is a bug.
        if debug or error.filename is None:
            raise
        _leave(f"{error.filename} cannot be used ({error.strerror}); check the path and its permissions", 2)
    except (KeyboardInterrupt, click.Abort):
        if debug:
            raise
        note("Interrupted; run the same command again to go on (ckd-train with --resume).")
        sys.exit(Interrupted.exit_code)


def _leave(sentence: str, exit_code: int) -> NoReturn:
    # Of several lines where a table follows the sentence, because layers do not fit.
    note(f"Error: {sentence}")
    sys.exit(exit_code)


def plain(text: str) -> str:
    """Text as a terminal may show it: what a file or a server says can hold sequences that terminals obey."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def plain_lines(text: str) -> str:
    """`plain` of each line, where lines are ours."""
    return "\n".join(map(plain, text.split("\n")))


def say(text: str, *, err: bool = False) -> None:
    """A result on stdout, or with `err` on stderr, in one line or several."""
    click.echo(plain_lines(text), err=err)


def note(text: str) -> None:
    """Progress or an error on stderr, in one line or several; brackets are no markup."""
    stderr.print(Text(plain_lines(text)), soft_wrap=True)


def json_text(document: Any, indent: int | None = None) -> str:
    """JSON of which terminals obey nothing."""
    # In ASCII but for the one control character that JSON leaves, and that stands in texts alone.
    return json.dumps(document, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json_text(document, indent=2))


def print_table(headers: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table on stdout; what is None is a dash."""
    table = Table(*headers)
    for row in rows:
        table.add_row(*("-" if value is None else plain(str(value)) for value in row))
    # Names in a ledger may be anybody's: they are not read as markup.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL
    Console(markup=False, highlight=False, width=width).print(table)


class _RateColumn(ProgressColumn):
    """Steps finished a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f}/s", style="progress.data.speed")


@contextmanager
def progress(label: str, total: int | None, completed: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Progress on stderr, as a bar or, where that is no terminal, as a line now and then.

    Yields:
        `advance(steps, note)`.
    """
    label = plain(label)
    if not stderr.is_terminal:
        yield _Lines(label, total, completed).advance
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=stderr) as bar:
        task = bar.add_task(label, total=total, completed=completed, note="")

        def advance(steps: int, note: str = "") -> None:
            bar.update(task, advance=steps, note=plain(note))

        yield advance


class _Lines:
    """Progress for a log file."""

    def __init__(self, label: str, total: int | None, completed: int) -> None:
        self._label, self._total, self._completed = label, total, completed
        self._printed = time.monotonic()

    def advance(self, steps: int, note: str = "") -> None:
        self._completed += steps
        finished = self._completed == self._total and steps > 0
        if finished or time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            of = "" if self._total is None else f" of {self._total}"
            stderr.print(f"{self._label}: {self._completed}{of} {plain(note)}", soft_wrap=True, markup=False)


class StopRequest:
    """Whether the user asked to stop, by Ctrl-C or SIGTERM, or by closing the terminal."""

    def __init__(self) -> None:
        self.requested = False
        self._patience, self._is_due = 0, False

    @contextmanager
    def held(self, requests: int = sys.maxsize) -> Iterator[None]:
        """Put off so many requests to stop at once until the block ends: it holds what must not be dropped."""
        self._patience = requests
        try:
            yield
        finally:
            self._patience = 0
            if self._is_due:
                self._is_due = False
                raise KeyboardInterrupt

    def at_once(self) -> None:
        """Stop now, or when what is held is done; raises `KeyboardInterrupt`."""
        if not self._patience:
            raise KeyboardInterrupt
        self._patience, self._is_due = self._patience - 1, True


# Who asks work to stop that does not run in the main thread, and hears no signals.
_ASKED_BY: ContextVar[StopRequest | None] = ContextVar("asked_by", default=None)


@contextmanager
def stopped_by(stop: StopRequest) -> Iterator[None]:
    """Let long work in this thread be stopped by whoever has `stop`, and by no signal, as `graceful_stop` has it."""
    token = _ASKED_BY.set(stop)
    try:
        yield
    finally:
        _ASKED_BY.reset(token)


def _asking_to_stop() -> Iterator[int]:
    """Signals by which a user asks; a terminal that is closed does so too, unless `nohup` said otherwise."""
    yield from (signal.SIGINT, signal.SIGTERM)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        yield signal.SIGHUP


@contextmanager
def graceful_stop(*, together: bool = False) -> Iterator[StopRequest]:
    """Let long work finish the step in hand at the first Ctrl-C; the second one stops it at once.

    Args:
        together: other processes finish it too, and whoever started all of them passes Ctrl-C on, so that it comes
            twice: it is heeded once and in silence, and how long is waited is theirs to say.
    """
    asked_by = _ASKED_BY.get()
    if asked_by is not None:
        yield asked_by
        return
    stop = StopRequest()

    def request(number: int, _: FrameType | None) -> None:
        if together:
            stop.requested = True
            return
        if stop.requested:
            stop.at_once()
            return
        stop.requested = True
        note("Stopping after the step in hand; once more to stop at once.")

    try:
        previous = {number: signal.signal(number, request) for number in _asking_to_stop()}
    except ValueError:  # not the main thread: whoever runs us decides when to stop
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
