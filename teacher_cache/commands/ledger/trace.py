"""`ckd-cache ledger trace`."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from ground.errors import InvalidInput
from ground.options import json_option
from ground.places import ObjectUrl, Place
from ground.terminal import note, plain, print_json, print_table, say
from storage.ledger import Ledger
from storage.ledger_report import CallHistory, call_histories, calls_by_id, seconds_of_calls
from storage.run_proof import ProvenBy, RunProofs
from teacher_cache.commands.ledger.options import (
    cost_of,
    ledger_options,
    opened_ledger,
    paging_options,
    price_option,
)
from teacher_cache.commands.ledger.tables import print_calls
from teacher_cache.trace import Run, Students, Trace, runs_of_call, store_of, trace_run

_PROBLEMS_SHOWN = 20
_PROVEN = {
    ProvenBy.LEDGER: "the ledger says so",
    ProvenBy.KEY: "proof.json says so, which is sealed with the key",
    ProvenBy.DIGEST: "proof.json says so, which is not sealed",
}


@click.command()
@click.argument("folders", metavar="RUN | DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--call", "call_id", type=click.IntRange(1, 1 << 40), help="Find the runs below DIR that drew on it.")
@ledger_options
@price_option
@paging_options
@json_option
def trace(
    folders: tuple[Path, ...],
    call_id: int | None,
    store: Place | None,
    url: str | None,
    price: float | None,
    limit: int,
    offset: int,
    as_json: bool,
) -> None:
    """List the calls that a student drew on, or with --call the students that drew on a call; nothing is changed.

    --store says where the run's store is now, if it was moved. The chain itself is checked by ckd-cache ledger verify.

    \b
    ckd-cache ledger trace runs/resnet8-ckd-n1600-seed0
    ckd-cache ledger trace --call 17 --store stores/wrn40_2 runs

    Exit status: 0 done, 1 the ledger does not vouch for every row, or the run's results are not what was recorded when
    it ended, or with --call: of a run it is unclear.
    """
    if call_id is not None:
        _print_students(call_id, folders, store, url, as_json)
        return
    if len(folders) > 1:
        raise InvalidInput(f"one run is traced at a time, and {len(folders)} were given; --call takes several folders")
    run = Run.load(folders[0])
    if not run.record.teacher_calls:
        found = Trace(run=run, store=None, proof=RunProofs().of(run.folder, _folder_of(store or run.store)))
        document = _described(found, 0.0, price, [], offset)
    else:
        source = store_of(run, store)
        with closing(opened_ledger(source.place, url)) as opened:
            found = trace_run(run, source, opened)
            ids = [call.id for call in found.calls]
            page = list(calls_by_id(opened, ids[offset : offset + limit]))
            document = _described(found, seconds_of_calls(opened, ids), price, page, offset)
    print_json(document) if as_json else _print_trace(document)
    sys.exit(0 if found.vouched and not found.proof.problems else 1)


def _folder_of(place: Place) -> Path | None:
    """Where a ledger may lie that proves a run's results."""
    return None if isinstance(place, ObjectUrl) else place


def _described(
    found: Trace, seconds: float, price: float | None, page: list[dict[str, Any]], offset: int
) -> dict[str, Any]:
    """What `trace --json` prints."""
    run, record, calls = found.run, found.run.record, len(found.calls)
    name = None if found.store is None else found.store.manifest.identity.teacher.name
    return {
        "run": str(run.folder),
        "method": record.method,
        "student": record.student,
        "n": record.n,
        "store": str(run.store if found.store is None else found.store.place),
        "store_id": record.store_id,
        "ledger_head": record.ledger_head,
        "teacher": {"name": name, "fingerprint": record.teacher_fingerprint},
        "teacher_calls": record.teacher_calls,
        "calls_total": calls,
        "builder_runs": found.builder_runs,
        "teacher_seconds": round(seconds, 3),
        **({} if price is None else {"price_per_call": price, "cost": cost_of(calls, price)}),
        "vouched": found.vouched,
        "problems": found.problems,
        "proven": found.proof.by,
        "not_proven": found.proof.sentences,
        "offset": offset,
        "calls": page,
    }


def _print_trace(document: dict[str, Any]) -> None:
    total, problems, run = document["calls_total"], document["problems"], plain(document["run"])
    if not document["teacher_calls"]:
        say(f"{run} was trained by {plain(document['method'])}, without a teacher: it drew on no calls")
        _print_proof(document)
        return
    teacher = document["teacher"]
    cost = f", cost {document['cost']:g}" if "cost" in document else ""
    say(
        f"{run} drew on {total} calls of {plain(str(teacher['name']))} {teacher['fingerprint'][:12]}, made by "
        f"{len(document['builder_runs'])} builder run(s) in {document['teacher_seconds']:.1f} s{cost}"
    )
    for problem in problems[:_PROBLEMS_SHOWN]:
        say(plain(problem))
    if len(problems) > _PROBLEMS_SHOWN:
        say(f"and {len(problems) - _PROBLEMS_SHOWN} problems more; see all with --json")
    say(f"the ledger {'does not vouch' if problems else 'vouches'} for all {document['n']} rows")
    _print_proof(document)
    print_calls(document["calls"], document["offset"], total)


def _print_proof(document: dict[str, Any]) -> None:
    for sentence in document["not_proven"]:
        say(plain(sentence))
    if document["not_proven"]:
        say("its results are not proven")
    else:
        say(f"its results are what they were when it ended: {_PROVEN[document['proven']]}")


def _print_students(
    call_id: int, folders: tuple[Path, ...], store: Place | None, url: str | None, as_json: bool
) -> None:
    with closing(opened_ledger(store, url)) as opened:
        call = _call(opened, call_id)
        found = runs_of_call(call, opened, folders, store)
        about = next(calls_by_id(opened, [call_id]))
    if as_json:
        print_json(
            {
                "call": about,
                "runs": [_run_row(run) for run in found.runs],
                "unclear": [{"run": str(folder), "problem": why} for folder, why in found.unclear.items()],
            }
        )
    else:
        _print_runs(call, found)
    sys.exit(1 if found.unclear else 0)


def _call(ledger: Ledger, call_id: int) -> CallHistory:
    found = call_histories(ledger, [call_id]).get(call_id)
    if found is None:
        raise InvalidInput(f"the ledger has no call {call_id}; see those it has with: ckd-cache ledger list")
    return found


def _print_runs(call: CallHistory, found: Students) -> None:
    say(f"call {call.id} ({call.status}): {len(found.runs)} run(s) drew on it")
    if found.runs:
        rows = [_run_row(run) for run in found.runs]
        print_table(rows[0], (row.values() for row in rows))
    for folder, why in found.unclear.items():
        note(plain(f"{folder} is left out: {why}"))


def _run_row(run: Run) -> dict[str, Any]:
    return {
        "run": str(run.folder),
        "student": run.record.student,
        "method": run.record.method,
        "n": run.record.n,
        "store": str(run.store),
    }
