"""What is imported once is not looked through for garbage, and what is made later is."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest

from ground.imports import uncollected


class Thing:
    """Holds itself, so that only a collection finds it."""

    def __init__(self) -> None:
        self.me = self


def test_nothing_is_collected_in_the_block_and_all_is_again_after_it():
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    made = weakref.ref(Thing())
    gc.collect()
    assert made() is None


def test_an_import_that_fails_leaves_collections_on():
    with pytest.raises(ImportError), uncollected():
        import ckd_no_such_module  # noqa: F401
    assert gc.isenabled()


def test_who_has_collections_off_keeps_them_off():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_command_that_was_imported_is_not_looked_through_and_its_own_garbage_is():
    """In a process of its own, where nothing was imported so before."""
    program = """
import gc, weakref
from tests.ground.test_imports import Thing
from pipeline import main
assert gc.get_freeze_count() == 0
main.lazy["run"].load()
frozen, made = gc.get_freeze_count(), weakref.ref(Thing())
assert frozen > 1000 and gc.isenabled()
main.lazy["report"].load()
gc.collect()
assert frozen / 2 < gc.get_freeze_count() <= frozen and made() is None
"""
    subprocess.run([sys.executable, "-c", program], check=True)
