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
from storage.run_proof import Proof, ProvenBy, RunProofs
from storage.store import Store
from teacher_cache.commands.ledger.options import (
    cost_of,
    ledger_options,
    opened_ledger,
    paging_options,
    price_option,
)
from teacher_cache.commands.ledger.tables import print_calls
from teacher_cache.trace import Run, Students, Trace, runs_of_call, stores_of, trace_run

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
    traced = _traced(run, store, url, price, limit, offset)
    if len(traced) == 1:
        (found, document), show = traced[0], _print_trace
        vouched, proof = found.vouched, found.proof
    else:
        document, show = _of_several(run, traced), _print_several
        vouched, proof = document["vouched"], _proof_of(run, traced)
    print_json(document) if as_json else show(document)
    sys.exit(0 if vouched and not proof.problems else 1)


# What was found, and what `--json` prints of it.
_Traced = tuple[Trace, dict[str, Any]]


def _traced(
    run: Run, store: Place | None, url: str | None, price: float | None, limit: int, offset: int
) -> list[_Traced]:
    """Of each of a run's teachers; of none, one that drew on nothing."""
    if not run.record.teacher_calls:
        found = Trace(run=run, store=None, proof=RunProofs().of(run.folder, _folder_of(store or run.store)))
        return [(found, _described(found, 0.0, price, [], offset))]
    traced, stores = list[_Traced](), stores_of(run, store)
    for part, source in zip(run.parts, stores, strict=True):
        with closing(opened_ledger(source.place, url if len(stores) == 1 else _ledger_of(source, url))) as opened:
            found = trace_run(part, source, opened)
            ids = [call.id for call in found.calls]
            page = list(calls_by_id(opened, ids[offset : offset + limit]))
            traced.append((found, _described(found, seconds_of_calls(opened, ids), price, page, offset)))
    return traced


def _ledger_of(store: Store, url: str | None) -> str | None:
    """What --ledger says of one of several stores: nothing where it has a ledger of its own."""
    return url if store.is_published or store.manifest.ledger is not None else None


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


def _proof_of(run: Run, traced: list[_Traced]) -> Proof:
    """Of the results, which are bound to the store that gave the images."""
    proofs = [found.proof for found, _ in traced if found.run.record.store_id == run.record.store_id]
    return proofs[0] if proofs else Proof(missing="none of the stores that answered is the one of its images")


def _of_several(run: Run, traced: list[_Traced]) -> dict[str, Any]:
    """What `trace --json` prints of a run with several teachers: the sums, and each store as if it were alone."""
    proof, documents = _proof_of(run, traced), [document for _, document in traced]
    problems = [f"{document['store']}: {problem}" for document in documents for problem in document["problems"]]
    problems = [*run.sum_problems, *problems]
    of_run = {"run", "method", "student", "proven", "not_proven"}
    return {
        **{name: documents[0][name] for name in ("run", "method", "student")},
        "n": run.record.n,
        "combine": run.record.combine,
        "store_id": run.record.store_id,
        "teacher_calls": run.record.teacher_calls,
        "calls_total": sum(document["calls_total"] for document in documents),
        "vouched": not problems,
        "problems": problems,
        "proven": proof.by,
        "not_proven": proof.sentences,
        "stores": [{name: value for name, value in doc.items() if name not in of_run} for doc in documents],
    }


def _print_several(document: dict[str, Any]) -> None:
    stores = document["stores"]
    say(f"{plain(document['run'])} drew on {document['calls_total']} calls of {len(stores)} teachers")
    for found in stores:
        of_rows = f"{found['calls_total']} calls on its first {found['n']} rows"
        name, verb = plain(str(found["teacher"]["name"])), "does not vouch" if found["problems"] else "vouches"
        say(f"{name} {found['teacher']['fingerprint'][:12]}, {plain(found['store'])}: {of_rows}; its ledger {verb}")
    _print_problems(document["problems"])
    verb = "do not vouch" if document["problems"] else "vouch"
    say(f"the ledgers of all {len(stores)} stores were asked, and {verb} for all {document['n']} rows")
    _print_proof(document)
    for found in stores:
        print_calls(found["calls"], found["offset"], found["calls_total"])


def _print_problems(problems: list[str]) -> None:
    for problem in problems[:_PROBLEMS_SHOWN]:
        say(plain(problem))
    if len(problems) > _PROBLEMS_SHOWN:
        say(f"and {len(problems) - _PROBLEMS_SHOWN} problems more; see all with --json")


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
    _print_problems(problems)
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
