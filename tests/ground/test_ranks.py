"""Ranks share work without remainder, understand each other, and end together with one sentence."""

from __future__ import annotations

import socket
from datetime import timedelta
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from ground.ranks import ALONE, RankGroup, joined, share
from tests.running import run_program

TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@given(length=st.integers(0, 1000), count=st.integers(1, 40))
def test_shares_are_everything_once_and_differ_by_one_at_most(length, count):
    shares = [range(length)[share(length, rank, count)] for rank in range(count)]
    assert [place for part in shares for place in part] == list(range(length))
    sizes = [len(part) for part in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, TORCHRUN | {"WORLD_SIZE": "1"}])
def test_a_process_that_torchrun_did_not_start_is_alone(environment):
    with joined(environment) as ranks:
        assert ranks is ALONE
    tensor = torch.ones(2)
    ranks.add(tensor)
    ranks.align([tensor])
    assert ranks.alone
    assert ranks.is_first
    assert (ranks.any(True), ranks.totals(3, 4), ranks.told(b"x")) == (True, (3, 4), b"x")
    assert torch.equal(ranks.gather(tensor), torch.ones(1, 2))
    assert ranks.device("cuda:7") == "cuda:7"


@pytest.mark.parametrize(
    "changes",
    [
        {"RANK": None},
        {"RANK": "2"},
        {"RANK": "one"},
        {"MASTER_PORT": None},
        {"LOCAL_RANK": "1"},
        {"WORLD_SIZE": "-1"},
        {"LOCAL_WORLD_SIZE": "0"},
        {"LOCAL_WORLD_SIZE": "3"},
    ],
)
def test_an_environment_that_says_half_of_it_is_refused(changes):
    environment = {name: value for name, value in (TORCHRUN | changes).items() if value is not None}
    with (
        pytest.raises(InvalidInput, match="does not say which rank this is .*start ranks with torchrun"),
        joined(environment),
    ):
        pass


@pytest.mark.parametrize(
    ("asked", "device"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cpu", "cpu"), ("cuda:0", None), ("tpu", None)]
)
def test_each_rank_has_a_gpu_of_its_own(asked, device):
    group = RankGroup(mock.Mock(), rank=3, local_rank=1, count=4)
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.device_count", return_value=2),
    ):
        if device is None:
            with pytest.raises(InvalidInput, match="would be shared by 4 ranks"):
                group.device(asked)
        else:
            assert group.device(asked) == device


def test_more_ranks_than_gpus_are_refused():
    group = RankGroup(mock.Mock(), rank=3, local_rank=3, count=4)
    with (
        mock.patch("torch.cuda.device_count", return_value=2),
        pytest.raises(InvalidInput, match="rank 3 has no GPU of its own: this machine has 2"),
    ):
        group.device("cuda")


@pytest.mark.parametrize("port", ["taken", "notaport"])
def test_ranks_that_cannot_meet_are_told_where(port):
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = str(server.getsockname()[1]) if port == "taken" else port
        there = mock.patch.dict("os.environ", TORCHRUN | {"MASTER_PORT": number})
        with there, pytest.raises(InvalidInput, match=f"rank 0 did not meet all 2 at 127.0.0.1:{number} "), joined():
            pass


def test_a_rank_that_never_comes_is_not_waited_for_without_end(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    monkeypatch.setattr("ground.ranks.PATIENCE", timedelta(seconds=1))
    there = mock.patch.dict("os.environ", TORCHRUN | {"MASTER_PORT": port})
    sentence = r"did not meet all 2 .* within 1 s .* start all ranks with torchrun"
    with there, pytest.raises(InvalidInput, match=sentence), joined():
        pass


def test_words_arrive():
    found = run_program("tests.ground.rank_words", 3, "talk")
    assert found.stdout == "[0, 0, 0]\n", found.stderr


def test_the_same_fault_is_said_once_and_another_is_said_too():
    found = run_program("tests.ground.rank_words", 4, "fail")
    assert found.stdout == "[2, 2, 2, 2]\n", found.stderr
    said = found.stderr.splitlines()
    assert said.count("Error: this is one rank's own fault") == 1
    # Where the odd one was first, the others are not silent.
    assert 1 <= said.count("Error: this is everybody's fault") <= 3
    assert len(said) <= 4


def test_a_rank_that_is_killed_ends_the_others_with_one_sentence():
    found = run_program("tests.ground.rank_words", 3, "die")
    assert found.stdout == "[1, 1, -9]\n", found.stderr
    assert "lost another one; see what that said, then go on with the same command and --resume" in found.stderr
    assert found.stderr.count("Error:") == 1
