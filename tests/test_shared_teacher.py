"""With the real teacher and the real images, where they are: what is stored is what it says."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ground.views import apply_views
from models import create_model, load_weights
from storage.schema import output_array
from storage.store import Store
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "tin100.tar.xz").is_file(), reason="the shared images are not here"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Each fifth image, which is of every class; all of them take most of the time."""
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(SHARED / "tin100.tar.xz") as archive:
        for place, member in enumerate(archive):
            if place % 5 == 0:
                archive.extract(member, folder, filter="data")
    return folder / "tin100"


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
def test_the_real_teachers_outputs_come_back(photos, tmp_path, array_format):
    weights = SHARED / "wrn_40_2-tin100.safetensors"
    config = BuildConfig(
        teacher="wrn40_2",
        weights=weights,
        dataset=f"imagefolder:{photos}",
        n=128,
        features="all",
        array_format=array_format,
        store=tmp_path / "store",
        device="cpu",
        trust_teacher=True,
    )
    build(*prepare_build(config))
    store = Store.open(tmp_path / "store")
    identity = store.manifest.identity
    network = create_model("wrn_40_2", num_classes=100).eval()
    load_weights(network, weights)
    images, views = (torch.from_numpy(store.read(f"train/{name}")) for name in ("images", "views"))
    pixels = identity.teacher.normalisation.apply(apply_views(images, views[:, 0], identity.geometry))
    with torch.inference_mode():
        said = network.represent(pixels)
    logits = store.read("train/logits")[:, 0]
    print(f"{array_format}: max |stored - own logits| = {np.abs(logits - said.logits.numpy()).max():.2e}")
    np.testing.assert_allclose(logits, said.logits, atol=1e-4)
    for name, tensor in said.features.items():
        stored = store.read(output_array(name))[:, 0].astype(np.float32)
        print(f"{array_format}: max |stored - own {name}| = {np.abs(stored - tensor.numpy()).max():.2e} (float16)")
        np.testing.assert_allclose(stored, tensor, rtol=1e-3, atol=1e-3)
    correct = (logits.argmax(axis=1) == store.read("train/labels")).mean()
    assert 0.5 < correct < 0.75, "its accuracy on plain training views is 0.62"
