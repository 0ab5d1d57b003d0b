"""`ckd-train` itself: the training that its options ask for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ground.errors import InvalidInput
from ground.places import Place
from ground.ranks import Ranks, joined
from ground.terminal import print_json, progress, say
from ground.user_code import UserCode
from models import canonical_name
from models.compute import Compute
from models.names import identity_name
from storage.store import Store
from student_train.method_spec import MethodSpec
from student_train.methods import parse_losses, parse_method
from student_train.names import COMBINATIONS
from student_train.protocol import ProtocolConfig
from student_train.ranked_folder import RankedFolder
from student_train.rest.spec import parse_rest
from student_train.run_folder import RunFolder
from student_train.several_teachers import SeveralTeachers
from student_train.streamed_data import load_data
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer


def train(**settings: Any) -> None:
    """Check everything, train, print; as one of several ranks where torchrun started this process."""
    with joined() as ranks:
        if not ranks.is_first:
            # The first rank says it.
            logging.getLogger().setLevel(logging.ERROR)
        _train(ranks, **settings)


def _train(
    ranks: Ranks,
    *,
    stores: tuple[Place, ...],
    combine: str | None,
    student: str,
    student_size: int | None,
    init: Path | None,
    method: str | None,
    losses: tuple[str, ...],
    comparison: str | None,
    rests: tuple[str, ...],
    allow_code: bool,
    n: int | None,
    seed: int,
    lr: float,
    batch_size: int,
    patience: int,
    max_evals: int | None,
    steps_per_eval: int | None,
    test_every: int | None,
    schedule: str,
    student_view: str,
    average: float,
    stream: bool,
    stream_rows: int | None,
    device: str,
    precision: str,
    out: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    code = UserCode.of(allowed=allow_code)
    # Without any answer there is one method only.
    spec, written = _method("vanilla" if n == 0 and not (method or losses) else method, losses, comparison, code)
    if rests:
        spec, written = replace(spec, rest=parse_rest(rests)), "+".join([written, *rests])
    config = TrainConfig(
        student=canonical_name(student),
        student_size=student_size,
        code=code,
        init=init,
        seed=seed,
        lr=lr,
        batch_size=batch_size,
        student_view=student_view,
        average=average,
        stream=stream,
        stream_rows=stream_rows,
        test_every=test_every,
        protocol=ProtocolConfig(
            patience=patience, max_evals=max_evals, schedule=schedule, steps_per_eval=steps_per_eval
        ),
    )
    teachers = _several(stores, combine, n)
    store = stores[0] if teachers is None else teachers.pool.place
    rows = Store.open(store).manifest.n if n is None else n
    path = out if out is not None else _default_out(_name_of(stores, combine), config, written, rows)
    folder = RunFolder(path) if ranks.alone else RankedFolder(path, ranks)
    compute = Compute.choose(ranks.device(device), precision)
    load = partial(load_data, teachers=teachers)
    trainer = Trainer.open(config, store, rows, spec, compute, folder, resume=resume, load=load, ranks=ranks)
    if not ranks.is_first:
        trainer.run(resume=resume)
        return
    with progress(f"{config.student} by {written}: evaluations", None) as advance:
        result = trainer.run(resume=resume, on_eval=lambda row: advance(1, _note(row)))
    if as_json:
        print_json(result)
        return
    labelled = "" if result["n"] else f"{result['labelled_rows']} labels and "
    say(
        f"{folder.path}: {result['student']} by {written} on {labelled}{result['n']} rows "
        f"({result['teacher_calls']} teacher calls), test accuracy {result['test_accuracy']:.4f} "
        f"at best validation accuracy {result['best_val_accuracy']:.4f}"
    )


def _method(
    method: str | None, losses: tuple[str, ...], comparison: str | None, code: UserCode
) -> tuple[MethodSpec, str]:
    """The method that is asked for, and how it was written."""
    if method is not None and losses:
        raise InvalidInput("--method and --loss exclude each other: a method is a list of losses; give one of them")
    if losses:
        return parse_losses(losses, comparison, code), "+".join(losses)
    if comparison is not None:
        raise InvalidInput("--comparison goes with --loss; a method has its own, as --method ckd:pairs=all")
    name = "ckd" if method is None else method
    return parse_method(name), name


def _note(row: Mapping[str, Any]) -> str:
    return f"loss {row['train_loss']:.3f}, validation {row['val_accuracy']:.3f}, lr {row['lr']:g}"


def _several(stores: tuple[Place, ...], combine: str | None, n: int | None) -> SeveralTeachers | None:
    """The teachers to combine; None where there is one store."""
    if len(stores) == 1:
        if combine is not None:
            raise InvalidInput(f"--combine {combine} is for several stores, and one was given; add another --store")
        return None
    if combine is None:
        raise InvalidInput(
            f"{len(stores)} stores were given, and nothing says how their answers become one; add --combine, one of "
            f"{', '.join(COMBINATIONS)}"
        )
    return SeveralTeachers.open(stores, combine, n)


def _name_of(stores: tuple[Place, ...], combine: str | None) -> str:
    """A folder's name that says what was learned from."""
    names = "+".join(store.resolve().name for store in stores)
    return names if combine is None else f"{names[:200]}-{combine}"


def _default_out(source: str, config: TrainConfig, written: str, n: int) -> Path:
    method = "".join(letter if letter.isalnum() else "-" for letter in written)[:100]
    return Path("runs") / source / f"{identity_name(config.student)}-{method}-n{n}-seed{config.seed}"
