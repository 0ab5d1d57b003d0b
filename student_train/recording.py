"""What run.json says of a training: the settings that make it the run it is, and what the student learned from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from msgspec import UNSET, UnsetType

from models import canonical_name
from storage.run_record import RunProtocol, RunSettings, RunStream
from student_train.block_stream import BlockStream
from student_train.data import StudentData
from student_train.initial_student import own_preprocessing
from student_train.method_spec import MethodSpec
from student_train.rest.proxy import ProxyRun
from student_train.rest.terms import RestTerm, count_rows
from student_train.schedule import AtPlateaus
from student_train.train_config import TrainConfig


def settings_of(config: TrainConfig, data: StudentData, method: MethodSpec, init_digest: str | None) -> RunSettings:
    """Settings and sources; a run goes on only if all of them are the same.

    Args:
        init_digest: of the weights that the student began with; None for new ones.
    """
    identity, protocol = data.manifest.identity, config.protocol
    return RunSettings(
        student=canonical_name(config.student),
        student_size=UNSET if config.student_size is None else config.student_size,
        student_preprocessing=UNSET if own_preprocessing(config) is None else "own",
        init=UNSET if init_digest is None else init_digest,
        streamed=_described(data.stream),
        rest_rows=UNSET if data.rest is None else len(data.rest.labels),
        val_rows=UNSET if data.rest is None else len(data.val.labels),
        rest_order=UNSET if data.rest is None else data.rest_order or UNSET,
        method=method.name,
        seed=config.seed,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        batch_size=config.batch_size,
        student_view=config.student_view,
        average=config.average or UNSET,
        protocol=RunProtocol(
            patience=protocol.patience,
            plateaus=protocol.plateaus,
            max_evals=protocol.max_evals,
            # What runs of earlier releases do not say, those of the same settings do not either.
            schedule=UNSET if protocol.schedule == AtPlateaus.name else protocol.schedule,
            steps_per_eval=protocol.steps_per_eval or UNSET,
        ),
        recipe=method.describe(data.num_asked),
        n=data.num_asked,
        precision=data.compute.precision,
        store_id=data.manifest.store_id,
        teacher=data.teacher_name,
        teacher_fingerprint=identity.teacher.fingerprint,
        dataset=identity.dataset.name,
        **({} if data.teachers is None else data.teachers.settings()),
    )


def learned_from(
    data: StudentData,
    method: MethodSpec,
    rest: Sequence[RestTerm],
    outputs: Iterable[str],
    unproven: Iterable[ProxyRun],
) -> dict[str, Any]:
    """What a student learned from, by itself or through its proxies, as fields of its `RunRecord`.

    Args:
        rest: what it learned from images that the teacher was not asked about.
        outputs: names of what it learned of the teacher's answers itself.
        unproven: proxies that nothing vouches for.
    """
    proxies = [run.record for spec in method.rest for run in spec.proxies]
    # Calls were paid for this student where its method, or a proxy's, asks a teacher.
    draws = method.asks_teacher or any(spec.drew_on_calls for spec in method.rest)
    behind = (record.unproven_proxies for record in proxies)
    known = (digests for digests in behind if not isinstance(digests, UnsetType))
    doubted = tuple(dict.fromkeys(chain((run.digest for run in unproven), *known)))
    return {
        "teacher_calls": data.num_calls if draws else 0,
        "teachers": UNSET if data.teachers is None else data.teachers.recorded(),
        "teacher_outputs": tuple(dict.fromkeys(chain(outputs, *(record.teacher_outputs or () for record in proxies)))),
        "empty_answers": data.empty_answers or UNSET,
        **_rows_used(data, method, rest),
        "unproven_proxies": doubted or UNSET,
    }


def _rows_used(data: StudentData, method: MethodSpec, terms: Sequence[RestTerm]) -> dict[str, Any]:
    """Rows by what was known of each, and what the rest taught."""
    rest, labelled = count_rows(terms)
    answered = data.n if method.asks_teacher else 0
    # Rows that all losses go through are counted once.
    seen = max(rest, data.n) if data.unasked else rest + data.n
    labelled = max(labelled, data.n) if data.unasked else labelled + data.n - answered
    return {
        "answered_rows": answered,
        "labelled_rows": labelled,
        "unlabelled_rows": seen - answered - labelled,
        "rest": tuple(spec.text for spec in method.rest) or UNSET,
        "rest_weights": {term.loss.name: term.weight for term in terms} or UNSET,
    }


def _described(stream: BlockStream | None) -> RunStream | UnsetType:
    if stream is None:
        return UNSET
    return RunStream(block_rows=stream.block_rows, window_rows=stream.block_rows * stream.order.window)
