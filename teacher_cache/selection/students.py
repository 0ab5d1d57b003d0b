"""Students that finished runs left: rules look at what these say of images, which costs no call.

A run is read once, and is known by the digest of its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from msgspec import UNSET, UnsetType
from torch import Tensor

from ground.errors import IdentityMismatch, InvalidInput
from ground.geometry import Rendering
from ground.views import plain_pixels
from models import Network, read_metadata
from models.kept_student import load_student
from models.trained_on import TrainedOn
from storage.run_record import RUN_FILE, STUDENT_FILE, RunRecord
from teacher_cache.selection.candidates import images_of
from teacher_cache.selection.contract import Pool

_ADVICE = "give the folder of another run"


@dataclass(frozen=True, slots=True, eq=False)
class Student:
    """A student that was trained.

    Args:
        folder: of its run.
        digest: SHA-256 of its file of weights.
        record: its `run.json`.
        trained_on: what its file says.
    """

    folder: Path
    digest: str
    record: RunRecord
    trained_on: TrainedOn

    @classmethod
    def of(cls, folder: Path) -> Student:
        """The student of a finished run; raises `InvalidInput` where there is none."""
        if not (folder / RUN_FILE).is_file():
            raise InvalidInput(f"{folder} holds no finished run (no {RUN_FILE}); {_ADVICE}")
        record, digest = RunRecord.load(folder, _ADVICE), _digest_of(folder)
        path = folder / STUDENT_FILE
        return cls(folder.resolve(), digest, record, TrainedOn.read(read_metadata(path), path))

    @property
    def rendering(self) -> Rendering:
        """How it is shown base images; raises `InvalidInput` where its run does not say."""
        rendering = self.record.student_rendering
        if isinstance(rendering, UnsetType):
            raise InvalidInput(
                f"the run {self.folder} is of a release that did not say how its student is shown images; train one "
                "with this release"
            )
        return rendering

    def require_of(self, pool: Pool) -> None:
        """Refuse a student that cannot say anything of these images, or knows what was not bought for them.

        Raises:
            IdentityMismatch: it was trained on other data, or from another store.
            InvalidInput: nobody says how it is shown images.
        """
        said, dataset = self.trained_on, pool.identity.dataset
        if self.record.dataset != dataset.name:
            raise IdentityMismatch(
                f"the run {self.folder} was trained on {self.record.dataset}, and these images are of {dataset.name}; "
                "give a run of this data set"
            )
        if said.dataset_digest not in (None, dataset.digest) or said.classes not in (None, dataset.classes):
            raise IdentityMismatch(
                f"the run {self.folder} was trained on other images or classes called {dataset.name} too; give a run "
                "of this data set"
            )
        if pool.store_ids and self.record.store_id not in pool.store_ids:
            raise IdentityMismatch(
                f"the run {self.folder} was trained from another store than this one, so calls are behind it that were "
                "not made for it; give a run of this store"
            )
        if pool.store_ids and self.record.teachers is not UNSET:
            raise IdentityMismatch(
                f"the run {self.folder} learned from several teachers, so calls of others are behind it; give a run of "
                "this store alone"
            )
        if self.rendering.geometry.image_size != pool.identity.geometry.image_size:
            raise IdentityMismatch(
                f"the run {self.folder} was trained on images of {self.rendering.geometry.image_size} pixels, and "
                f"these have {pool.identity.geometry.image_size}; give a run of this store"
            )

    def open(self, pool: Pool) -> Network:
        """Its network, on the pool's device.

        Raises:
            InvalidInput: it cannot be used, is code that was not allowed, or was replaced since it was read.
        """
        num_classes = len(self.trained_on.classes or pool.identity.dataset.classes)
        path, name = self.folder / STUDENT_FILE, self.record.student
        network = load_student(path, name, num_classes, self.rendering.size, _ADVICE, code=pool.code)
        if _digest_of(self.folder) != self.digest:
            raise InvalidInput(f"the student of {self.folder} was replaced while it was being used; begin again")
        pool.compute.place(network)
        return network


def folders_of(text: str) -> tuple[Path, ...]:
    """Of `FOLDER+FOLDER`; raises `ValueError` for text that names none, or one twice."""
    names = text.split("+")
    if not all(names):
        raise ValueError(f"run={text} names no run; write run=FOLDER, or run=FOLDER+FOLDER, of paths without + , =")
    folders = tuple(Path(name) for name in names)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"run={text} names a run twice; give each once")
    return folders


def probabilities(students: Sequence[Student], pool: Pool, index: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
    """What students say of the plain view of images: places in `index`, and (S, B, K) float64 on the CPU.

    Images are decoded once for all of them.

    Raises:
        InvalidInput: as `Student.open`; or one says what is no number.
    """
    networks = [student.open(pool) for student in students]
    with torch.inference_mode(), pool.compute.exact():
        for places, images in images_of(pool, index):
            said = []
            for student, network in zip(students, networks, strict=True):
                rendering = student.rendering
                with pool.compute.autocast():
                    logits = network(rendering.normalisation.apply(plain_pixels(images, rendering)))
                if not logits.isfinite().all():
                    raise InvalidInput(f"the student of {student.folder} says what is no number; {_ADVICE}")
                said.append(logits.double().softmax(dim=1).cpu())
            yield places, torch.stack(said)


def _digest_of(folder: Path) -> str:
    path = folder / STUDENT_FILE
    if not path.is_file():
        raise InvalidInput(f"{folder} has no {STUDENT_FILE}; {_ADVICE}")
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
