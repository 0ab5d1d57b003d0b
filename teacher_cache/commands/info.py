"""`ckd-cache info`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from ground.geometry import BOX_AREA, shows_boxes
from ground.options import json_option
from ground.places import Place
from ground.terminal import print_json, say
from storage.answers import AnswerForm
from storage.identity import Identity
from storage.manifest import Round
from storage.schema import UNLABELLED
from storage.store import Store
from storage.store_ledger import newest_head
from teacher_cache.answered_rows import AnsweredRows
from teacher_cache.class_map import described
from teacher_cache.commands.options import place_option

# What of the making of base images is worth a word.
_SQUARES: dict[str | None, str] = {"squashed": "; photographs are resized to squares, not cropped"}


@click.command()
@place_option
@json_option
def info(store: Place, as_json: bool) -> None:
    """Say what a store holds and how good its teacher is on its own views."""
    found = Store.open(store)
    description, form = describe(found), found.manifest.identity.answer_form
    if as_json:
        print_json(description)
        return
    teacher = description["teacher"]
    features = ", ".join(f"{name} {tuple(shape)}" for name, shape in description["features"].items()) or "none"
    correct = description["teacher_accuracy"]
    unknown = "no logits are kept to tell the teacher's" if form is None else "no rows yet"
    for name, value in {
        "store": store,
        "rows": f"{description['rows_valid']} of {description['n']} whole, {description['views']} view(s) each",
        "labels": f"of {description['labelled']} rows; {description['unlabelled']} have none"
        if description["unlabelled"]
        else None,
        "rest": _rest_text(description["rest"]),
        "bought": _rounds_text(found.manifest.rounds),
        "teacher": f"{teacher['name']} {teacher['fingerprint'][:12]}, {teacher['precision']}",
        "shown": description["shown"],
        "answers": None if form is None else _answers_text(form, description),
        "prompts": description["prompts"],
        "accuracy": unknown if correct is None else f"{correct:.4f} of the teacher, on its own stored views",
        "dataset": f"{description['dataset']}, {description['num_classes']} classes, seed {description['seed']}",
        "classes": _classes_text(teacher, description["num_classes"]),
        "listed": description["listing"],
        "held out": f"{description['num_val']} validation and {description['num_test']} test images",
        "features": features,
        "weights": ", ".join(f"{name} {tuple(shape)}" for name, shape in description["parameters"].items()) or "none",
        "format": f"{description['format']} {description['format_version']}, {description['bytes'] / 1e6:.1f} MB",
        "ledger": f"{description['ledger']}, head {str(description['ledger_head'])[:12]}",
    }.items():
        if value is not None:
            say(f"{name:<9} {value}")


def _rest_text(rest: Mapping[str, int]) -> str | None:
    """Nothing where there is none."""
    if not rest["rows"]:
        return None
    return (
        f"{rest['rows']} more images that the teacher was not asked about, {rest['labelled']} with a label and "
        f"{rest['unlabelled']} without"
    )


def _rounds_text(rounds: tuple[Round, ...]) -> str | None:
    """Nothing where the sample's seed chose all rows."""
    if not rounds:
        return None
    first = [f"0 to {rounds[0].first - 1} by random"] if rounds[0].first else []
    return "rows " + ", ".join([*first, *(f"{r.first} to {r.end - 1} by {r.rule}" for r in rounds)])


def _classes_text(teacher: Mapping[str, Any], num_classes: int) -> str | None:
    """Nothing where the teacher's are those of the data."""
    if teacher["class_map"] is not None:
        return described(teacher["class_map"], teacher["num_classes"])
    own = teacher["num_classes"]
    return None if own == num_classes else f"the teacher's are others, {own} of them" if own else "the teacher has none"


def describe(store: Store) -> dict[str, Any]:
    """What `info --json` prints."""
    manifest, identity = store.manifest, store.manifest.identity
    rows = AnsweredRows.of(store)
    return {
        "n": manifest.n,
        "views": identity.views,
        "rows_valid": rows.whole,
        "labelled": manifest.n - rows.unlabelled,
        "unlabelled": rows.unlabelled,
        "rest": _counted_rest(store),
        "rounds": [asdict(chosen) for chosen in store.manifest.rounds],
        "format": manifest.array_format,
        "format_version": manifest.format_version,
        "dataset": identity.dataset.name,
        "listing": manifest.sources.get("listing"),
        "num_classes": len(identity.dataset.classes),
        "teacher": {
            "name": identity.teacher.name,
            "fingerprint": identity.teacher.fingerprint,
            "precision": identity.teacher.precision,
            "num_classes": identity.teacher.num_classes,
            "class_map": identity.teacher.class_map,
            "layers": list(identity.teacher.layers),
        },
        "shown": f"{_shown(identity)}{_SQUARES.get(identity.dataset.squares, '')}",
        "prompts": manifest.sources.get("prompts"),
        "keeps_logits": identity.keeps_logits,
        "answer": None if identity.answer_form is None else asdict(identity.answer_form),
        "answers_empty": rows.empty,
        "teacher_accuracy": rows.accuracy,
        "features": {name: list(shape) for name, shape in identity.features.items()},
        "parameters": {spec.name: list(spec.shape) for spec in identity.parameters},
        "bytes": store.size_bytes(),
        "num_val": manifest.num_val,
        "num_test": manifest.num_test,
        "seed": identity.seed,
        "view_policy": identity.view_policy,
        "store_id": manifest.store_id,
        "ledger": manifest.ledger or "own",
        "ledger_head": newest_head(store),
    }


def _shown(identity: Identity) -> str:
    """How the teacher was shown images, in one line."""
    rendering = str(identity.teacher_rendering)
    if not shows_boxes(identity.view_policy):
        return rendering
    return f"boxes of {BOX_AREA[0]:.0%} to {BOX_AREA[1]:.0%} of an image's area; plain {rendering}"


def _counted_rest(store: Store) -> dict[str, int]:
    """How many images are kept that nothing was asked about, and how many of these have a label."""
    manifest = store.manifest
    labelled = manifest.rest_labelled
    if labelled is None:  # nobody counted them yet
        labels = store.read_rows("train/labels", manifest.n, manifest.num_images)
        labelled = int((labels != UNLABELLED).sum())
    return {"rows": manifest.rest, "labelled": labelled, "unlabelled": manifest.rest - labelled}


def _answers_text(form: AnswerForm, description: Mapping[str, Any]) -> str:
    """How they are kept, and what is not in them."""
    empty = description["answers_empty"]
    without = f"; {empty} have no content" if empty else ""
    return f"{form.size_text(description['num_classes'], description['views'])}{without}"
