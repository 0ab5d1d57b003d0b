"""`ckd-cache build`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ground.errors import IdentityMismatch, InvalidInput, suggested
from ground.geometry import VIEW_POLICIES
from ground.launched import Launched
from ground.options import StorePlace, json_option
from ground.places import ObjectUrl, Place
from ground.terminal import print_json, progress, say
from ground.user_code import UserCode
from models.compute import num_gpus
from models.names import CALL_PRECISIONS, identity_name, is_placed
from models.remote_names import is_remote
from storage.answers import AnswerForm
from storage.manifest import Manifest, Round, is_store
from storage.price import shown_micros
from storage.store import Store
from teacher_cache.build import build as run_build
from teacher_cache.build_report import BuildReport
from teacher_cache.buying import buy, rounds_to_buy
from teacher_cache.commands.options import (
    CLASS_MAP_HELP,
    FEATURE_DTYPE_HELP,
    FEATURES_HELP,
    KEEP_HELP,
    REMOTE_ONLY,
    accept_rollback_option,
    asking_of,
    asking_options,
    compute_options,
    dataset_options,
    engine_options,
    ledger_option,
    ledger_to_build,
    origin_options,
    remote_options,
    rendering_options,
    rest_option,
)
from teacher_cache.config import BuildConfig, settings_of
from teacher_cache.datasets.registry import may_be, takes_path
from teacher_cache.engines.progress import StoreProgress
from teacher_cache.engines.ray_build import RayEngine, build_with_ray
from teacher_cache.plan import BuildPlan
from teacher_cache.prepare import Prepared, prepare_build
from teacher_cache.rendering import RenderingOverrides
from teacher_cache.selection import SelectorSpec
from teacher_cache.selection.random_order import Random
from teacher_cache.selection.spend import IMAGES, spending_rule
from teacher_cache.teachers.attempts import RemoteTeacher
from teacher_cache.teachers.elsewhere import RemoteOptions


@click.command()
@click.option("--teacher", help="Network, as wrn40_2 or ORIGIN:NAME; needed for a new store.")
@click.option("--n", type=int, required=True, help="Training images to call the teacher on.")
@rest_option
@click.option(
    "--select",
    callback=lambda _, __, text: None if text is None else SelectorSpec.read(text),
    help="Rule that chooses what is bought beyond the rows of the store: random, balanced, ..., with settings.  "
    "[default: random]",
)
@click.option(
    "--spend",
    default=IMAGES,
    show_default=True,
    help="What calls are spent on: images, views (further ones of what was bought), mixup or cutmix (mixes of two of "
    "those), or shares of them, as images=0.5,mixup=0.5.",
)
@click.option(
    "--round",
    "round_size",
    type=click.IntRange(min=1),
    help="Rows that are chosen together; the next ones when those are answered.  [default: all]",
)
@click.option(
    "--store",
    type=StorePlace(),
    help="Folder of the store, or its URL, as s3://BUCKET/PATH; one that exists is finished, and in a folder grown.  "
    "[default: stores/TEACHER-DATASET]",
)
@dataset_options
@click.option("--weights", type=click.Path(path_type=Path, dir_okay=False), help="safetensors, .pth or .pt file.")
@origin_options
@remote_options
@rendering_options
@click.option("--format", "array_format", default="zarr", show_default=True, help="zarr or hdf5.")
@click.option("--features", default="none", show_default=True, help=f"What to keep: none, or {FEATURES_HELP}.")
@click.option(
    "--features-only", is_flag=True, help="Keep features and no logits: for a teacher of other classes, or of none."
)
@click.option("--keep", help=KEEP_HELP)
@click.option("--class-map", help=CLASS_MAP_HELP)
@click.option("--feature-dtype", help=FEATURE_DTYPE_HELP)
@click.option("--views", type=int, default=1, show_default=True, help="Views of each image; each is a call.")
@click.option(
    "--view-policy",
    default="augmented",
    show_default=True,
    help=f"{', '.join(VIEW_POLICIES[:-1])} or {VIEW_POLICIES[-1]}.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**40), default=0, show_default=True, help="Of the sample and the views."
)
@click.option("--budget", type=click.IntRange(min=1), help="Most calls ever to be spent on this teacher.")
@asking_options
@ledger_option
@accept_rollback_option
@click.option(
    "--lease",
    "lease_seconds",
    type=float,
    default=60.0,
    show_default=True,
    help="Seconds without a sign of life after which builders at work on the same calls take over.",
)
@click.option("--batch-size", type=int, default=64, show_default=True, help="Calls made together.")
@compute_options("fp32, since these calls are kept", CALL_PRECISIONS)
@engine_options
@click.option("--trust-teacher", is_flag=True, help="Go on even if its first 64 answers do not go with the labels.")
@click.option("--dry-run", is_flag=True, help="Say what it would cost; call and write nothing.")
@json_option
def build(
    store: Place | None,
    url: str | None,
    allow_code: bool,
    spend: str,
    round_size: int | None,
    dry_run: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Run the teacher once over a sample of images and keep what it says.

    The same command again finishes an interrupted build, or does nothing; a larger --n grows the store. What a store
    that exists says of itself (teacher, data set, features, kind of answers, class map, format, views, seed, precision,
    sizes, mean and std) need not be said again; only where its images lie, if they are yours.

    \b
    ckd-cache build --teacher wrn40_2 --dataset imagefolder:photos --n 2400 --features all --budget 2400
    ckd-cache build --store stores/wrn_40_2-photos --dataset imagefolder:photos --n 4800 --budget 4800
    """
    if store is None and settings["teacher"] is None:
        raise click.UsageError("Missing option '--teacher'.")
    folder = store if store is not None else _default_store(settings["teacher"], settings["dataset"])
    _require_calls(folder, settings)
    ledger = ledger_to_build(folder, url)
    settings["select"] = _spending(settings["select"], spend)
    settings["keep"] = None if settings["keep"] is None else AnswerForm.read(settings["keep"])
    settings |= _own_settings(folder, settings)
    said = RenderingOverrides(**{field.name: settings.pop(field.name) for field in fields(RenderingOverrides)})
    _require_remote(settings["teacher"])
    engine = _engine_of(folder, settings)
    remote = RemoteOptions(**{field.name: settings.pop(field.name) for field in fields(RemoteOptions)})
    settings |= asking_of(settings) | {"rendering": said, "remote": remote, "code": UserCode.of(allowed=allow_code)}
    config = BuildConfig(store=folder, ledger=ledger, **settings)
    if dry_run:
        ends = rounds_to_buy(config, round_size)
        prepared = prepare_build(config, rounds=len(ends))
        estimate = {**_estimate(prepared), "rounds_left": len(ends)}
        print_json(estimate) if as_json else say(_estimate_text(prepared, estimate))
        return
    report = buy(config, round_size, partial(_run, engine=engine))
    if as_json:
        print_json({**asdict(report), "store": str(report.store)})
    else:
        say(f"{_whose()}{report_text(report)}")


