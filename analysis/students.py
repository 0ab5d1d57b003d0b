"""A finished run's student, brought back to say its logits of test images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from msgspec import UnsetType

from ground.errors import IdentityMismatch, InvalidInput
from ground.geometry import Rendering
from ground.views import evaluation_batches
from models.compute import Compute
from models.kept_student import load_student
from storage.rows import Rows
from storage.run_record import STUDENT_FILE, RunRecord
from storage.store import Store

_ADVICE = "delete the folder of this run and train the student again"


def student_logits(run_folder: Path, store_folder: Path, images: int) -> np.ndarray:
    """What a student says of the first test images of a store, as its training evaluated it, in float32 on the CPU.

    Args:
        store_folder: the store that it was trained from, or one of the same teacher and dataset.
        images: how many; the store must have as many test images.

    Returns:
        (images, K) float32.

    Raises:
        InvalidInput: the run is not finished or damaged, or the store has too few test images.
        IdentityMismatch: the store is of another teacher or dataset.
        StoreUnreadable: the store is missing or damaged.
    """
    student, rendering = _require_finished(run_folder, store := Store.open(store_folder))
    manifest = store.manifest
    if not 1 <= images <= manifest.num_test:
        raise InvalidInput(f"{images} test images are asked for, {store_folder} has {manifest.num_test}; ask for those")
    path, classes = run_folder / STUDENT_FILE, len(manifest.identity.dataset.classes)
    network = load_student(path, student, classes, rendering.size, _ADVICE)
    compute = Compute.choose("cpu", "fp32")
    compute.place(network)
    rows = Rows.first(images)
    pixels, labels = (torch.from_numpy(store.read_sample(f"test/{name}", rows)) for name in ("images", "labels"))
    batches = evaluation_batches(pixels, labels, rendering)
    with torch.inference_mode():
        logits = torch.cat([network(inputs) for inputs, _ in batches])
    return logits.float().contiguous().numpy()


def _require_finished(run_folder: Path, store: Store) -> tuple[str, Rendering]:
    """A run's student and what it was shown, after checking that it was trained for this teacher and dataset."""
    record = RunRecord.load(run_folder, _ADVICE)
    identity = store.manifest.identity
    belongs = {"teacher_fingerprint": identity.teacher.fingerprint, "dataset": identity.dataset.name}
    for name, wanted in belongs.items():
        found = getattr(record, name)
        if found != wanted:
            raise IdentityMismatch(
                f"{run_folder} has {name} {found!a}, {store.folder} has {wanted!a}; give the store that "
                "the run was trained from"
            )
    return record.student, _rendering(record, store)


def _rendering(record: RunRecord, store: Store) -> Rendering:
    """How the student saw images; runs of earlier releases do not say, and saw them as the teacher did."""
    usual = store.manifest.identity.teacher_rendering
    if isinstance(record.student_rendering, UnsetType):
        return usual
    size = record.student_rendering.geometry.image_size
    if size != usual.geometry.image_size:
        raise InvalidInput(
            f"the run was shown images of {size} pixels, those of {store.folder} have {usual.geometry.image_size}; "
            "give the store that the run was trained from"
        )
    return record.student_rendering
