"""Whether this process is one of several that a launcher started with the same command, and which of them.

torchrun and srun say so in the environment. What several processes do with it is theirs: builders of one store divide
the work by the ledger, and need no more than a GPU each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Launched:
    """One process of several.

    Args:
        rank: among all.
        local_rank: among those on this machine.
        size: how many there are in all.
        launcher: for messages.
    """

    rank: int
    local_rank: int
    size: int
    launcher: str

    @classmethod
    def find(cls, environment: Mapping[str, str] = os.environ) -> Launched | None:
        """What the environment says; None for a process that was started alone."""
        for launcher, names in _SAID_BY.items():
            said = [environment.get(name, "") for name in names]
            if all(text.isascii() and text.isdecimal() for text in said):
                rank, local_rank, size = map(int, said)
                return cls(rank, local_rank, size, launcher) if size > 1 else None
        return None

    def device(self, num_gpus: int) -> str:
        """The device for `auto`: each process a GPU of its machine in turn; where a launcher shows it one, that one."""
        return f"cuda:{self.local_rank % num_gpus}" if num_gpus else "cpu"


# Rank, rank on the machine, and number of processes. srun sets the last for the tasks of a step alone, so that a script
# of sbatch, which runs once, is none of several.
_SAID_BY = {
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
}
