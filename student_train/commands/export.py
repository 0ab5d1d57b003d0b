"""`ckd-train export`."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click

from ground.options import StoreFolder, allow_code_option, json_option
from ground.terminal import note, print_json, say
from ground.user_code import UserCode

# As `student_train.export.SUFFIXES`, which torch has to be loaded for.
_FORMATS = ("onnx", "export")


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--to", type=click.Choice(_FORMATS), required=True, help="onnx (extra onnx), or export: a torch.export program."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The file.  [default: in RUN]")
@click.option("--store", type=StoreFolder(), help="Where the run's store is now; for runs that need it.")
@allow_code_option
@json_option
def export(run: Path, to: str, out: Path | None, store: Path | None, allow_code: bool, as_json: bool) -> None:
    """Write the student of a finished RUN as a file that runs without this package.

    \b
    ckd-train export runs/resnet8-ckd-n1600-seed0 --to onnx

    Exit status: 0 written, 1 it does not say what the student says: nothing is written.
    """
    from student_train.export import TOLERANCE, export_student
    from student_train.finished_student import FinishedStudent

    done = export_student(FinishedStudent.open(run, store, UserCode.of(allowed=allow_code)), to, out)
    if as_json:
        # JSON has no word for what is no number.
        found = done.difference if done.difference is not None and math.isfinite(done.difference) else None
        document = {"file": str(done.file), "description": str(done.description), "digest": done.digest}
        numbers = {"bytes": done.num_bytes, "difference": found, "largest_logit": done.largest}
        print_json({"run": str(run), "to": to, **document, **numbers, "written": done.is_right})
    elif done.is_right:
        checked = (
            "not checked, as onnxruntime is not installed: pip install 'teacher-cache[onnx]'"
            if done.difference is None
            else f"its logits of noise are the student's but for {done.difference:.1e} of {done.largest:.3g}"
        )
        say(f"{done.file}: {done.num_bytes / 1e6:.1f} MB; {checked}\n{done.description}: how it is shown photographs")
    if not done.is_right:
        note(
            f"{done.file} was not written: its logits differ by {done.difference:.3g} from the student's, more than "
            f"{TOLERANCE:g} of the largest, {done.largest:.3g}; try the other --to"
        )
    sys.exit(0 if done.is_right else 1)
