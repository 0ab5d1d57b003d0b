"""Small stores to test on: random images, and outputs that no network made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ground.geometry import Normalisation, ViewGeometry
from ground.views import sample_views
from storage.digest import input_digests
from storage.identity import DatasetIdentity, Identity, TeacherIdentity
from storage.ledger import Ledger
from storage.ledger_records import CallRequest, Session
from storage.schema import OutputSpec, parameter_array
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from tests import ledgers

FORMATS = ("zarr", "hdf5")
N, VIEWS, CLASSES = 70, 2, 5


def make_identity(**changes) -> Identity:
    fields = {
        "teacher": TeacherIdentity(
            name="wrn_40_2",
            fingerprint="ab" * 32,
            num_classes=CLASSES,
            normalisation=Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)),
            precision="fp32",
            layers=("stem", "layer1", "layer2", "pooled", "layer1.pre", "layer2.pre", "last"),
        ),
        "dataset": DatasetIdentity(name="digits", digest="cd" * 32, classes=tuple("abcde")),
        "geometry": ViewGeometry(image_size=8, crop_size=8, padding=1),
        "seed": 3,
        "views": VIEWS,
        "view_policy": "augmented",
        "outputs": (
            OutputSpec("logits", (CLASSES,), "float32"),
            OutputSpec("layer1", (3, 4, 4), "float16"),
            OutputSpec("pooled", (6,), "float16"),
            OutputSpec("layer2.pre", (2, 2, 2), "float16"),
        ),
        "parameters": (
            OutputSpec("head/weight", (CLASSES, 6), "float32"),
            OutputSpec("head/bias", (CLASSES,), "float32"),
            OutputSpec("norm/layer2/scale", (2,), "float32"),
            OutputSpec("norm/layer2/shift", (2,), "float32"),
        ),
    }
    return Identity(**fields | changes)


def make_samples(identity: Identity, n: int = N) -> dict[str, np.ndarray]:
    """The same rows for every n: a larger sample starts with a smaller one; and the teacher's parameters."""
    size = identity.geometry.image_size
    samples = {
        parameter_array(spec.name): np.random.default_rng(place).normal(size=(1, *spec.shape)).astype(spec.dtype)
        for place, spec in enumerate(identity.parameters)
    }
    for split, count in (("train", n), ("val", n // 4), ("test", 9)):
        rows = [np.random.default_rng([len(split), row]) for row in range(count)]
        samples[f"{split}/images"] = np.stack([rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for rng in rows])
        samples[f"{split}/labels"] = np.array([row % CLASSES for row in range(count)])
        samples[f"{split}/source_index"] = np.arange(count) * 3
    views = sample_views(
        identity.geometry,
        "augmented",
        seed=3,
        source_index=samples["train/source_index"],
        num_views=identity.views,
    )
    views[:, :, 2] = np.arange(identity.views)  # no image is shown twice alike
    samples["train/views"] = views
    return samples


def make_outputs(identity: Identity, first: int, count: int) -> dict[str, np.ndarray]:
    outputs = {}
    for output in identity.outputs:
        rng = np.random.default_rng([first, count, len(output.name)])
        outputs[output.name] = rng.normal(size=(count, identity.views, *output.shape)).astype(output.dtype)
    return outputs


@dataclass
class PaidStore:
    store: Store
    ledger: Ledger
    session: int
    digests: list[list[bytes]]

    def pay(self, first: int, count: int) -> dict[str, np.ndarray]:
        """What a builder does for rows first, first + 1, ...; returns what was written."""
        ids = self.reserve(first, count)
        outputs = self.write(first, make_outputs(self.store.manifest.identity, first, count))
        digests = self.store.read("train/digest")[first : first + count].reshape(len(ids), -1)
        self.ledger.commit({id_: digest.tobytes() for id_, digest in zip(ids, digests, strict=True)})
        return outputs

    def write(self, first: int, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows first, first + 1, ..., without telling the ledger."""
        rows = len(outputs["logits"])
        cells = range(first * VIEWS, (first + rows) * VIEWS)
        self.store.write_outputs(
            cells, {name: values.reshape(len(cells), *values.shape[2:]) for name, values in outputs.items()}
        )
        self.store.publish(cells)
        return outputs

    def reserve(self, first: int, count: int) -> list[int]:
        requests = [
            CallRequest(digest, row * 3, row, view)
            for row in range(first, first + count)
            for view, digest in enumerate(self.digests[row])
        ]
        return list(self.ledger.reserve(self.session, requests).ids.values())


def make_session(store: Store) -> Session:
    outputs = ("logits", "layer1", "pooled", "layer2.pre")
    return ledgers.make_session(store=store.manifest.store_id, location=str(store.folder), outputs=outputs)


@pytest.fixture(params=FORMATS)
def array_format(request) -> str:
    return request.param


@pytest.fixture
def empty_store(tmp_path: Path, array_format: str):
    identity = make_identity()
    samples = make_samples(identity)
    store = Store.create(tmp_path / "store", identity, array_format=array_format, samples=samples)
    ledger = Ledger(store.folder / LEDGER_FILE, create=True)
    ledger.record_store(store.manifest.store_id, {"manifest": store.manifest.digest})
    digests = input_digests(samples["train/images"], samples["train/views"], identity.geometry)
    yield PaidStore(store, ledger, ledger.start_session(make_session(store)), digests)
    ledger.close()


@pytest.fixture
def whole_store(empty_store: PaidStore) -> PaidStore:
    for first in range(0, N, 35):
        empty_store.pay(first, 35)
    return empty_store
