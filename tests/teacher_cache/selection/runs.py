"""Folders of finished runs whose students were never trained, for rules to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from models import Network, create_model, save_weights
from models.trained_on import TrainedOn
from storage.run_record import STUDENT_FILE, RunProtocol, RunRecord
from teacher_cache.selection import Pool

STORE_ID = "a" * 32


def make_run(folder: Path, pool: Pool, seed: int = 0, network: Network | None = None, **said: Any) -> Path:
    """A run of resnet8 on the pool's data set; `said` stands in its record in the place of what is true."""
    identity = pool.identity
    record = RunRecord(
        student="resnet8",
        method="kd",
        seed=seed,
        lr=0.05,
        momentum=0.9,
        weight_decay=5e-4,
        batch_size=64,
        student_view="fresh",
        protocol=RunProtocol(patience=1, plateaus=1, max_evals=1),
        recipe={},
        n=8,
        precision="fp32",
        store_id=STORE_ID,
        teacher=identity.teacher.name,
        teacher_fingerprint=identity.teacher.fingerprint,
        dataset=identity.dataset.name,
        student_rendering=identity.teacher_rendering,
        teacher_calls=8,
        test_accuracy=0.1,
        best_val_accuracy=0.1,
        last_test_accuracy=0.1,
        evaluations=1,
        steps=1,
        seconds=1.0,
        device="cpu",
        versions={},
    )
    trained = TrainedOn.of(
        "resnet8",
        dataset=identity.dataset.name,
        dataset_digest=identity.dataset.digest,
        classes=identity.dataset.classes,
        rendering=identity.teacher_rendering,
    )
    network = network or create_model("resnet8", pool.num_classes, seed, identity.geometry.crop_size)
    folder.mkdir()
    save_weights(network, folder / STUDENT_FILE, trained.metadata())
    replace(record, **said).save(folder)
    return folder
