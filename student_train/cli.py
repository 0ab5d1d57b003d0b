"""`ckd-train`: stage two, a student from a store alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ground.errors import InvalidInput
from ground.terminal import CommandGroup, print_json, print_table, progress
from models import canonical_name
from models.compute import PRECISIONS, Compute
from storage.store import Store
from student_train import catalogue
from student_train.methods import METHODS, Method, parse_losses, parse_method
from student_train.protocol import ProtocolConfig
from student_train.run_folder import RunFolder
from student_train.trainer import TrainConfig, Trainer


@click.group(cls=CommandGroup, invoke_without_command=True)
@click.version_option(package_name="teacher-cache")
@click.option("--store", type=click.Path(path_type=Path, file_okay=False), help="Store that stage one built; needed.")
@click.option("--student", default="wrn16_2", show_default=True, help="Network to train.")
@click.option(
    "--method",
    help=f"Recipe with settings, as ckd:pairs=all: {', '.join(METHODS)}, or the name of a loss.  [default: ckd]",
)
@click.option("--loss", "losses", multiple=True, help="Own sum of losses, repeatable: kd:temperature=4,weight=0.9.")
@click.option(
    "--comparison",
    help="How losses with compared=true pair samples: sampled:positives=2,negatives=1 or all.  [default: sampled]",
)
@click.option("--n", type=int, help="Train on the first n rows.  [default: all]")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--lr", type=float, default=0.05, show_default=True)
@click.option("--batch-size", type=int, default=64, show_default=True)
@click.option("--patience", type=int, default=50, show_default=True, help="Evaluations without progress to a plateau.")
@click.option("--max-evals", type=int, help="Stop after this many evaluations.")
@click.option(
    "--student-view",
    default="auto",
    show_default=True,
    help="fresh crops, or teacher to replay what it saw; auto: teacher where feature maps are learned from.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--precision", type=click.Choice(("auto", *PRECISIONS)), default="auto", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder.  [default: below runs/]")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--json", "as_json", is_flag=True, help="Print run.json.")
@click.pass_context
def main(context: click.Context, /, store: Path | None, **settings: Any) -> None:
    """Train a student from a store; no teacher, no data set and no network is needed.

    \b
    ckd-train --store stores/wrn40_2-cifar100 --method ckd --n 1600
    ckd-train --store DIR --loss ce --loss kd:temperature=2,weight=0.5
    ckd-train --store DIR --loss ce --loss my_losses:Huber:delta=2
    ckd-train losses

    Exit status: 0 done, 2 bad usage or bad input, 130 interrupted.
    """
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if context.get_parameter_source(name) is not _DEFAULT]
        if given:
            raise click.UsageError(f"--{given[0].replace('_', '-')} is for a training, not for a subcommand")
        return
    if store is None:
        raise click.UsageError("Missing option '--store'.")
    run(store=store, **settings)


_DEFAULT = click.core.ParameterSource.DEFAULT


@main.command("losses")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def losses_command(name: str | None, as_json: bool) -> None:
    """List every loss with needs, defaults and source, or explain the one of this NAME."""
    if name is None:
        _print_losses(catalogue.describe_losses(), as_json=as_json)
    else:
        _print_loss(catalogue.describe_loss(name), as_json=as_json)


@main.command("methods")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def methods_command(as_json: bool) -> None:
    """List every method with the losses it adds up."""
    methods = catalogue.describe_methods()
    if as_json:
        print_json(methods)
    else:
        rows = ((m["name"], catalogue.shown_method(m), catalogue.shown_batches(m)) for m in methods)
        print_table(("method", "losses", "batches"), rows)


def _print_losses(losses: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(losses)
        return
    rows = (
        (
            loss["name"],
            loss["needs"] or "(labels only)",
            catalogue.shown_settings(loss["settings"]).replace(",", ", "),
            loss["source"],
        )
        for loss in losses
    )
    print_table(("loss", "needs", "defaults", "source"), rows)


def _print_loss(loss: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(loss)
        return
    recipe = loss["recipe"]
    click.echo(f"{loss['name']}: {loss['formula']}\n")
    if loss["details"]:
        click.echo(f"{loss['details']}\n")
    facts = {
        "needs": loss["needs"] or "(no teacher)",
        "defaults": catalogue.shown_settings(loss["settings"]) or "(no settings)",
        "differences": "compared=true applies it to differences" if loss["comparable"] else "needs single samples",
        "recipe": f"--method {loss['name']}: weight={recipe['weight']:g}, ce={recipe['ce']:g}, kd={recipe['kd']:g}",
        "source": loss["source"],
    }
    for name, text in facts.items():
        click.echo(f"{name + ':':<13}{text}")


def run(
    *,
    store: Path,
    student: str,
    method: str | None,
    losses: tuple[str, ...],
    comparison: str | None,
    n: int | None,
    seed: int,
    lr: float,
    batch_size: int,
    patience: int,
    max_evals: int | None,
    student_view: str,
    device: str,
    precision: str,
    out: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Check everything, train, print."""
    recipe, spec = _recipe(method, losses, comparison)
    config = TrainConfig(
        student=canonical_name(student),
        method=spec,
        seed=seed,
        lr=lr,
        batch_size=batch_size,
        student_view=student_view,
        protocol=ProtocolConfig(patience=patience, max_evals=max_evals),
    )
    rows = Store.open(store).manifest.n if n is None else n
    folder = RunFolder(out if out is not None else _default_out(store, config, rows))
    trainer = Trainer.open(config, store, rows, recipe, Compute.choose(device, precision), folder, resume=resume)
    with progress(f"{config.student} by {config.method}: evaluations", None) as advance:
        result = trainer.run(resume=resume, on_eval=lambda row: advance(1, _note(row)))
    if as_json:
        print_json(result)
        return
    click.echo(
        f"{folder.path}: {result['student']} by {config.method} on {result['n']} rows "
        f"({result['teacher_calls']} teacher calls), test accuracy {result['test_accuracy']:.4f} "
        f"at best validation accuracy {result['best_val_accuracy']:.4f}"
    )


def _recipe(method: str | None, losses: tuple[str, ...], comparison: str | None) -> tuple[Method, str]:
    if method is not None and losses:
        raise InvalidInput("--method and --loss exclude each other: a method is a list of losses; give one of them")
    if losses:
        return parse_losses(losses, comparison), "+".join(losses)
    if comparison is not None:
        raise InvalidInput("--comparison goes with --loss; a method has its own, as --method ckd:pairs=all")
    name = "ckd" if method is None else method
    return parse_method(name), name


def _note(row: Any) -> str:
    return f"loss {row['train_loss']:.3f}, validation {row['val_accuracy']:.3f}, lr {row['lr']:g}"


def _default_out(store: Path, config: TrainConfig, n: int) -> Path:
    method = "".join(letter if letter.isalnum() else "-" for letter in config.method)[:100]
    return Path("runs") / store.resolve().name / f"{config.student}-{method}-n{n}-seed{config.seed}"
