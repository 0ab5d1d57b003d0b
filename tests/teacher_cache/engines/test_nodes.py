"""What nodes say of themselves is checked before any work, and what one lacks is said with its name."""

from __future__ import annotations

import pytest

from ground.errors import InvalidInput
from ground.ray_cluster import Node
from storage.shared_folder import Mark
from teacher_cache.engines.nodes import Facts, look, require_nodes

NODE = Node(id="1", host="far", cpus=2.0, gpus=0.0)


class Asked:
    """A cluster of one node that says what it is told to."""

    def __init__(self, **facts) -> None:
        self.facts = facts

    def on_every_node(self, function, *arguments):
        return [(NODE, Facts(**({"boot": "other", "version": look({}, "", [], []).version, "lacks": ()} | self.facts)))]


def test_machines_are_counted_and_this_one_with_them(tmp_path):
    assert require_nodes(Asked(), files=[], folders=[tmp_path]) == 2
    assert require_nodes(Asked(boot=look({}, "", [], []).boot), files=[], folders=[]) == 1
    assert list(tmp_path.iterdir()) == []


def test_another_version_is_refused():
    with pytest.raises(InvalidInput, match=r"node far has teacher-cache 0\.0, and this is .*; install the same on all"):
        require_nodes(Asked(version="0.0"), files=[], folders=[])


def test_all_that_a_node_lacks_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lacks = look({"CKD_TOLD": "1"}, str(tmp_path), [tmp_path / "weights.pt"], [Mark(tmp_path / "store", "a")]).lacks
    monkeypatch.delenv("CKD_TOLD")
    with pytest.raises(InvalidInput) as refused:
        require_nodes(Asked(lacks=lacks), files=[], folders=[])
    assert str(refused.value) == (
        f"node far lacks {tmp_path / 'weights.pt'}; it cannot work in {tmp_path / 'store'}, which is not there: every "
        "node needs the same files at the same paths, and stores, ledgers and runs on a file system that all share"
    )
