"""`ckd-cache info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ground.options import json_option
from ground.terminal import print_json, say
from storage.rows import Rows
from storage.schema import LOGITS, UNLABELLED
from storage.store import Store
from storage.store_ledger import newest_head
from teacher_cache.commands.options import store_option

_BLOCK_ROWS = 1 << 10


@click.command()
@store_option
@json_option
def info(store: Path, as_json: bool) -> None:
    """Say what a store holds and how good its teacher is on its own views."""
    description = describe(Store.open(store))
    if as_json:
        print_json(description)
        return
    teacher = description["teacher"]
    features = ", ".join(f"{name} {tuple(shape)}" for name, shape in description["features"].items()) or "none"
    correct = description["teacher_accuracy"]
    for name, value in {
        "store": store,
        "rows": f"{description['rows_valid']} of {description['n']} whole, {description['views']} view(s) each",
        "labels": f"of {description['labelled']} rows; {description['unlabelled']} have none"
        if description["unlabelled"]
        else None,
        "teacher": f"{teacher['name']} {teacher['fingerprint'][:12]}, {teacher['precision']}",
        "shown": description["shown"],
        "accuracy": "no rows yet" if correct is None else f"{correct:.4f} of the teacher, on its own stored views",
        "dataset": f"{description['dataset']}, {description['num_classes']} classes, seed {description['seed']}",
        "listed": description["listing"],
        "held out": f"{description['num_val']} validation and {description['num_test']} test images",
        "features": features,
        "weights": ", ".join(f"{name} {tuple(shape)}" for name, shape in description["parameters"].items()) or "none",
        "format": f"{description['format']} {description['format_version']}, {description['bytes'] / 1e6:.1f} MB",
        "ledger": f"{description['ledger']}, head {str(description['ledger_head'])[:12]}",
    }.items():
        if value is not None:
            say(f"{name:<9} {value}")


def describe(store: Store) -> dict[str, Any]:
    """What `info --json` prints."""
    manifest, identity = store.manifest, store.manifest.identity
    whole, unlabelled, accuracy = _counted_rows(store)
    return {
        "n": manifest.n,
        "views": identity.views,
        "rows_valid": whole,
        "labelled": manifest.n - unlabelled,
        "unlabelled": unlabelled,
        "format": manifest.array_format,
        "format_version": manifest.format_version,
        "dataset": identity.dataset.name,
        "listing": manifest.sources.get("listing"),
        "num_classes": len(identity.dataset.classes),
        "teacher": {
            "name": identity.teacher.name,
            "fingerprint": identity.teacher.fingerprint,
            "precision": identity.teacher.precision,
            "layers": list(identity.teacher.layers),
        },
        "shown": str(identity.teacher_rendering),
        "teacher_accuracy": accuracy,
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


def _counted_rows(store: Store) -> tuple[int, int, float | None]:
    """How many rows are whole, how many have no label, and the teacher's top-1 on the stored views of the others.

    It comes from the stored logits: no call is made.
    """
    whole = unlabelled = cells = correct = 0
    for first, last in Rows.first(store.manifest.n).blocks(_BLOCK_ROWS):
        valid = store.valid(first, last)
        whole += int(valid.all(axis=1).sum())
        labels = store.arrays.read("train/labels", first, last)
        unlabelled += int((labels == UNLABELLED).sum())
        if valid.any():
            logits = store.arrays.read(LOGITS, first, last)
            valid &= (labels != UNLABELLED)[:, None]
            cells += int(valid.sum())
            correct += int((logits.argmax(axis=2) == labels[:, None])[valid].sum())
    return whole, unlabelled, correct / cells if cells else None
