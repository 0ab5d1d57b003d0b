"""`ckd-train verify`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click
from msgspec import UnsetType

from ground.errors import InvalidInput
from ground.options import StoreFolder, json_option
from ground.terminal import plain, print_json, say
from storage.run_proof import ProvenBy, RunProofs
from storage.run_record import RUN_FILE, RunRecord, RunTeacher

_WORDS = {
    ProvenBy.LEDGER: "an entry in its store's ledger",
    ProvenBy.KEY: "proof.json, which is sealed with the key",
    ProvenBy.DIGEST: "proof.json, which is not sealed: whoever changes a result can make it anew",
}


@click.command("verify")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--store", type=StoreFolder(), help="Where the run's store is now, if it was moved.")
@json_option
def verify(run: Path, store: Path | None, as_json: bool) -> None:
    """Check that a finished RUN's results, metrics and weights are what they were when it ended.

    \b
    ckd-train verify runs/resnet8-ckd-n1600-seed0

    Exit status: 0 proven, 1 not: each reason is a line.
    """
    if not (run / RUN_FILE).is_file():
        raise InvalidInput(f"{run} holds no finished run (no {RUN_FILE}); give the folder of one")
    record = RunRecord.load(run, "bring it back from a copy, or train again")
    proof, others = RunProofs().of(run, store or _store_of(record)), _others_of(record)
    if as_json:
        document = {"run": str(run), "proven": proof.is_proven, "by": proof.by, "problems": proof.sentences}
        print_json(document | ({"not_asked": [teacher.store for teacher in others]} if others else {}))
    elif proof.is_proven:
        say(plain(f"{run} is proven by {_WORDS[proof.by]}"))
    else:
        say("\n".join(plain(sentence) for sentence in proof.sentences))
        say(plain(f"{run} is not proven"))
    if others and not as_json:
        say(plain(_not_asked(run, others)))
    sys.exit(0 if proof.is_proven else 1)


def _others_of(record: RunRecord) -> list[RunTeacher]:
    """Of several teachers those whose stores the results are not bound to."""
    teachers = () if isinstance(record.teachers, UnsetType) else record.teachers
    return [teacher for teacher in teachers if teacher.store_id != record.store_id]


def _not_asked(run: Path, others: list[RunTeacher]) -> str:
    calls, places = sum(teacher.teacher_calls for teacher in others), ", ".join(teacher.store for teacher in others)
    return (
        f"its results are bound to the store of its images alone; {calls} of its calls are in {places}, which was not "
        f"asked: ckd-cache ledger trace {shlex.quote(str(run))} asks the ledger of every store"
    )


def _store_of(record: RunRecord) -> Path | None:
    """Where the run says that its store was, if that is a place."""
    named = record.store or ""
    return Path(named) if named.startswith("/") and "\0" not in named else None
