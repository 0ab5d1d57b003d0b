"""Students and teachers on the same test images: what table 3 and figure 5 of the paper need.

The teacher's answers come from a store of its own, whose calls were paid once; a student's are computed here and kept
as `logits.json` in its run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.logits import LOGITS_FILE, Description, describe_logits
from analysis.students import student_logits
from experiments.plan import PlannedRun, StoreNeed
from ground.durable import write_json
from ground.errors import CKDError, InvalidInput
from ground.terminal import note, plain, progress
from storage.rows import Rows
from storage.run_record import is_finished
from storage.store import Store


def describe_students(out: Path, needs: Sequence[StoreNeed], runs: Sequence[PlannedRun], images: int) -> None:
    """Write logits.json for every finished run that has none of so many images."""
    waiting = [run for run in runs if is_finished(out / run.folder) and not _is_there(out, run, images)]
    if not waiting:
        return
    stores = {need.folder: Store.open(out / need.folder_of_tests) for need in needs}
    rows = Rows.first(images)
    teachers = {folder: store.read_outputs(["logits"], rows)["logits"][:, 0] for folder, store in stores.items()}
    with progress("students on test images", len(waiting)) as advance:
        for run in waiting:
            try:
                said = student_logits(out / run.folder, out / run.store, images)
                write_json(out / run.folder / LOGITS_FILE, describe_logits(said, teachers[run.store]))
            except CKDError as error:
                note(plain(f"{run.folder} is not described: {error}"))
            advance(1, run.folder)


def _is_there(out: Path, run: PlannedRun, images: int) -> bool:
    try:
        return Description.load(out / run.folder).images == images
    except InvalidInput:
        return False
