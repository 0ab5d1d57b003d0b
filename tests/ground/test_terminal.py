"""What cannot be shown stops nobody: the display is dropped, and the work goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from ground.terminal import StopRequest, graceful_stop, stderr, stopped_by
from tests.conftest import COMMANDS, run_command

# Prints more than a buffer holds, then a result, and ends with the code it was asked for.
PROGRAM = """
import logging, sys
from ground.terminal import progress, stderr, reported_errors
from ground.errors import InvalidInput
with reported_errors(debug=False):
    with progress("steps", 3000) as advance:
        for step in range(3000):
            advance(1, "x")
            stderr.print("a line of text " * 5)
    print("done")
    if sys.argv[1] == "2":
        raise InvalidInput("there is something wrong")
"""


@pytest.mark.parametrize("code", [0, 2])
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>&1 1>&3 | true"])
def test_a_broken_display_changes_neither_result_nor_exit_code(code, redirection):
    command = f'"$0" -c "$1" {code} {redirection}; echo "code ${{PIPESTATUS[0]}}"'
    words = ["bash", "-c", f"exec 3>&1; {command}", sys.executable, PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["done", "code", str(code)], done.stderr


def test_text_that_a_terminal_cannot_show_is_written_as_escapes(tmp_path, monkeypatch):
    with (tmp_path / "log").open("w", encoding="ascii") as log:
        monkeypatch.setattr(sys, "stderr", log)
        stderr.print("caf\u00e9 \udcff")
    assert (tmp_path / "log").read_text() == "caf\\xe9 \\udcff\n"


def test_streams_that_are_closed_give_their_numbers_to_no_file():
    program = (
        "import click, os; from ground.terminal import CommandGroup\n"
        "@click.group(cls=CommandGroup)\ndef main(): pass\n"
        "@main.command()\ndef show(): os._exit(os.open('/dev/null', os.O_RDONLY))\nmain(['show'])"
    )
    words = ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, program]
    assert subprocess.run(words, check=False).returncode > 2


def hold(stop: StopRequest, done: list[str]) -> None:
    with stop.held():
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        done.append("held")


def test_what_is_held_is_finished_before_a_request_to_stop_at_once():
    done = []
    with graceful_stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            hold(stop, done)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with stop.held():
            done.append("nobody asked")
    assert done == ["held", "nobody asked"]


def test_work_in_another_thread_is_stopped_by_who_started_it():
    stop, heard = StopRequest(), []

    def work() -> None:
        with stopped_by(stop), graceful_stop() as asked:
            stop.requested = True
            heard.append(asked.requested)
        with graceful_stop() as asked:
            heard.append(asked.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [True, False]


def test_a_terminal_that_is_closed_is_a_request_to_stop():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with graceful_stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with graceful_stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested, "nohup says that it is none"
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_a_build_without_a_display_is_a_build(tmp_path, weights, redirection):
    store = tmp_path / "store"
    words = f"build --teacher resnet8 --weights {weights} --dataset digits --device cpu --n 40 --store {store}"
    command = f"{COMMANDS / 'ckd-cache'} {words} --batch-size 8 {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"40 new teacher calls; {store} holds 40 of 40 rows whole\n")
    assert run_command("ckd-cache", *words.split()).stdout.startswith("0 new teacher calls")
