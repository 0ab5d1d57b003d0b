"""`ckd-train predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ground.listing import LeftOut
from ground.options import StoreFolder, allow_code_option, device_option, json_option
from ground.terminal import note, print_json, print_table, progress
from ground.user_code import UserCode

if TYPE_CHECKING:
    from student_train.finished_student import FinishedStudent
    from student_train.prediction import Prediction


@click.command("predict")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes to name of each.")
@click.option("--store", type=StoreFolder(), help="Where the run's store is now; for runs that need it.")
@device_option
@allow_code_option
@json_option
def predict_command(
    run: Path, images: tuple[Path, ...], top: int, store: Path | None, device: str, allow_code: bool, as_json: bool
) -> None:
    """Name the classes of photographs, files or folders of them, by the student of a finished RUN.

    \b
    ckd-train predict runs/resnet8-ckd-n1600-seed0 holiday.jpg photographs/

    Exit status: 0 done, 1 a file could not be read: it is named, and the others are answered.
    """
    # Here, and not above: they load torch, and the help needs none.
    from models.compute import Compute
    from student_train.finished_student import FinishedStudent
    from student_train.prediction import find_images, predict

    left_out = LeftOut()
    files = find_images(images, left_out)
    if left_out.names:
        note(left_out.said())
    student = FinishedStudent.open(run, store, UserCode.of(allowed=allow_code))
    compute = Compute.choose(device, student.record.precision)
    with progress(f"{student.record.student}: images", len(files)) as advance:
        found = list(predict(student, files, compute, lambda steps: advance(steps, "")))
    for prediction in found:
        if prediction.problem is not None:
            note(f"{prediction.image}: {prediction.problem}")
    if as_json:
        print_json(_document(student, found, top))
    else:
        _print(student, found, top)
    sys.exit(1 if any(prediction.problem is not None for prediction in found) else 0)


def _document(student: FinishedStudent, found: list[Prediction], top: int) -> dict[str, Any]:
    def answer(prediction: Prediction) -> dict[str, Any]:
        best = [
            {"class": student.classes[label], "label": label, "probability": probability}
            for label, probability in prediction.best(top)
        ]
        return {"image": str(prediction.image), "best": best, "problem": prediction.problem}

    return {"run": str(student.folder), "student": student.record.student, "images": list(map(answer, found))}


def _print(student: FinishedStudent, found: list[Prediction], top: int) -> None:
    read = [prediction for prediction in found if prediction.problem is None]
    if not read:
        return
    columns = min(top, len(student.classes))
    rows = (
        (
            prediction.image,
            *(f"{student.classes[label]} {100 * share:.1f} %" for label, share in prediction.best(columns)),
        )
        for prediction in read
    )
    print_table(("image", "class", *(f"{place}." for place in range(2, columns + 1))), rows)
