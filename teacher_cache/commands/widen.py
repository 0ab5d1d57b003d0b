"""`ckd-cache widen`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ground.options import json_option
from ground.terminal import print_json, progress, say
from storage.store import Store
from teacher_cache.commands.options import ledger_option, ledger_url_of, store_option
from teacher_cache.widen import WideningReport
from teacher_cache.widen import widen as run_widening


@click.command()
@store_option
@ledger_option
@json_option
def widen(store: Path, url: str | None, as_json: bool) -> None:
    """Keep features in float32 from now on, where an answer does not fit their type; no call is made.

    Answers that were paid for and did not fit are committed. What was rounded stays rounded. Of a store whose
    extension is unfinished, the features that it adds are widened.

    \b
    ckd-cache widen --store stores/wrn40_2
    """
    with progress(f"{store}: cells", int(Store.open(store).valid().sum())) as advance:
        report = run_widening(store, ledger_url=ledger_url_of(store, url), on_progress=advance)
    if as_json:
        print_json({**asdict(report), "store": str(store)})
    else:
        say(_text(report))


def _text(report: WideningReport) -> str:
    committed = f"answers that were paid for and are committed now: {report.committed}" if report.committed else ""
    if not report.outputs:
        done = f"{report.store} keeps all in float32"
        return f"{done}; {committed}" if committed else f"{done}; nothing to do"
    names = ", ".join(report.outputs)
    lines = [f"{report.store} keeps {names} in float32 from now on; {report.cells} answers were copied", committed]
    return "\n".join(filter(None, [*lines, "go on with the same command as before, without another --feature-dtype"]))
