"""The rooms import one way, and that stage two cannot reach a teacher is structural."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import COMMANDS

ROOT = Path(__file__).parent.parent


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [COMMANDS / "lint-imports", "--no-cache", "--config", ROOT / "setup.cfg"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


def test_imports_point_one_way():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout
    assert "2 kept, 0 broken" in result.stdout


@functools.cache
def modules_outside_tests() -> list[tuple[str, ast.Module]]:
    names = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [(name, ast.parse((ROOT / name).read_text())) for name in names.split() if not name.startswith("tests/")]


def imported_by(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_nothing_stands_on_the_tests():
    for name, module in modules_outside_tests():
        rooms = {imported.partition(".")[0] for imported in imported_by(module)}
        assert "tests" not in rooms, name
        assert "benchmarks" not in rooms or name.startswith("benchmarks/"), name


def test_nothing_outside_the_tests_is_called_as_a_test():
    for name, module in modules_outside_tests():
        functions = [node.name for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
        collected = [found for found in (Path(name).name, *functions) if found.startswith("test_")]
        assert not collected, (name, collected)


def test_commands_print_through_what_terminals_obey_nothing_of():
    for name, module in modules_outside_tests():
        if name.startswith("benchmarks/") or name == "ground/terminal.py":
            continue
        called = {ast.unparse(node.func) for node in ast.walk(module) if isinstance(node, ast.Call)}
        assert not called & {"print", "click.echo", "click.secho", "stderr.print"}, name


def test_no_machine_path_or_registry_is_named():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    needles = ["/ro" + "ot/", "pythonho" + "sted.org", "py" + "pi.org"]
    for name in files:
        text = (ROOT / name).read_text(errors="ignore")
        for needle in needles:
            assert needle not in text, (name, needle)


# Modules that are tested by another name, and why.
TESTED_ELSEWHERE = {
    "storage/bill.py": "test_ledger_bills.py: what the ledger takes of it",
    "storage/database.py": "test_ledger.py: the ledger is its only user, on both databases",
    "storage/hdf5_arrays.py": "test_arrays.py and test_store.py: one suite for both formats, read back with h5py",
    "storage/zarr_arrays.py": "test_arrays.py and test_store.py: one suite for both formats, read back with zarr",
    "storage/zarr_library.py": "test_arrays.py and test_store.py: what the library makes is what both read",
    "storage/identity.py": "test_manifest.py: what one may say; test_store.py: what differs is named, field by field",
    "storage/inspection.py": "test_verify.py: what it finds is what verify says",
    "storage/ledger_accounts.py": "test_ledger.py and test_ledger_bills.py: totals, and budgets that stop",
    "storage/ledger_journal.py": "test_ledger.py: what is chained, and found by its hash",
    "storage/ledger_opening.py": "test_ledger_schema.py and test_ledger.py: what is opened as a ledger, and refused",
    "storage/ledger_records.py": "test_ledger.py: what the ledger takes and gives",
    "storage/ledger_report.py": "teacher_cache/test_ledger_commands.py: what the commands print",
    "storage/ledger_reserving.py": "test_ledger.py and test_ledger_bills.py: charged before called, once, in a budget",
    "storage/ledger_sessions.py": "test_ledger.py: leases that are taken; teacher_cache/test_shared_builds.py: watched",
    "storage/ledger_settling.py": "test_ledger.py and test_ledger_bills.py: what becomes of calls",
    "storage/ledger_spending.py": "test_ledger_bills.py: sums of what was settled there",
    "storage/ledger_tables.py": "test_ledger.py: the tables, on both databases",
    "storage/new_manifest.py": "test_store.py and test_blocks.py: what a manifest says of what was made, and has grown",
    "storage/object_arrays.py": "teacher_cache/test_publish.py and test_chunk_builder.py: read as a folder is",
    "storage/sample_blocks.py": "test_blocks.py: what is checked, and found, block by block",
    "student_train/binding.py": "losses/: every loss binds, and misfits are refused there",
    "student_train/catalogue.py": "test_registry.py: what ckd-train losses and methods print",
    "student_train/cli.py": "tests/test_commands.py: through the installed command",
    "student_train/dense_answers.py": "test_answer_kinds.py and losses/test_kinds.py: what losses make of each kind",
    "student_train/methods.py": "test_registry.py and test_method_spec.py: what text becomes",
    "student_train/names.py": "test_registry.py: the names are those of the recipes",
    "student_train/pairing.py": "test_method_spec.py and test_comparison.py",
    "student_train/reading.py": "losses/test_kinds.py: every loss from every kind, against full logits",
    "student_train/recording.py": "test_trainer.py and rest/: what run.json says, and what makes a run another",
    "student_train/request.py": "test_data.py, test_trainer.py and test_streamed_data.py: what is refused",
    "student_train/recipes.py": "test_every_method.py and test_method_spec.py: each recipe trains and is what it was",
}


@pytest.mark.parametrize("room", ["storage", "student_train"])
def test_every_module_has_a_test_of_its_name_or_a_reason(room):
    modules = [path for path in sorted((ROOT / room).glob("*.py")) if path.name != "__init__.py"]
    without = [f"{room}/{path.name}" for path in modules if not (ROOT / "tests" / room / f"test_{path.name}").exists()]
    assert without == sorted(name for name in TESTED_ELSEWHERE if name.startswith(room))


def test_no_test_imports_or_replaces_a_private_name_of_the_product():
    rooms = ("ground", "models", "storage", "teacher_cache", "student_train", "analysis", "experiments", "benchmarks")
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in rooms:
                assert not [name.name for name in node.names if name.name.startswith("_")], (path, node.lineno)
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr" and len(node.args) > 1:
                name = node.args[1]
                assert not (isinstance(name, ast.Constant) and str(name.value).startswith("_")), (path, node.lineno)
