"""A finished run's student, ready to answer: its network, how it is shown photographs, and what its classes are called.

All of it is in the run's folder. Runs of earlier releases do not say all, and are completed from their store.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msgspec import UnsetType

from ground.errors import CKDError, IdentityMismatch, InvalidInput
from ground.geometry import Fit, Rendering
from ground.user_code import UserCode
from models import Network, read_metadata
from models.kept_student import load_student
from models.trained_on import TrainedOn
from storage.identity import Identity
from storage.manifest import Manifest
from storage.run_record import RUN_FILE, STUDENT_FILE, RunRecord

_ADVICE = "bring it back from a copy, or train again"


@dataclass(frozen=True, slots=True, eq=False)
class FinishedStudent:
    """A student that was trained.

    Args:
        folder: of its run.
        network: in evaluation mode, on the CPU.
        rendering: how it is shown base images.
        fit: how those are made of photographs.
        classes: the name of each of its answers.
    """

    folder: Path
    record: RunRecord
    network: Network
    rendering: Rendering
    fit: Fit
    classes: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path, store: Path | None = None, code: UserCode = UserCode.REFUSED) -> FinishedStudent:
        """The student of a run.

        Args:
            store: where the run's store is now; asked only for what the run itself does not say, None looks where it
                was.
            code: what is done with a student that is code from outside this program.

        Raises:
            InvalidInput: the run is not finished or damaged, or says too little and its store is not there.
            IdentityMismatch: the store is another one.
        """
        if not (folder / RUN_FILE).is_file():
            raise InvalidInput(f"{folder} holds no finished run (no {RUN_FILE}); give the folder of one")
        record = RunRecord.load(folder, _ADVICE)
        path = folder / STUDENT_FILE
        rendering, fit, classes = (
            record.student_rendering,
            record.fit,
            TrainedOn.read(read_metadata(path), path).classes,
        )
        if isinstance(rendering, UnsetType) or isinstance(fit, UnsetType) or classes is None:
            identity = _identity_of(record, folder, store)
            rendering = identity.teacher_rendering if isinstance(rendering, UnsetType) else rendering
            fit = identity.fit if isinstance(fit, UnsetType) else fit
            classes = identity.dataset.classes if classes is None else classes
        network = load_student(path, record.student, len(classes), rendering.size, _ADVICE, code=code)
        return cls(folder, record, network, rendering, fit, classes)


def _identity_of(record: RunRecord, folder: Path, store: Path | None) -> Identity:
    """Of the store that a run was trained from."""
    place = store or Path(record.store or "")
    try:
        manifest = Manifest.load(place)
    except (CKDError, OSError, ValueError) as error:  # the last for a path that none is
        raise InvalidInput(
            f"{folder} is of a release that did not say how its student is shown photographs, and its store cannot be "
            f"asked ({error}); say where it is, with --store"
        ) from error
    if record.store_id not in manifest.ids:
        raise IdentityMismatch(f"{place} is not the store that {folder} was trained from; give that one with --store")
    return manifest.identity
