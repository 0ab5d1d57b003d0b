"""Commands that need no network start at once: what each needs is imported when it is used, and torch takes seconds."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from benchmarks.stand_ins.fabricated_grid import make_grid
from ground.terminal import CommandAt, LazyGroup

GROUPS = ("teacher_cache.cli:main", "teacher_cache.commands.ledger:ledger", "student_train.cli:main", "pipeline:main")
HEAVY = ("torch", "torchvision", "sklearn", "zarr", "h5py", "altair", "pandas", "sqlalchemy", "transformers")

# Runs commands one after the other, those that need least first, and says what each has imported that is heavy.
OBSERVER = """
import contextlib, importlib, io, json, sys
commands, heavy = json.loads(sys.argv[1])
for home, arguments in commands:
    module, name = home.split(":")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            code = getattr(importlib.import_module(module), name)(arguments)
        except SystemExit as end:
            code = end.code
    print(json.dumps([code or 0, bool(output.getvalue()), [part for part in heavy if part in sys.modules]]))
"""


def observed(*commands: tuple[str, list[str]]) -> list[set[str]]:
    """Heavy packages that were imported by the end of each command, all in one new process."""
    process = subprocess.run(
        [sys.executable, "-c", OBSERVER, json.dumps([commands, HEAVY])], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    found = [json.loads(line) for line in process.stdout.splitlines()]
    assert [(code, said) for code, said, _ in found] == [(0, True)] * len(commands), process.stderr
    return [set(heavy) for _, _, heavy in found]


def test_stage_one_reads_a_store_and_its_ledger_without_torch(stores):
    cache, store = "teacher_cache.cli:main", ["--store", str(stores["zarr"])]
    found = observed(
        (cache, ["--help"]),
        (cache, ["ledger", "--help"]),
        (cache, ["info", *store]),
        (cache, ["info", *store, "--json"]),
        (cache, ["ledger", "summary", *store]),
        (cache, ["ledger", "list", *store]),
        (cache, ["ledger", "budget", *store]),
        (cache, ["ledger", "verify", *store]),
        (cache, ["ledger", "export", *store]),
        (cache, ["ledger", "trace", "--help"]),
        (cache, ["verify", "--help"]),
        # A store's own format, and no other, is loaded.
        (cache, ["info", "--store", str(stores["hdf5"])]),
    )
    assert found[:2] == [set()] * 2
    assert all(heavy <= {"sqlalchemy"} for heavy in found[:-1]), found
    assert found[-1] == {"sqlalchemy", "h5py"}


def test_the_pipeline_says_how_far_a_grid_is_without_torch(tmp_path):
    grid, pipeline = make_grid(tmp_path / "grid", seeds=1, sizes=(8,)), "pipeline:main"
    found = observed(
        (pipeline, ["--help"]),
        (pipeline, ["status", "--help"]),
        (pipeline, ["status", str(grid)]),
        (pipeline, ["report", "--help"]),
    )
    assert found[0] == set()
    assert all("torch" not in heavy for heavy in found), found


def test_stage_two_explains_itself_without_torch():
    assert observed(("student_train.cli:main", ["--help"])) == [set()]


def group_at(home: str) -> LazyGroup:
    module, _, name = home.partition(":")
    group = getattr(importlib.import_module(module), name)
    assert isinstance(group, LazyGroup)
    return group


@pytest.mark.parametrize("home", GROUPS)
def test_the_table_of_commands_says_what_the_commands_say(home):
    group = group_at(home)
    assert group.lazy
    for name, entry in group.lazy.items():
        command = group.get_command(click.Context(group), name)
        assert entry.help == inspect.cleandoc(command.help).split("\n\n")[0].replace("\n", " "), name
        # Which is what click would list, had the command been imported.
        assert command.get_short_help_str(1000) == click.Command(name, help=entry.help).get_short_help_str(1000)
        assert command.name == name


def test_a_command_is_imported_when_it_is_run_and_not_when_it_is_listed(tmp_path, monkeypatch):
    (tmp_path / "lazy_example.py").write_text(
        'import click\n\n@click.command()\ndef shout():\n    """Say it loud."""\n    click.echo("HERE")\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    group = LazyGroup("example", lazy={"shout": CommandAt("lazy_example:shout", "Say it loud.")})
    listed = CliRunner().invoke(group, ["--help"])
    assert listed.stdout.splitlines()[-1].split(maxsplit=1) == ["shout", "Say it loud."]
    assert "lazy_example" not in sys.modules
    assert CliRunner().invoke(group, ["shout"]).stdout == "HERE\n"
    assert "lazy_example" in sys.modules
    assert CliRunner().invoke(group, ["whisper"]).exit_code == 2