def _require_calls(store: Place, given: Mapping[str, Any]) -> None:
    """Refuse to build without a call, and say how labels alone are trained on, which is what needs none."""
    if given["n"]:
        return
    if is_store(store):
        way = suggested("ckd-train", store=store, n=0, rest="ce", method="vanilla")
    else:
        names = ("teacher", "weights", "dataset", "data_root", "image_size", "split", "split_seed")
        said = {name: given[name] for name in names if name != "split_seed" or given["split"] is not None}
        way = suggested("ckd-cache advise", **said, pilot=0, out="advice")
    raise InvalidInput(
        f"--n 0 asks the teacher about no image, and a build is made of calls; labels alone take none: train on them, "
        f"with: {way}"
    )


def _run(prepared: Prepared, report: BuildReport, *, engine: RayEngine | None) -> None:
    plan, launched = prepared.plan, Launched.find()
    if launched is not None and launched.rank:
        # The first one shows how far the store is.
        run_build(*prepared, report=report)
        return
    # The rows that are there already count as done, so that a resumed bar starts where it stopped.
    done = plan.total_calls - len(plan.missing_cells)
    with progress(f"{plan.identity.teacher.name}: teacher calls", plan.total_calls, done) as advance:
        if engine is not None and len(plan.missing_cells):
            build_with_ray(plan, engine, advance, report)
        elif launched is None:
            run_build(*prepared, advance, report)
        else:
            shown = StoreProgress(plan, advance)
            run_build(*prepared, lambda _, note: shown.tell(note), report)
            shown.look()


def _spending(select: SelectorSpec | None, spend: str) -> SelectorSpec | None:
    """The rule that chooses images, and makes what else calls are spent on."""
    if spend == IMAGES:
        return select
    return SelectorSpec.read(spending_rule(Random.name if select is None else select.text, spend))


