"""What memory can be had is the least of what the machine and each control group around this process leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from ground import main_memory
from ground.main_memory import free_main_memory

MACHINE = "MemTotal:       64000 kB\nMemFree:  10 kB\nMemAvailable:   32000 kB\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Files of a machine with 32,768,000 bytes left, which a test may limit by groups."""
    (tmp_path / "meminfo").write_text(MACHINE)
    (tmp_path / "cgroup").write_text("0::/work/job\n")
    for name, file in (("_MEMINFO", "meminfo"), ("_GROUPS", "cgroup"), ("_MOUNTED", "groups")):
        monkeypatch.setattr(main_memory, name, tmp_path / file)
    return tmp_path


def limit(group: Path, *numbers: str, names=("memory.max", "memory.current"), files: str = "inactive_file 0") -> None:
    group.mkdir(parents=True)
    for name, number in zip(names, numbers, strict=True):
        (group / name).write_text(f"{number}\n")
    (group / "memory.stat").write_text(f"anon 7\n{files}\nslab 7\n")


def test_without_groups_it_is_what_the_machine_has_left(machine):
    assert free_main_memory() == 32000 * 1024


def test_a_group_leaves_its_limit_less_what_is_taken_but_not_what_is_kept_of_files(machine):
    limit(machine / "groups/work/job", "9000000", "5000000", files="inactive_file 1000000")
    assert free_main_memory() == 5_000_000


def test_the_narrowest_of_the_groups_around_it_counts(machine):
    limit(machine / "groups/work", "2000000", "1500000")
    limit(machine / "groups/work/job", "max", "1500000")
    assert free_main_memory() == 500_000


def test_in_a_container_its_own_group_is_the_mounted_one(machine):
    limit(machine / "groups", "3000000", "1000000")
    assert free_main_memory() == 2_000_000


def test_more_than_the_limit_leaves_nothing(machine):
    limit(machine / "groups", "3000000", "4000000")
    assert free_main_memory() == 0


def test_groups_of_version_1_are_read_too(machine):
    (machine / "cgroup").write_text("5:cpu,cpuacct:/a\n4:memory:/docker/x\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    limit(machine / "groups/memory/docker/x", "6000000", "4000000", names=names, files="total_inactive_file 500000")
    assert free_main_memory() == 2_500_000
