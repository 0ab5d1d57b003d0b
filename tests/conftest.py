"""What all rooms' tests share: one core a worker, the installed commands, a small teacher and its store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Test workers run side by side; several threads in each would only get in each other's way.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

COMMANDS = Path(sys.executable).parent


def run_command(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Run an installed command as a user does, and capture what it prints."""
    name, *rest = (str(argument) for argument in arguments)
    # As wide as a message needs, so that nothing is wrapped where a test looks.
    environment = os.environ | {"COLUMNS": "400"} | options.pop("env", {})
    return subprocess.run(
        [COMMANDS / name, *rest], capture_output=True, text=True, timeout=300, env=environment, check=False, **options
    )


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A teacher for the digits that was never trained: what it says does not matter here."""
    from models import create_model, save_weights

    path = tmp_path_factory.mktemp("teacher") / "resnet8.safetensors"
    save_weights(create_model("resnet8", num_classes=10, seed=0), path, {})
    return path


@pytest.fixture(scope="session", params=("zarr", "hdf5"))
def built_store(request, tmp_path_factory, weights) -> Path:
    """A whole store of 96 rows with all features, built by the library; treat it as read-only."""
    from teacher_cache.build import build
    from teacher_cache.plan import BuildConfig, plan_build

    folder = tmp_path_factory.mktemp("stores") / request.param
    config = BuildConfig(
        teacher="resnet8",
        weights=weights,
        dataset="digits",
        n=96,
        features="all",
        array_format=request.param,
        store=folder,
        device="cpu",
    )
    build(plan_build(config))
    return folder
