"""The rooms import one way, and that stage two cannot reach a teacher is structural."""

from __future__ import annotations

import os
import subprocess
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


def test_no_machine_path_or_registry_is_named():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    needles = ["/ro" + "ot/", "pythonho" + "sted.org", "py" + "pi.org"]
    for name in files:
        text = (ROOT / name).read_text(errors="ignore")
        for needle in needles:
            assert needle not in text, (name, needle)
