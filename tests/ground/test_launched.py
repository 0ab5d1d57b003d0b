"""Which of several processes this is, as torchrun and srun say it."""

from __future__ import annotations

import pytest

from ground.launched import Launched

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
SRUN = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8"}


@pytest.mark.parametrize(("environment", "launcher"), [(TORCHRUN, "torchrun"), (SRUN, "srun")])
def test_a_launcher_says_which_process_this_is(environment, launcher):
    assert Launched.find(environment) == Launched(rank=5, local_rank=1, size=8, launcher=launcher)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        TORCHRUN | {"WORLD_SIZE": "1"},
        {"RANK": "first"} | {name: TORCHRUN[name] for name in ("LOCAL_RANK", "WORLD_SIZE")},
        {name: SRUN[name] for name in ("SLURM_PROCID", "SLURM_LOCALID")},  # a script of sbatch runs once
    ],
)
def test_a_process_that_was_started_alone_is_none_of_several(environment):
    assert Launched.find(environment) is None


@pytest.mark.parametrize(("num_gpus", "device"), [(0, "cpu"), (1, "cuda:0"), (2, "cuda:1"), (8, "cuda:1")])
def test_each_process_has_a_gpu_of_its_machine(num_gpus, device):
    assert Launched(rank=9, local_rank=1, size=16, launcher="srun").device(num_gpus) == device
