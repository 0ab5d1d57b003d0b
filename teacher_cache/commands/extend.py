"""`ckd-cache extend`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ground.errors import InvalidInput
from ground.options import device_option, json_option
from ground.terminal import print_json, progress, say
from ground.user_code import UserCode
from storage.price import Price
from storage.store import Store
from teacher_cache.add_rest import ImageOptions, RestReport, add_rest
from teacher_cache.build_report import BuildReport
from teacher_cache.commands.build import report_text
from teacher_cache.commands.options import (
    FEATURE_DTYPE_HELP,
    FEATURES_HELP,
    accept_rollback_option,
    ledger_option,
    ledger_url_of,
    origin_options,
    price_call_option,
    rest_option,
    store_option,
)
from teacher_cache.config import CallConfig, ExtensionConfig
from teacher_cache.extend import extend as run_extension
from teacher_cache.extend import keeps, prepare_extension
from teacher_cache.fallback import prepared_wide_enough, run_wide_enough
from teacher_cache.prepare import Prepared
from teacher_cache.remote.policy import AskingConfig
from teacher_cache.rest import Rest

_OF_IMAGES = ("dataset", "data_root", "split", "split_seed")
_OF_CALLS = (
    "feature_dtype",
    "weights",
    "teacher",
    "prompts",
    "allow_code",
    "budget",
    "price_call",
    "batch_size",
    "device",
)


@click.command()
@store_option
@click.option("--features", help=f"What to add: {FEATURES_HELP}; also logits, to a store without.")
@rest_option
@click.option("--dataset", help="Where the images of --rest lie, if they are yours: imagefolder:PATH, csv:FILE, ...")
@click.option("--data-root", type=click.Path(path_type=Path, file_okay=False), help="Likewise, if they are not yours.")
@click.option("--split", help="As the store was built with, where it does not say so.")
@click.option("--split-seed", type=click.IntRange(0, 2**40), help="Likewise.")
@click.option("--feature-dtype", help=FEATURE_DTYPE_HELP)
@click.option("--weights", type=click.Path(path_type=Path, dir_okay=False), help="Of the store's own teacher.")
@click.option("--teacher", help="Of the store, where only you can say where it lies: ORIGIN:FILE, or code.")
@origin_options
@click.option("--budget", type=click.IntRange(min=1), help="Most calls ever to be spent on this teacher.")
@price_call_option
@ledger_option
@accept_rollback_option
@click.option("--batch-size", type=int, default=64, show_default=True, help="Calls made together.")
@device_option
@click.option("--yes", is_flag=True, help="Do not ask whether to make the calls.")
@click.option("--dry-run", is_flag=True, help="Say what it would cost; call and write nothing.")
@json_option
def extend(
    store: Path,
    url: str | None,
    rest: Rest | None,
    price_call: str | None,
    allow_code: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Add feature maps, or logits, to a whole store, by calling its teacher again on every view; or, with --rest,
    further images, without a call.

    What the store has stays as it is. Without --yes it asks before it calls, and away from a terminal it refuses.

    \b
    ckd-cache extend --store stores/wrn40_2 --features layer2 --yes
    ckd-cache extend --store stores/wrn40_2 --rest all
    """
    _require_one_kind(settings["features"], rest)
    where = ImageOptions(**{name: settings.pop(name) for name in _OF_IMAGES})
    if rest is not None:
        config = CallConfig(store=store, ledger=ledger_url_of(store, url), accept_rollback=settings["accept_rollback"])
        _show_rest(add_rest(config, rest, where, act=not dry_run), dry_run=dry_run, as_json=as_json)
        return
    found = Store.open(store)
    if keeps(found, settings["features"]):
        say(f"{store} keeps these features already", err=as_json)
        if as_json:
            print_json({"store": str(store), "adds": [], "needed_calls": 0})
        return
    code = UserCode.of(allowed=allow_code)
    asking = AskingConfig(price=None if price_call is None else Price.parse(call=price_call))
    config = ExtensionConfig(store=store, ledger=ledger_url_of(store, url), code=code, asking=asking, **settings)
    prepared = prepare_extension(config) if dry_run else prepared_wide_enough(config, prepare_extension)
    plan, names = prepared.plan, ", ".join(prepared.plan.called_names)
    cost = f"adding {names} to {store} costs {plan.needed_calls} teacher calls"
    if dry_run:
        estimate = {"store": str(store), "adds": list(plan.called_names), "needed_calls": plan.needed_calls}
        print_json(estimate) if as_json else say(f"{cost}; nothing was called or written")
        return
    if plan.needed_calls and not yes:
        if not sys.stdin.isatty():
            raise InvalidInput(f"{cost}; give the same command with --yes to make them")
        click.confirm(f"{cost}; make them?", abort=True, err=True)
    report = run_wide_enough(config, prepared, prepare_extension, _run)
    print_json({**asdict(report), "store": str(report.store)}) if as_json else say(report_text(report))


def _require_one_kind(features: str | None, rest: Rest | None) -> None:
    """Refuse to add images and outputs at once, and options of the one beside the other."""
    if (features is None) == (rest is None):
        raise click.UsageError("Give either '--features', which calls the teacher, or '--rest', which does not.")
    context, other = click.get_current_context(), _OF_IMAGES if rest is None else _OF_CALLS
    for option in context.command.params:
        if option.name in other and context.get_parameter_source(option.name) is not ParameterSource.DEFAULT:
            asked, without = ("--features", "--rest") if rest is None else ("--rest", "--features")
            raise InvalidInput(f"{option.opts[0]} is for {without}, and {asked} is asked for; leave it out")


def _show_rest(report: RestReport, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(report), "store": str(report.store)})
        return
    verb, end = ("would keep", "; nothing was written") if dry_run else ("keeps", "")
    say(
        f"{report.store} {verb} {report.rest} images beside the {report.n} rows that are asked about, {report.added} "
        f"of them new; no teacher call{end}"
    )


def _run(prepared: Prepared, report: BuildReport) -> None:
    plan = prepared.plan
    done = plan.total_calls - len(plan.missing_cells)
    with progress(f"{plan.identity.teacher.name}: teacher calls", plan.total_calls, done) as advance:
        run_extension(*prepared, advance, report)
