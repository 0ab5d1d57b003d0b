"""`ckd-train losses`."""

from __future__ import annotations

from typing import Any

import click

from ground.options import allow_code_option, json_option
from ground.terminal import print_json, print_table, say
from ground.user_code import UserCode
from student_train import catalogue

_INDENT = 13


@click.command("losses")
@click.argument("name", required=False)
@allow_code_option
@json_option
def losses(name: str | None, allow_code: bool, as_json: bool) -> None:
    """List every loss with needs, kinds of answers, defaults and source, or explain the one of this NAME."""
    if name is None:
        _print_losses(catalogue.describe_losses(), as_json=as_json)
    else:
        _print_loss(catalogue.describe_loss(name, UserCode.of(allowed=allow_code)), as_json=as_json)


def _print_losses(losses: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(losses)
        return
    rows = (
        (
            loss["name"],
            loss["needs"] or "(labels only)",
            catalogue.shown_kinds(loss["kinds"]) or "(none read)",
            catalogue.shown_settings(loss["settings"]).replace(",", ", "),
            loss["source"],
        )
        for loss in losses
    )
    print_table(("loss", "needs", "answers", "defaults", "source"), rows)


def _print_loss(loss: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(loss)
        return
    recipe = loss["recipe"]
    say(f"{loss['name']}: {loss['formula']}\n")
    if loss["details"]:
        say(f"{loss['details']}\n")
    facts = {
        "needs": loss["needs"] or "(no teacher)",
        "answers": _by_line(catalogue.explained_kinds(loss["kinds"])) or "reads none over the classes",
        "defaults": catalogue.shown_settings(loss["settings"]) or "(no settings)",
        "differences": "compared=true applies it to differences" if loss["comparable"] else "needs single samples",
        "recipe": f"--method {loss['name']}: weight={recipe['weight']:g}, ce={recipe['ce']:g}, kd={recipe['kd']:g}",
        "source": loss["source"],
    }
    for name, text in facts.items():
        say(f"{name + ':':<{_INDENT}}{text}")


def _by_line(text: str) -> str:
    return text.replace("; ", "\n" + " " * _INDENT)