def _whose() -> str:
    """Which of several processes says it."""
    launched = Launched.find()
    return "" if launched is None else f"builder {launched.rank + 1} of {launched.size}: "


def _engine_of(store: Place, settings: dict[str, Any]) -> RayEngine | None:
    """Where builders are to run, from what `engine_options` gave, which is taken out; None for here.

    A process that a launcher started is given a GPU of its own besides.

    Raises:
        InvalidInput: options that mean nothing together.
    """
    engine, teacher, launched = settings.pop("engine"), settings["teacher"], Launched.find()
    said = {name: settings.pop(name) for name in ("workers", "ray_address", "gpus_per_worker")}
    if launched is not None and settings["device"] == "auto":
        settings["device"] = launched.device(num_gpus())
    if engine == "local":
        for name, value in said.items():
            if value is not None:
                raise InvalidInput(f"--{name.replace('_', '-')} is for --engine ray, which is not asked for; add it")
        return None
    if isinstance(store, ObjectUrl):
        raise InvalidInput(
            f"--engine ray starts builders of a store in a folder, and {store} is in object storage; leave it out, and "
            "start the same command on each machine, as torchrun and srun do"
        )
    if said["workers"] is None:
        raise InvalidInput("--engine ray starts several builders; say how many, with --workers N")
    if launched is not None:
        raise InvalidInput(f"{launched.launcher} starts {launched.size} builders already; leave out --engine ray")
    if is_remote(teacher):
        raise InvalidInput(
            f"{teacher} answers over a network, and one builder asks it as much at once as --in-flight says; leave out "
            "--engine ray"
        )
    ray = RayEngine(workers=said["workers"], address=said["ray_address"], gpus=said["gpus_per_worker"])
    ray.check(settings["device"])
    return ray


def _require_remote(teacher: str) -> None:
    """Refuse what means nothing for a teacher that runs here."""
    context = click.get_current_context()
    for option in context.command.params:
        is_said = context.get_parameter_source(str(option.name)) is not ParameterSource.DEFAULT
        if option.name in REMOTE_ONLY and is_said and not is_remote(teacher):
            raise InvalidInput(
                f"{option.opts[0]} is for teachers that answer over a network, and {teacher} runs here; leave it out"
            )


