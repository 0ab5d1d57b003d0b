"""What `ckd-train losses` and `ckd-train methods` tell: every loss and method, from their declarations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ground.errors import InvalidInput
from ground.spec import Settings
from ground.user_code import UserCode
from storage.answers import Kind
from student_train.losses.kinds import kinds_of
from student_train.methods import method_names, parse_method
from student_train.names import PAPER_METHODS
from student_train.registry import find_loss, loss_names


def describe_losses() -> list[dict[str, Any]]:
    """Every loss by name; of one from another package that does not work, why."""
    broken: dict[str, Any] = {
        "details": "",
        "needs": "",
        "kinds": {},
        "comparable": False,
        "settings": {},
        "recipe": {},
        "source": "(not usable)",
    }
    return [_or_problem(describe_loss, name, "formula", broken) for name in loss_names()]


def describe_loss(name: str, code: UserCode = UserCode.REFUSED) -> dict[str, Any]:
    """One loss: name, formula, needs, kinds of answers, settings with their defaults, recipe, source; raises as
    `find_loss` does.
    """
    loss_class = find_loss(name, code)
    # Most needs follow from settings, so they are those of the defaults.
    loss = Settings("loss", name, {}).build(loss_class)
    formula, _, details = inspect.cleandoc(loss_class.__doc__ or "").partition("\n")
    return {
        "name": name,
        "formula": formula.strip(),
        "details": details.strip(),
        "needs": loss.needs.describe(),
        "kinds": kinds_of(loss_class),
        "comparable": loss.needs.comparable,
        "settings": loss.settings,
        "recipe": asdict(loss_class.recipe),
        "source": loss_class.source,
    }


def describe_methods() -> list[dict[str, Any]]:
    """Every method by name, with what it adds up by default."""
    broken: dict[str, Any] = {"losses": [], "sampling": None, "comparison": None, "mixing": None, "anchored": False}
    return [_or_problem(_describe_method, name, "problem", broken) for name in method_names()]


def _describe_method(name: str) -> dict[str, Any]:
    return {"name": name, "paper": name in PAPER_METHODS, **parse_method(name).describe()}


def _or_problem(
    describe: Callable[[str], dict[str, Any]], name: str, where: str, broken: Mapping[str, Any]
) -> dict[str, Any]:
    """A description; of what another package registered and does not work, why."""
    try:
        return describe(name)
    except InvalidInput as error:
        return {"name": name, **broken, where: str(error)}


def shown_kinds(kinds: Mapping[str, str]) -> str:
    """From which kinds of answers a loss learns: the rules of top-k together."""
    rules = [kind.partition(":")[2] for kind in kinds if ":" in kind]
    merged = (f"top_k ({', '.join(rules)})" if ":" in kind else kind for kind in kinds)
    return ", ".join(dict.fromkeys(merged))


def explained_kinds(kinds: Mapping[str, str]) -> str:
    """What a loss makes of answers that are no logits; those of which it makes the same together."""
    found = {meaning: [kind for kind, said in kinds.items() if said == meaning] for meaning in kinds.values()}
    return "; ".join(
        f"{', '.join(names)}: {meaning}" for meaning, names in found.items() if names != [str(Kind.LOGITS)]
    )


def shown_settings(settings: Mapping[str, Any]) -> str:
    """As they are written in a spec."""
    return ",".join(f"{name}={_shown(value)}" for name, value in settings.items())


def shown_method(description: Mapping[str, Any]) -> str:
    """The summands of a method, or why it is not usable."""
    if "problem" in description:
        return str(description["problem"])
    return " + ".join(_shown_term(term) for term in description["losses"])


def shown_batches(description: Mapping[str, Any]) -> str:
    """How a method's batches are drawn, compared and mixed."""
    parts = (description[name] for name in ("sampling", "comparison", "mixing"))
    return "; ".join(_shown_part(part) for part in parts if part is not None)


def _shown_part(part: Mapping[str, Any]) -> str:
    settings = shown_settings({name: value for name, value in part.items() if name != "kind"})
    return f"{part['kind']} {settings}".strip().replace(",", ", ")


def _shown_term(term: Mapping[str, Any]) -> str:
    name = f"{term['loss']} of differences" if term["compared"] else term["loss"]
    return name if term["weight"] == 1 else f"{term['weight']:g} x {name}"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
