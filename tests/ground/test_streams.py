"""Commands whose input, output or error stream is full, closed or left: an exit code and a sentence, no traceback."""

from __future__ import annotations

import os
import pwd
import subprocess

import pytest

from tests.running import COMMANDS, run_command

RESULTS = (
    "ckd-cache --help",
    "ckd-cache info --store STORE --json",
    "ckd-cache ledger list --store STORE",
    "ckd-cache ledger export --store STORE",
)
FULL = "Error: the output could not be written to (No space left on device), and the rest of the result is not shown"


def ended(streams: str, store, *commands: str, **options: object) -> list[tuple[int, str]]:
    """Exit code and stderr of each command, its streams as a shell has been told."""
    processes = [
        subprocess.Popen(
            ["bash", "-c", f"exec {COMMANDS}/{command.replace('STORE', str(store))} {streams}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        for command in commands
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.mark.parametrize(
    ("streams", "reason"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_an_output_that_is_full_or_closed_is_a_sentence_and_exit_2(stores, streams, reason):
    for command, (code, said) in zip(RESULTS, ended(streams, stores["zarr"], *RESULTS), strict=True):
        assert code == 2, (command, said)
        assert said.endswith(f"{FULL.replace('No space left on device', reason)}; what was done is kept\n")
        assert "Traceback" not in said, command
        assert "Exception" not in said, command


def test_a_reader_that_has_left_is_a_sentence_and_exit_141(stores):
    reader, writer = os.pipe()
    os.close(reader)
    for code, said in ended(f">&{writer}", stores["zarr"], *RESULTS, pass_fds=(writer,)):
        assert (code, len(said.splitlines())) == (141, 1), said
        assert "(Broken pipe)" in said
    os.close(writer)


@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-"])
def test_an_error_stream_that_fails_changes_no_exit_code(stores, streams):
    whole, none = ended(streams, stores["zarr"], "ckd-cache info --store STORE", "ckd-cache info --store /nowhere")
    assert (whole[0], none[0]) == (0, 2)
    ((code, _),) = ended(f"{streams} >/dev/full", stores["zarr"], "ckd-cache info --store STORE")
    assert code == 2


def test_a_file_that_is_opened_never_gets_the_number_of_a_closed_stream(tmp_path):
    program = (
        "import click, os, sys\n"
        "from ground.terminal import CommandGroup\n"
        "@click.group(cls=CommandGroup, invoke_without_command=True)\n"
        "def main():\n"
        f"    file = os.open({str(tmp_path / 'ledger')!r}, os.O_CREAT | os.O_WRONLY)\n"
        "    sys.exit(0 if file > 2 and sys.stdin.read() == '' else 7)\n"
        "main()\n"
    )
    words = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", COMMANDS / "python", "-c", program]
    assert subprocess.run(words, check=False).returncode == 0


def test_a_full_pipe_that_does_not_block_is_waited_for(stores):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # More than a pipe holds before anybody reads it.
    program = "import click\nfrom ground.terminal import CommandGroup\n@click.group(cls=CommandGroup, "
    program += "invoke_without_command=True)\ndef main():\n    click.echo('x' * 300_000)\nmain()\n"
    process = subprocess.Popen([COMMANDS / "python", "-c", program], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    with open(reader, "rb") as file:
        assert len(file.read()) == 300_001
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"")


@pytest.mark.slow
def test_calls_whose_result_could_not_be_printed_are_kept(tmp_path, weights):
    base = ("build", "--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--device", "cpu", "--n", 20)
    command = " ".join(map(str, ("ckd-cache", *base, "--store", "STORE")))
    ((code, said),) = ended(">/dev/full", tmp_path / "one", command)
    assert code == 2
    assert FULL in said
    # Without a stderr: `test_terminal.test_a_build_without_a_display_is_a_build`.
    assert run_command("ckd-cache", *base, "--store", tmp_path / "one").stdout.startswith("0 new teacher calls")
    ((code, _),) = ended("2>/dev/full", tmp_path / "one", f"{command} --n 30 --budget 20")
    assert code == 3, "the exit code is the budget's, whoever could read the sentence"


def test_no_home_and_no_account_are_no_error(stores, tmp_path, monkeypatch):
    def unknown(name: object) -> None:
        raise KeyError(name)

    for name in ("getpwuid", "getpwnam"):
        monkeypatch.setattr(pwd, name, unknown)
    for name in ("HOME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    build = ("build", "--teacher", "resnet8", "--n", 5, "--store", tmp_path / "s", "--dry-run", "--dataset")
    for witness, arguments, code, said in (
        ("~/w", ("verify", "--store", stores["zarr"]), 0, "no home folder"),
        ("off", (*build, "cifar10", "--data-root", "~/data"), 2, "cifar10 is not in ~/data"),
        ("off", (*build, "imagefolder:~/photos"), 2, "~/photos is not a folder"),
    ):
        done = run_command("ckd-cache", *arguments, env={"CKD_WITNESS": witness}, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert said in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "~").exists()
