"""A mark in a folder tells, from another process, whether it is the same folder, and whether locks hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from storage.shared_folder import Mark, marked, why_not_shared

ROOT = Path(__file__).parents[2]
ASKED = """
import sys
from pathlib import Path
from storage.shared_folder import Mark, why_not_shared

print(why_not_shared(Mark(Path(sys.argv[1]), sys.argv[2])))
"""


def test_a_folder_that_is_shared_is_found_to_be_and_nothing_is_left(tmp_path):
    folder = tmp_path / "new" / "store"
    with marked(folder) as mark:
        words = [sys.executable, "-c", ASKED, mark.folder, mark.name]
        asked = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert asked.stdout == "None\n"
    assert list(tmp_path.iterdir()) == []


def test_what_others_put_into_a_folder_stays(tmp_path):
    with marked(tmp_path / "store"):
        (tmp_path / "store" / "manifest.json").touch()
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["manifest.json"]


def test_another_folder_of_that_name_is_told(tmp_path):
    with marked(tmp_path) as mark:
        assert why_not_shared(Mark(tmp_path, "elsewhere")) == "is another folder there"
        assert why_not_shared(Mark(tmp_path / "none", mark.name)) == "is not there"


def test_locks_that_do_not_hold_are_told(tmp_path):
    # A process does not lock itself out of single cells, as a file system without locks would lock nobody out.
    with marked(tmp_path) as mark:
        assert why_not_shared(mark) == "is on a file system whose locks do not hold there"
