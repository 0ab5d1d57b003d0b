"""`ckd-train verify`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ground.errors import InvalidInput
from ground.options import StoreFolder, json_option
from ground.terminal import plain, print_json, say
from storage.run_proof import ProvenBy, RunProofs
from storage.run_record import RUN_FILE, RunRecord

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
    proof = RunProofs().of(run, store or _store_of(record))
    if as_json:
        print_json({"run": str(run), "proven": proof.is_proven, "by": proof.by, "problems": proof.sentences})
    elif proof.is_proven:
        say(plain(f"{run} is proven by {_WORDS[proof.by]}"))
    else:
        say("\n".join(plain(sentence) for sentence in proof.sentences))
        say(plain(f"{run} is not proven"))
    sys.exit(0 if proof.is_proven else 1)


def _store_of(record: RunRecord) -> Path | None:
    """Where the run says that its store was, if that is a place."""
    named = record.store or ""
    return Path(named) if named.startswith("/") and "\0" not in named else None
