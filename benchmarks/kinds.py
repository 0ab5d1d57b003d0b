"""What a student learns from each kind of answers of one teacher, and what each takes: accuracy by bytes a row.

    python -m benchmarks.kinds --store STORE --out FOLDER [--seeds 3] [--max-evals 60] [--student wrn_16_2]

The store has to keep full logits; of its first rows stores in the other forms are made, without a call, and students
train from each. Everything stays in the folder: the same command goes on where it was stopped, and prints the table at
once when all is there. `kd` has temperature 4, which a sample of ids cannot serve; so it is there at 1 too.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.stand_ins.kept_as import keep_as
from ground.errors import CKDError, InvalidInput
from models import canonical_name
from models.compute import Compute
from storage.answers import AnswerForm
from storage.store import Store
from student_train.losses.kinds import why_not
from student_train.methods import parse_method
from student_train.protocol import ProtocolConfig
from student_train.run_folder import RunFolder
from student_train.shared_data import SharedData
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer

FORMS = "logits,log_probs,top:16,top:4,sampled:12,label"
METHODS = ("kd", "kd:temperature=1", "dist", "ckd", "ckd_paper")
FREE = "vanilla"


@click.command()
@click.option("--store", type=click.Path(path_type=Path, exists=True), required=True, help="One with full logits.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for stores and runs.")
@click.option("--n", type=int, help="Rows.  [default: all]")
@click.option("--student", default="wrn_16_2", show_default=True)
@click.option("--student-size", type=int)
@click.option("--forms", default=FORMS, show_default=True, help="As --keep takes them, with commas between.")
@click.option("--method", "methods", multiple=True, default=METHODS, show_default=True)
@click.option("--seeds", default=3, show_default=True, help="Trainings of each kind.")
@click.option("--max-evals", default=60, show_default=True)
@click.option("--lr", default=0.05, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True)
def main(
    store: Path,
    out: Path,
    n: int | None,
    forms: str,
    methods: Sequence[str],
    seeds: int,
    max_evals: int,
    device: str,
    precision: str,
    **chosen: object,
) -> None:
    protocol = ProtocolConfig(max_evals=max_evals)
    chosen["student"] = canonical_name(str(chosen["student"]))
    configs = [TrainConfig(seed=seed, protocol=protocol, **chosen) for seed in range(seeds)]  # type: ignore[arg-type]
    compute, shared = Compute.choose(device, precision), SharedData()
    kept = {form: kept_as(store, out, form, n) for form in map(AnswerForm.read, forms.split(","))}
    first = Store.open(next(iter(kept.values()))).manifest
    classes, views = len(first.identity.dataset.classes), first.identity.views
    click.echo(
        f"{first.identity.dataset.name}, {classes} classes, n={first.n}, {chosen['student']} from "
        f"{first.identity.teacher.name}, {seeds} seeds, at most {max_evals} evaluations, {compute.describe()}"
    )
    free = [accuracy(config, next(iter(kept.values())), FREE, out, compute, shared) for config in configs]
    click.echo(f"{FREE}, without a teacher: {shown(free)}")
    click.echo(f"{'answers':<18}{'bytes a row':>12}  " + "".join(f"{method:>18}" for method in methods))
    for form, folder in kept.items():
        cells = []
        for method in methods:
            fits = learns(method, form)
            runs = [accuracy(config, folder, method, out, compute, shared) for config in configs] if fits else []
            cells.append(shown(runs))
        size = form.size_bytes(classes) * views
        click.echo(f"{form.text:<18}{size:>12}  " + "".join(f"{cell:>18}" for cell in cells))
    click.echo("mean test accuracy in % at the best validation accuracy, and its standard deviation over the seeds")
    click.echo("-: the losses of the method cannot learn from such answers (ckd-train losses)")


def kept_as(store: Path, out: Path, form: AnswerForm, n: int | None) -> Path:
    """A store in a form, made where it is not there yet."""
    folder = out / "stores" / form.text.replace(":", "-")
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        # What an earlier call was killed in.
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        keep_as(store, partial, form, n)
        partial.rename(folder)
    rows = Store.open(folder).manifest.n
    if rows != (Store.open(store).manifest.n if n is None else n):
        raise InvalidInput(f"{folder} has {rows} rows of an earlier call; give the same --n, or another --out")
    return folder


def learns(method: str, form: AnswerForm) -> bool:
    """Whether all losses of a method that read answers can use these."""
    terms = [loss for loss in parse_method(method).losses if loss.needs.answers]
    return not any(why_not(loss.make(), form, compared=loss.compared, standardised=loss.standardised) for loss in terms)


def accuracy(config: TrainConfig, store: Path, method: str, out: Path, compute: Compute, shared: SharedData) -> float:
    """Of a run, which is trained, gone on with, or only read: in [0, 1]."""
    name = f"{store.name}-{method.replace(':', '-').replace('=', '-')}-{config.student}-seed{config.seed}"
    folder = RunFolder(out / "runs" / name.replace(":", "-"))
    trainer = Trainer.open(config, store, None, parse_method(method), compute, folder, resume=True, load=shared.load)
    found: float = trainer.run(resume=True)["test_accuracy"]
    return found


def shown(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return "-"
    spread = f" ± {100 * statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    return f"{100 * statistics.mean(accuracies):.1f}{spread}"


if __name__ == "__main__":
    try:
        main()
    except CKDError as error:
        raise SystemExit(str(error)) from error