def _own_settings(folder: Place, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a store says of itself, for options that were not given."""
    if not is_store(folder):
        if given["teacher"] is None:
            raise click.UsageError(f"Missing option '--teacher': there is no store at {folder} that names one.")
        return {}
    context, manifest = click.get_current_context(), Manifest.load(folder)
    own = {
        name: value
        for name, value in settings_of(manifest).items()
        if context.get_parameter_source(name) is ParameterSource.DEFAULT
    }
    if given["features_only"]:
        own.pop("keep", None)
    dataset = manifest.identity.dataset.name
    if is_placed(manifest.identity.teacher.name) and given["teacher"] is None:
        raise InvalidInput(
            f"{folder} was built with {manifest.identity.teacher.name}, and only you can say where that lies: say it, "
            f"with: {Store.open(folder).build_command(given['n'])}"
        )
    if takes_path(dataset) and context.get_parameter_source("dataset") is ParameterSource.DEFAULT:
        raise InvalidInput(
            f"{folder} was built from {dataset}, and only you can say where that lies: say it, with: "
            f"{Store.open(folder).build_command(given['n'])}"
        )
    if context.get_parameter_source("dataset") is not ParameterSource.DEFAULT and not may_be(given["dataset"], dataset):
        remedy = "say where its own images lie" if takes_path(dataset) else "leave out what the store says itself"
        raise IdentityMismatch(
            f"{folder} was built from another dataset.name (store: {dataset}, asked: {given['dataset']}); {remedy}, or "
            "give another --store"
        )
    if not takes_path(given["dataset"]):
        for name in ("image_size", "crop_pct", "split", "split_seed"):
            own.pop(name, None)
    return own


def _default_store(teacher: str, dataset: str) -> Path:
    data = Path(dataset.partition(":")[2] or dataset).absolute().name
    return Path("stores") / f"{identity_name(teacher).replace(':', '-')}-{data}"


def _estimate(prepared: Prepared) -> dict[str, Any]:
    plan, seconds, cost = prepared.plan, prepared.seconds(), prepared.upper_micros()
    form, num_classes = plan.identity.answer_form, len(plan.identity.dataset.classes)
    return {
        "store": str(plan.config.store),
        "total_calls": plan.total_calls,
        "paid_calls": plan.paid_calls,
        "needed_calls": plan.needed_calls,
        "answer": None if form is None else asdict(form),
        "answer_bytes": 0 if form is None else form.size_bytes(num_classes),
        "logits_bytes": AnswerForm().size_bytes(num_classes),
        "array_bytes": dict(plan.array_bytes),
        "total_bytes": sum(plan.array_bytes.values()),
        "free_bytes": plan.free_bytes,
        "seconds": None if seconds is None else round(seconds, 3),
        "canary_calls": plan.canaries,
        "rest": plan.rest,
        "rounds": [asdict(chosen) for chosen in plan.rounds],
        "upper_cost": None if cost is None else shown_micros(cost),
    }


def _estimate_text(prepared: Prepared, estimate: dict[str, Any]) -> str:
    plan, form = prepared.plan, prepared.plan.identity.answer_form
    size = form and form.size_text(len(plan.identity.dataset.classes), plan.identity.views)
    arrays = [f"  {name:<24} {size / 1e6:10.2f} MB" for name, size in plan.array_bytes.items()]
    return "\n".join(
        [
            f"{plan.config.store}: {plan.total_calls} teacher calls in all",
            f"  {plan.paid_calls} paid already, {plan.needed_calls} to be made{_beside(prepared)}",
            *_money_lines(estimate),
            *([f"  {plan.rest} more images are kept without a call"] if plan.rest else []),
            *(
                [f"  rows {last.first} to {last.end - 1} by {last.rule}{_in_rounds(estimate)}"]
                if (last := _last_round(plan))
                else []
            ),
            *([] if size is None else [f"  answers as {size}"]),
            *arrays,
            f"  {'total':<24} {estimate['total_bytes'] / 1e6:10.2f} MB, {plan.free_bytes / 1e6:.0f} MB free",
            f"{_duration(prepared, estimate)}; nothing was called or written",
        ]
    )


def _last_round(plan: BuildPlan) -> Round | None:
    return plan.rounds[-1] if plan.rounds else None


def _in_rounds(estimate: Mapping[str, Any]) -> str:
    """The rows of later rounds are chosen when those before are answered, and may be others than of one round."""
    return f", in {estimate['rounds_left']} rounds" if estimate["rounds_left"] > 1 else ""


def _beside(prepared: Prepared) -> str:
    count = prepared.all_calls - prepared.plan.needed_calls
    return f", and {count} that tell whether the teacher is the same" if count else ""


def _money_lines(estimate: Mapping[str, Any]) -> list[str]:
    cost = estimate["upper_cost"]
    return [] if cost is None else [f"  at most {cost} for these, where each is made once"]


def _duration(prepared: Prepared, estimate: Mapping[str, Any]) -> str:
    seconds, where = estimate["seconds"], prepared.teacher.card.device
    if not isinstance(prepared.teacher, RemoteTeacher):
        return f"about {seconds:.0f} s on {where}"
    if seconds is None:
        return f"as long as {where} takes, {prepared.plan.config.asking.in_flight} requests at once"
    return f"at least {seconds / 60:.1f} minutes under the limits"


def _failures(report: BuildReport) -> tuple[tuple[int, str], ...]:
    return (
        (report.unanswered_calls, "gave no answer and count as spent"),
        (report.returned_calls, "gave no answer and were not billed"),
        (report.refused_calls, "were refusals"),
    )


def report_text(report: BuildReport) -> str:
    """What a build or an extension did, for people."""
    lines = [f"{report.new_calls} new teacher calls; {report.store} holds {report.rows_valid} of {report.n} rows whole"]
    if report.rest:
        lines.append(f"{report.rest} more images are kept, without a call")
    if report.reused_calls:
        lines.append(f"{report.reused_calls} answers were paid for already and copied")
    if report.adopted_calls or report.lost_calls:
        lines.append(f"of an interrupted build, {report.adopted_calls} calls were adopted, {report.lost_calls} lost")
    failed = [f"{count} {what}" for count, what in _failures(report) if count]
    if failed:
        lines.append(f"of the teacher's attempts, {', '.join(failed)}")
    if report.cost_micros:
        lines.append(f"it cost {shown_micros(report.cost_micros)}")
    return "\n".join(lines)
