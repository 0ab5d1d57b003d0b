"""A finished run's record, `run.json`, and a failed one's, `failure.json`: what they hold, and the files beside them.

Whoever trains writes them here, and whoever traces, tabulates or goes on reads them here; both stages do, so it is
storage's. `run.json` is written last: a folder that has one is a finished run. Formats: docs/run-folder.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ground.documents import Amount, Count, Hex64, Line, Positive, Share, read_object, read_record, typed
from ground.durable import write_json
from ground.geometry import Fit, Rendering

RUN_FILE = "run.json"
FAILURE_FILE = "failure.json"
METRICS_FILE = "metrics.csv"
STUDENT_FILE = "student.safetensors"
RESUME_FILE = "resume.pt"
_MOST_SHOWN = 4096


class RunProtocol(Struct, frozen=True, kw_only=True):
    """When a run ended: `student_train.protocol.ProtocolConfig` as it is written down.

    Args:
        schedule: how the learning rate fell, where that was not at plateaus.
        steps_per_eval: steps between evaluations, where those were not as many as go once through the rows.
    """

    patience: Positive
    plateaus: Positive
    max_evals: Count | None
    schedule: Line | UnsetType = UNSET
    steps_per_eval: Positive | UnsetType = UNSET


class RunStream(Struct, frozen=True, kw_only=True):
    """How a run drew its batches from a stream, which decides their order.

    Args:
        block_rows: rows of the store that are read at once.
        window_rows: rows that batches are drawn from at a time.
    """

    block_rows: Positive
    window_rows: Positive


class RunTeacher(Struct, frozen=True, kw_only=True):
    """One of several teachers that a run learned from.

    Args:
        store: absolute folder of its store when the run was made, or its URL.
        store_id, teacher, teacher_fingerprint: as in the store's manifest.
        ledger_head: as `RunRecord` has it, of this store.
        rows: the first so many rows of the run were answered by it.
        teacher_calls: that were paid for that.
    """

    store: str
    store_id: Line
    teacher: Line
    teacher_fingerprint: Line
    ledger_head: Line | None
    rows: Count
    teacher_calls: Count


class RunSettings(Struct, frozen=True, kw_only=True):
    """Settings and sources of a run; it goes on only if all of them are the same.

    Args:
        method: the spec, as it was given.
        recipe: what the method was made of.
        n: rows of the store whose answers it learns from; those whose answer has no content are counted too. 0 where it
            learns from the labels of all rows, and from no answer.
        student_size: of the student's input, where it is not that of the teacher's views.
        student_preprocessing: "own" where the student was shown pixels as its own library does, and not as the teacher.
        init: digest of the weights that it began with, where those were given.
        streamed: how its batches were drawn, where not all rows were in memory.
        rest_rows, val_rows: rows beyond the n, and validation images, where it learns from a rest, which may grow.
        rest_order: digest of the order of the store's rows, where it learns from a rest and a rule chose some of them.
        average: decay of the average of its weights over steps, where that was measured and kept.
        teacher_fingerprint, dataset, store_id: as in the store's manifest; with several stores, that of the images.
        combine: how the answers of several stores became one; it and the next two are not there where it was one.
        stores: their ids, in the order that they were named.
        store_rows: the first so many rows are answered by each.
    """

    student: Line
    method: Line
    seed: Count
    lr: Amount
    momentum: Amount
    weight_decay: Amount
    batch_size: Positive
    student_view: Line
    protocol: RunProtocol
    recipe: dict[str, Any]
    n: Count
    precision: Line
    store_id: Line
    teacher: Line
    teacher_fingerprint: Line
    dataset: Line
    student_size: Positive | UnsetType = UNSET
    student_preprocessing: Line | UnsetType = UNSET
    init: Hex64 | UnsetType = UNSET
    streamed: RunStream | UnsetType = UNSET
    rest_rows: Count | UnsetType = UNSET
    val_rows: Count | UnsetType = UNSET
    rest_order: Hex64 | UnsetType = UNSET
    average: Share | UnsetType = UNSET
    combine: Line | UnsetType = UNSET
    stores: tuple[Line, ...] | UnsetType = UNSET
    store_rows: tuple[Count, ...] | UnsetType = UNSET

    def document(self) -> dict[str, Any]:
        """As JSON reads it back."""
        document: dict[str, Any] = json.loads(json.dumps(msgspec.to_builtins(self)))
        return document


class RunRecord(RunSettings, frozen=True, kw_only=True):
    """What a finished run says of itself: its settings, and what came out.

    Args:
        student_rendering: how the student was shown images; runs of earlier releases say nothing, and mean the
            teacher's.
        fit: how the images that it was shown had been made of photographs; runs of earlier releases do not say.
        sample_seed: of the images in the store; runs of earlier releases do not say.
        store: absolute folder of the store when the run was made; it may hold any character that a path can.
        ledger_head: hash of the ledger's newest entry, but for those of runs, when the store was read; None where
            there was no ledger.
        teacher_calls: calls whose answers it learned from; 0 for a method without a teacher, the sum over several.
        teachers: of several stores, in the order of `stores`: whose answers it learned from. What is said of store,
            store_id, teacher_fingerprint and ledger_head is then of the one that gave the images.
        teacher_outputs: which outputs of them it read; None in runs that did not say so yet.
        empty_answers: rows among them that were left out, as the teacher refused to answer; not there where none were.
        answered_rows, labelled_rows, unlabelled_rows: a partition of the training rows: what was learned from each is
            an answer of the teacher, or else its label, or neither; runs of earlier releases do not say.
        init_calls: calls behind the weights that it began with, as their file says; not there where it says none.
        rest: what rows beyond the n taught, as `--rest` has it; not there where they were left aside.
        unproven_proxies: digests of the weights of those proxies, in its recipe or behind others, that nothing vouched
            for; not there where there were none.
        rest_weights: of each loss of the rest, once it had risen; not there where there was none, or in runs of
            earlier releases.
        test_accuracy: at the best validation accuracy, as all accuracies in [0, 1].
        seconds: of training, over all the times that it was resumed.
        threads: numbers of CPU threads that it was trained with, in order: several where it was resumed with another;
            runs of earlier releases do not say.
        ranks: numbers of processes that trained it together, in order likewise; not there where it was one at all
            times.
    """

    student_rendering: Rendering | UnsetType = UNSET
    fit: Fit | UnsetType = UNSET
    sample_seed: Count | UnsetType = UNSET
    store: str | None = None
    ledger_head: Line | None = None
    teacher_calls: Count
    teachers: tuple[RunTeacher, ...] | UnsetType = UNSET
    teacher_outputs: tuple[str, ...] | None = None
    empty_answers: Count | UnsetType = UNSET
    answered_rows: Count | UnsetType = UNSET
    labelled_rows: Count | UnsetType = UNSET
    unlabelled_rows: Count | UnsetType = UNSET
    rest: tuple[str, ...] | UnsetType = UNSET
    unproven_proxies: tuple[Hex64, ...] | UnsetType = UNSET
    rest_weights: dict[str, Amount] | UnsetType = UNSET
    init_calls: Count | UnsetType = UNSET
    test_accuracy: Share
    best_val_accuracy: Share
    last_test_accuracy: Share
    evaluations: Count
    steps: Count
    seconds: Amount
    device: Line
    threads: tuple[Positive, ...] | UnsetType = UNSET
    ranks: tuple[Positive, ...] | UnsetType = UNSET
    versions: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record in a run's folder; raises `Malformed` where there is none, or it is damaged."""
        return typed(read_object(folder / RUN_FILE), cls)

    @classmethod
    def load(cls, folder: Path, advice: str) -> Self:
        """The record in a run's folder.

        Args:
            advice: what to do where it cannot be read; ends the sentence.

        Raises:
            InvalidInput: there is none, or it is damaged.
        """
        return read_record(folder / RUN_FILE, cls, advice)

    def save(self, folder: Path) -> None:
        """Write it, atomically and durably: from then on the run is finished."""
        write_json(folder / RUN_FILE, self.document())


class Failure(Struct, frozen=True, kw_only=True):
    """Why a run failed.

    Args:
        error: a sentence.
        kind: name of the error's class.
        at: ISO 8601, with its zone.
    """

    error: str
    kind: str
    at: str = ""

    @classmethod
    def load(cls, folder: Path, advice: str) -> Failure:
        """What a failed run left in its folder; raises `InvalidInput`, which ends with `advice`."""
        return read_record(folder / FAILURE_FILE, cls, advice)

    def save(self, folder: Path) -> None:
        """Write it, atomically and durably, beside what the run has kept."""
        write_json(folder / FAILURE_FILE, msgspec.to_builtins(self))

    @property
    def sentence(self) -> str:
        """The error as a terminal can show it."""
        return "".join(letter if letter.isprintable() else " " for letter in self.error)[:_MOST_SHOWN]


def is_finished(folder: Path) -> bool:
    """Whether a run has ended well."""
    return (folder / RUN_FILE).exists()


def has_failed(folder: Path) -> bool:
    """Whether a run has ended badly, and has not been begun again since."""
    return (folder / FAILURE_FILE).exists()
