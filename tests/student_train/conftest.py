"""Students that learned from photographs, which a teacher's library prepared."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import build_stores, stores_in


@pytest.fixture(scope="session")
def stores(made_once, weights, few_tested) -> dict[str, Path]:
    """As for all tests, with fewer test images."""
    return stores_in(made_once("few-tested-stores", lambda folder: build_stores(folder, weights, few_tested)))


# These too, since what is made for a session is made of the first `stores` that was asked for.
@pytest.fixture(scope="session")
def built_store(stores) -> Path:
    return stores["zarr"]


@pytest.fixture(scope="session", params=("zarr", "hdf5"))
def store_of_each_format(request, stores) -> Path:
    return stores[request.param]


@pytest.fixture(scope="session")
def photograph_store(made_once, photographs, timm_weights) -> Path:
    """Of an untrained timm network at 64 pixels, all of its layers kept; its library resizes bicubically."""
    from teacher_cache.build import build
    from teacher_cache.config import BuildConfig
    from teacher_cache.prepare import prepare_build
    from teacher_cache.rendering import RenderingOverrides

    def fill(folder: Path) -> None:
        config = BuildConfig(
            teacher="timm:mobilenetv3_small_050",
            weights=timm_weights,
            store=folder / "store",
            dataset=f"imagefolder:{photographs}",
            image_size=72,
            rendering=RenderingOverrides(input_size=64),
            features="all",
            device="cpu",
            n=12,
        )
        build(*prepare_build(config))

    return made_once("photograph-store", fill) / "store"


def train(store: Path, folder: Path, student: str, method: str = "kd", **changes: object) -> Path:
    """A run of one evaluation."""
    from models.compute import Compute
    from student_train.methods import parse_method
    from student_train.protocol import ProtocolConfig
    from student_train.run_folder import RunFolder
    from student_train.train_config import TrainConfig
    from student_train.trainer import Trainer

    config = TrainConfig(student=student, batch_size=8, lr=0.01, protocol=ProtocolConfig(max_evals=1), **changes)
    compute = Compute.choose("cpu", "fp32")
    Trainer.open(config, store, None, parse_method(method), compute, RunFolder(folder)).run()
    return folder


@pytest.fixture(scope="session")
def finished_run(made_once, photograph_store) -> Path:
    """A resnet8 at 32 pixels, trained on photographs; treat it as read-only."""

    def fill(folder: Path) -> None:
        train(photograph_store, folder / "run", "resnet8", student_size=32)

    return made_once("finished-run", fill) / "run"


@pytest.fixture(scope="session")
def foreign_run(made_once, photograph_store) -> Path:
    """A torchvision network at 64 pixels, likewise."""

    def fill(folder: Path) -> None:
        train(photograph_store, folder / "run", "torchvision:mobilenet_v3_small", student_size=64)

    return made_once("foreign-run", fill) / "run"
