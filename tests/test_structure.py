"""The rooms import one way, and that stage two cannot reach a teacher is structural."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

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


def modules_outside_tests() -> Iterator[tuple[str, ast.Module]]:
    names = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.split():
        if not name.startswith("tests/"):
            yield name, ast.parse((ROOT / name).read_text())


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


def test_no_machine_path_or_registry_is_named():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    needles = ["/ro" + "ot/", "pythonho" + "sted.org", "py" + "pi.org"]
    for name in files:
        text = (ROOT / name).read_text(errors="ignore")
        for needle in needles:
            assert needle not in text, (name, needle)
