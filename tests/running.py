"""Commands as a user runs them: in this process, which costs milliseconds, or in one of their own, which costs seconds.

In this process a command is what the installed script calls, with output, environment, folder and arguments of its own.
What it changes in the process is put back, and what it does not catch is a traceback on stderr and exit code 1.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import torch
from click.testing import CliRunner

from tests.grid_workers import forked_workers

COMMANDS = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent
# As wide as a message needs, so that nothing is wrapped where a test looks.
_WIDE = {"COLUMNS": "400"}


def run_command(
    *arguments: object,
    spawn: bool = False,
    spawn_workers: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    **options: object,
) -> subprocess.CompletedProcess[str]:
    """Run an installed command as a user does, and capture what it prints.

    Args:
        spawn: in a process of its own, for a test of what only that shows: limits, signals, the installed script.
        spawn_workers: have a grid's workers start as they do in earnest, each in seconds; see `grid_workers`.
        env: added to the environment; a PYTHONPATH is only heeded by a new process, which is then begun.
        options: of `subprocess.run`, for a process of its own.
    """
    name, *rest = (str(argument) for argument in arguments)
    added = {**_WIDE, **(env or {})}
    if not spawn:
        assert not options, "these options are for a process of its own: give spawn=True"
        if "PYTHONPATH" in added:
            return begin_command(*arguments, env=env, cwd=cwd).completed()
        with contextlib.nullcontext() if spawn_workers else forked_workers():
            return _run_here(name, rest, added, cwd)
    return subprocess.run(
        [COMMANDS / name, *rest],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | added,
        cwd=cwd,
        check=False,
        **options,
    )


def _run_here(
    name: str, arguments: list[str], environment: Mapping[str, str], folder: Path | None
) -> subprocess.CompletedProcess[str]:
    with _put_back(folder):
        result = CliRunner(env=environment).invoke(command_called(name), arguments, prog_name=name)
    stderr = result.stderr
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        stderr += "".join(traceback.format_exception(*result.exc_info))
    return subprocess.CompletedProcess([name, *arguments], result.exit_code, result.stdout, stderr)


@functools.cache
def command_called(name: str) -> click.Command:
    """What the installed script of a command calls; looking through all packages' scripts takes a while."""
    (script,) = entry_points(group="console_scripts", name=name)
    return script.load()


@contextlib.contextmanager
def _put_back(folder: Path | None) -> Iterator[None]:
    """Leave the process as it was: a command thinks that it is its own."""
    root, modules = logging.getLogger(), set(sys.modules)
    handlers, level, path, threads = root.handlers[:], root.level, sys.path[:], torch.get_num_threads()
    psycopg_level = logging.getLogger("psycopg").level
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A command that sets up logging closes the handlers it finds, and these are the test runner's.
    root.handlers[:] = []
    try:
        with contextlib.chdir(folder or Path.cwd()):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("psycopg").setLevel(psycopg_level)
        torch.set_num_threads(threads)
        for number, handler in signals.items():
            signal.signal(number, handler)
        sys.path[:] = path
        if folder is not None:
            _forget(folder, set(sys.modules) - modules)


def _forget(folder: Path, modules: set[str]) -> None:
    """A user's own modules: the next command may find others of that name."""
    for name in modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(folder):
            del sys.modules[name]


def run_program(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a module of the tests as a program in a process of its own, forked from one that has torch imported."""
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        said = _files_in(folder)
        code = _ask({"module": module, "arguments": words, **said})
        return subprocess.CompletedProcess([module, *words], code, *map(_text_of, said.values()))


class Begun:
    """What is at work in a process of its own, forked likewise, and leads a session; as of `subprocess.Popen`.

    Args:
        what: the command or the module.
    """

    def __init__(
        self, what: Mapping[str, str], arguments: list[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._said = _files_in(self._folder.name)
        about = {"environment": dict(environment), "folder": str(folder), **self._said}
        self.args = [*what.values(), *arguments]
        self.pid: int = _ask({**what, "arguments": arguments, **about})
        self.returncode: int | None = None

    @property
    def stderr(self) -> str:
        """What it wrote so far."""
        return _text_of(self._said["stderr"])

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it is there."""
        if self.returncode is None:
            self.returncode = _ask({"poll": self.pid})
        return self.returncode

    def kill(self) -> None:
        """Have it end at once."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait until it ends; what it wrote to stdout and stderr."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                self.kill()
                raise subprocess.TimeoutExpired(self.args, timeout, stderr=self.stderr)
            time.sleep(0.02)
        said = _text_of(self._said["stdout"]), self.stderr
        self._folder.cleanup()
        return said

    def completed(self) -> subprocess.CompletedProcess[str]:
        """Wait until it ends; what became of it, as of `subprocess.run`."""
        stdout, stderr = self.communicate()
        return subprocess.CompletedProcess(self.args, self.poll(), stdout, stderr)


def begin_command(*arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Begun:
    """Start an installed command as a user does, and go on; its grid's workers are forked too.

    Args:
        env: added to the environment.
    """
    name, *rest = (str(argument) for argument in arguments)
    return Begun({"command": name}, rest, os.environ | _WIDE | dict(env or {}), cwd or Path.cwd())


def begin_program(module: str, *arguments: object) -> Begun:
    """Start a module of the tests as a program, and go on."""
    return Begun({"module": module}, [str(argument) for argument in arguments], os.environ, ROOT)


def _files_in(folder: str) -> dict[str, str]:
    return {name: str(Path(folder, name)) for name in ("stdout", "stderr")}


def _text_of(file: str) -> str:
    return Path(file).read_text() if Path(file).exists() else ""


def _ask(job: Mapping[str, object]) -> Any:
    parent = _forking_process()
    parent.stdin.write(json.dumps(job) + "\n")
    parent.stdin.flush()
    return json.loads(parent.stdout.readline())


@functools.cache
def _forking_process() -> subprocess.Popen[str]:
    """See `forking`; one for all tests of this process, at whose end it ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forking"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()

    atexit.register(end)
    return process
