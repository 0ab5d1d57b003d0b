"""Stores of transformers' networks, built by the command, hold what transformers says of the same files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from storage.manifest import Manifest
from storage.store import Store
from tests.models import huggingface_folders as folders
from tests.running import run_command

transformers = pytest.importorskip("transformers")

SHAPES = ((80, 60), (64, 101), (33, 33), (300, 41), (61, 60))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    root, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name in folders.CLASSES:
            (root / split / name).mkdir(parents=True)
            for place, shape in enumerate(SHAPES):
                coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                coarse.resize(shape, Image.Resampling.BICUBIC).save(root / split / name / f"{place}.png")
    return root


def built(photographs: Path, teacher: Path, store: Path, *more: object, n: int = 5):
    return run_command(
        "ckd-cache", "build", "--teacher", f"hf:{teacher}", "--dataset", f"imagefolder:{photographs}",
        "--store", store, "--n", n, "--view-policy", "plain", "--device", "cpu", "--json", *more,
    )  # fmt: skip


def files_of(store: Store, photographs: Path) -> list[Path]:
    every = [file for name in folders.CLASSES for file in sorted((photographs / "train" / name).iterdir())]
    return [every[place] for place in store.read_sample("train/source_index")]


@pytest.mark.slow
def test_a_stored_vit_says_what_transformers_says(photographs, tmp_path):
    folder = folders.save_vit(tmp_path / "vit")
    report = built(photographs, folder, tmp_path / "store", "--features", "pooled,vit.layers.1")
    assert report.returncode == 0, report.stderr
    store = Store.open(tmp_path / "store")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    own = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    files = [Image.open(file) for file in files_of(store, photographs)]
    with torch.inference_mode():
        expected = own(**processor(images=files, return_tensors="pt")).logits
    np.testing.assert_allclose(store.read("train/logits")[:, 0], expected.numpy(), rtol=0, atol=1e-5)
    assert store.read("train/features/vit.layers.1").shape[2:] == (32, 4, 4)
    identity = store.manifest.identity
    assert (identity.teacher.name, identity.dataset.squares, identity.fit.shape) == ("hf:vit", "squashed", "squashed")
    said = run_command("ckd-cache", "info", "--store", store.folder)
    assert "photographs are resized to squares, not cropped" in said.stdout
    again = built(photographs, folder, tmp_path / "store", "--features", "pooled,vit.layers.1")
    assert json.loads(again.stdout)["new_calls"] == 0
    assert Manifest.load(store.folder).identity == identity


@pytest.mark.slow
def test_a_stored_clip_says_what_transformers_says_by_prompts(photographs, tmp_path):
    folder, prompts = folders.save_clip(tmp_path / "clip"), tmp_path / "prompts.csv"
    texts = {name: f"a photo of a {name}" for name in folders.CLASSES}
    prompts.write_text("class,prompt\n" + "".join(f"{name},{texts[name]}\n" for name in reversed(folders.CLASSES)))
    report = built(photographs, folder, tmp_path / "store", "--features", "pooled", "--prompts", prompts)
    assert report.returncode == 0, report.stderr
    store = Store.open(tmp_path / "store")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(list(texts.values()), padding=True, return_tensors="pt")
    own = transformers.AutoModel.from_pretrained(folder).eval()
    files = [Image.open(file) for file in files_of(store, photographs)]
    with torch.inference_mode():
        expected = own(**processor(images=files, return_tensors="pt"), **tokens)
    stored = torch.from_numpy(store.read("train/logits")[:, 0])
    torch.testing.assert_close(stored.softmax(1), expected.logits_per_image.softmax(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(stored, expected.logits_per_image, rtol=0, atol=5e-5)
    assert f"prompts   {prompts}" in run_command("ckd-cache", "info", "--store", store.folder).stdout

    grown = built(photographs, folder, tmp_path / "store", "--features", "pooled", "--prompts", prompts, n=8)
    assert json.loads(grown.stdout)["new_calls"] == 3
    prompts.write_text(prompts.read_text() + "cat,a drawing of a cat\n")
    refused = built(photographs, folder, tmp_path / "store", "--features", "pooled", "--prompts", prompts)
    assert refused.returncode == 2
    assert "another teacher.fingerprint" in refused.stderr


def test_a_network_is_described_without_a_data_set(tmp_path):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("class,prompt\nowl,a photo of a owl\ncat,a cat\ncat,a photo of a cat\n")
    described = run_command("ckd-cache", "teacher", f"hf:{folders.save_vit(tmp_path / 'vit')}", "--device", "cpu")
    assert described.returncode == 0, described.stderr
    assert "classes   3 (cat, dog, owl, ...)" in described.stdout
    assert "shown     both sides 32, centre 32 (bilinear)" in described.stdout
    clip = ("ckd-cache", "teacher", f"hf:{folders.save_clip(tmp_path / 'clip')}", "--device", "cpu")
    described = run_command(*clip, "--prompts", prompts)
    assert described.returncode == 0, described.stderr
    assert "classes   2 (owl, cat, ...)" in described.stdout
    refused = run_command(*clip)
    assert refused.returncode == 2
    assert "give --prompts FILE" in refused.stderr


def test_what_prompts_lack_is_refused_before_a_call(photographs, tmp_path):
    folder, prompts = folders.save_clip(tmp_path / "clip"), tmp_path / "prompts.csv"
    prompts.write_text("class,prompt\ncat,a cat\ndgo,a dog\n")
    for arguments, says in (
        ((), "give --prompts FILE"),
        (("--prompts", prompts), "no class of the data set is called 'dgo'; did you mean dog?"),
        (("--prompts", tmp_path / "none.csv"), "cannot be read"),
    ):
        refused = built(photographs, folder, tmp_path / "store", *arguments)
        assert refused.returncode == 2
        assert says in refused.stderr
        assert refused.stderr.count("\n") <= 3, refused.stderr
    assert not (tmp_path / "store").exists()
    plain = run_command(
        "ckd-cache", "build", "--teacher", "resnet8", "--dataset", f"imagefolder:{photographs}", "--n", 2,
        "--store", tmp_path / "store", "--prompts", prompts,
    )  # fmt: skip
    assert plain.returncode == 2
    assert "--prompts is for networks that compare images with texts" in plain.stderr


def test_a_body_is_described_as_it_would_be_built(tmp_path):
    folder = folders.save_dino(tmp_path / "dino")
    described = json.loads(run_command("ckd-cache", "teacher", f"hf:{folder}", "--json").stdout)
    names = [layer["name"] for layer in described["layers"]]
    assert "logits" not in names
    assert not any(name.startswith("dinov2.") for name in names)
