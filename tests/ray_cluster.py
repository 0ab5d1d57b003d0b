"""A Ray cluster as a process: python -m tests.ray_cluster CPUS prints its address, and ends with its input."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ground.ray_cluster import joined

ROOT = Path(__file__).parent.parent


@contextmanager
def started(cpus: int) -> Iterator[str]:
    """The address of a cluster that ends with the block, or with this process."""
    words = [sys.executable, "-m", "tests.ray_cluster", str(cpus)]
    # Ray kills workers of a machine whose memory is nearly full, whoever fills it; what is killed here tests say.
    environment = os.environ | {"RAY_memory_monitor_refresh_ms": "0"}
    process = subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


def main() -> None:
    with joined(None, cpus=int(sys.argv[1])) as cluster:
        os.write(1, f"{cluster.ray.get_runtime_context().gcs_address}\n".encode())
        sys.stdin.read()


if __name__ == "__main__":
    main()
