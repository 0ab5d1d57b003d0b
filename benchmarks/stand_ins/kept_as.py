"""A store whose answers are kept in another form: what a build with `--keep` would have made, without a call.

It has no ledger, since no call was made for it: students train from it, and nothing else is done with it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ground.errors import InvalidInput
from storage.answers import AnswerForm, Kind
from storage.digest import input_digests
from storage.rows import Rows
from storage.store import Store
from teacher_cache.answers import Conversion

_ROWS_AT_ONCE = 256


def keep_as(source: Path, out: Path, form: AnswerForm, n: int | None = None) -> Store:
    """Write a store with the rows of another one that keeps full logits.

    Args:
        out: a new folder.
        n: only the first rows; None for all. The validation images stay.
    """
    store = Store.open(source)
    identity = store.manifest.identity
    if not identity.keeps_logits:
        raise InvalidInput(f"{source} keeps no full logits, of which other forms could be made")
    outputs = (*form.outputs(len(identity.dataset.classes)), *identity.kept_layers)
    samples = {name: store.read_sample(name) for name in store.manifest.samples}
    rows = store.manifest.n if n is None else n
    samples |= {name: values[:rows] for name, values in samples.items() if name.startswith("train/")}
    answer = None if form.kind is Kind.LOGITS else form
    made = Store.create(out, replace(identity, outputs=outputs, answer=answer), array_format="zarr", samples=samples)
    digests = input_digests(samples["train/images"], samples["train/views"], identity.geometry)
    conversion = Conversion(given=AnswerForm(), kept=form, seed=identity.seed)
    views = identity.views
    for first in range(0, rows, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, rows)
        said = store.read_outputs([output.name for output in store.outputs], Rows(((first, last),)))
        cells = {name: values.reshape(-1, *values.shape[2:]) for name, values in said.items()}
        own = {"logits": torch.from_numpy(cells.pop("logits"))}
        inputs = [digest for row in digests[first:last] for digest in row]
        kept = {name: values.numpy() for name, values in conversion.convert(own, inputs).items()}
        numbers = range(first * views, last * views)
        made.write_outputs(numbers, cells | kept)
        made.publish(numbers)
    return made
