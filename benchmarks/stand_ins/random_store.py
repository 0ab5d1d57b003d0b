"""A whole store of random images and random answers, in the shapes of a wrn_40_2 on 100 classes."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from ground.geometry import Normalisation, ViewGeometry
from ground.views import sample_views
from models import create_model
from storage.digest import input_digests
from storage.identity import DatasetIdentity, Identity, TeacherIdentity
from storage.ledger import Ledger
from storage.ledger_records import CallRequest, Session
from storage.schema import OutputSpec, parameter_array
from storage.store import Store
from storage.store_folder import LEDGER_FILE

TEACHER, CLASSES = "wrn_40_2", 100
_AT_ONCE = 64


def make_store(folder: Path, n: int, *, layers: Collection[str] | None = (), views: int = 1, rest: int = 0) -> None:
    """Written as a build writes it, calls in the ledger included; no teacher is called.

    Args:
        layers: what is kept beside the logits, by name; None for everything a teacher can give.
        views: V.
        rest: images beyond the n that nothing was asked about, all with a label.
    """
    identity = _identity(layers, views)
    samples = _samples(identity, n, rest)
    store = Store.create(folder, identity, array_format="zarr", samples=samples, rest=rest)
    rng = np.random.default_rng(0)
    with closing(Ledger(folder / LEDGER_FILE, create=True)) as ledger:
        session = ledger.start_session(_session(store))
        inputs = input_digests(samples["train/images"][:n], samples["train/views"][:n], identity.geometry)
        cells = [(row, view) for row in range(n) for view in range(views)]
        for first in range(0, len(cells), _AT_ONCE):
            part = cells[first : first + _AT_ONCE]
            requests = [CallRequest(inputs[row][view], row, row, view) for row, view in part]
            ids = ledger.reserve(session, requests).ids.values()
            said = {
                spec.name: rng.normal(size=(len(part), *spec.shape)).astype(spec.dtype) for spec in identity.outputs
            }
            numbers = range(first, first + len(part))
            digests = store.write_outputs(numbers, said)
            store.publish(numbers)
            ledger.commit({id_: digest.tobytes() for id_, digest in zip(ids, digests, strict=True)})


def _identity(layers: Collection[str] | None, views: int) -> Identity:
    network = create_model(TEACHER, CLASSES, seed=0).eval()
    with torch.inference_mode():
        said = network.represent(torch.zeros(1, 3, 32, 32), network.extra_names)
    kept = [name for name in said.features if layers is None or name in layers]
    features = (OutputSpec(name, tuple(said.features[name].shape[1:]), "float16") for name in kept)
    parameters = {"head/weight": tuple(network.head.weight.shape), "head/bias": (CLASSES,)}
    for layer, norm in network.stage_norms.items():
        if f"{layer}.pre" in kept:
            parameters |= {f"norm/{layer}/{what}": (norm.num_features,) for what in ("scale", "shift")}
    return Identity(
        teacher=TeacherIdentity(
            name=TEACHER,
            fingerprint="0" * 64,
            num_classes=CLASSES,
            normalisation=Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
            precision="fp32",
            layers=(*network.feature_names, *network.extra_names),
        ),
        dataset=DatasetIdentity(name="random", digest="0" * 64, classes=tuple(map(str, range(CLASSES)))),
        geometry=ViewGeometry(image_size=32, crop_size=32, padding=4),
        seed=0,
        views=views,
        view_policy="augmented",
        outputs=(OutputSpec("logits", (CLASSES,), "float32"), *features),
        parameters=tuple(OutputSpec(name, shape, "float32") for name, shape in parameters.items()),
    )


def _samples(identity: Identity, n: int, rest: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    samples = {
        parameter_array(spec.name): rng.normal(size=(1, *spec.shape)).astype(np.float32) for spec in identity.parameters
    }
    for split, count in (("train", n + rest), ("val", n // 4), ("test", 100)):
        samples[f"{split}/images"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        samples[f"{split}/labels"] = rng.integers(0, CLASSES, count)
        # Of one pool: an image is of one split.
        samples[f"{split}/source_index"] = np.arange(count) + (n + rest) * (split == "val")
    index = samples["train/source_index"]
    samples["train/views"] = sample_views(
        identity.geometry, identity.view_policy, seed=0, source_index=index, num_views=identity.views
    )
    return samples


def _session(store: Store) -> Session:
    return Session(
        teacher="0" * 64,
        teacher_name=TEACHER,
        store=store.manifest.store_id,
        location=str(store.folder),
        purpose="build",
        device="cpu",
        precision="fp32",
        outputs=tuple(output.name for output in store.outputs),
        host="here",
    )
