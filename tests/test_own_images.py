"""Both stages on images as their owners have them: divided alike whenever a store grows, and partly without labels."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torchvision
import yaml
from PIL import Image
from safetensors.torch import save_file

from experiments.grid_file import read_grid
from experiments.plan import plan_runs
from models import create_model, save_weights
from storage.manifest import Manifest
from storage.store import Store
from teacher_cache.config import BuildConfig
from teacher_cache.datasets import open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.sample import draw_sample
from tests.running import run_command

UNLABELLED = 12


def succeeded(result):
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


def save_images(folder, count, seed):
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng((seed, number)).integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")


@pytest.fixture
def photos(tmp_path):
    """A flat folder of two classes, with images of none."""
    for seed, (name, count) in enumerate({"ant": 15, "bee": 15, "unlabelled": UNLABELLED}.items()):
        save_images(tmp_path / "photos" / name, count, seed)
    return tmp_path / "photos"


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "two.safetensors"
    save_weights(create_model("resnet8", num_classes=2, seed=0), path, {})
    return path


@pytest.fixture
def store(photos, weights, tmp_path):
    """24 rows, not all of which have a label."""
    succeeded(
        run_command(
            "ckd-cache", "build", "--teacher", "resnet8", "--dataset", f"imagefolder:{photos}", "--split", "0.8/0.2",
            "--split-seed", 5, "--n", 24, "--weights", weights, "--store", tmp_path / "store", "--device", "cpu",
            "--image-size", 16,
        )
    )  # fmt: skip
    return tmp_path / "store"


def train(store, *options):
    return run_command(
        "ckd-train", "--store", store, "--student", "resnet8", "--max-evals", 1, "--device", "cpu", "--out",
        store.parent / "run", *options,
    )  # fmt: skip


def test_a_store_of_divided_images_grows_by_the_command_that_it_suggests(store, photos):
    sources = Manifest.load(store).sources
    assert (sources["split"], sources["split_seed"]) == ("0.8/0.2", "5")
    suggested = shlex.split(Store.open(store).build_command(30))
    assert "--split" in suggested
    succeeded(run_command(*suggested, "--device", "cpu"))
    # The division need not be said again; another one gives another data set.
    again = ("ckd-cache", "build", "--store", store, "--dataset", f"imagefolder:{photos}", "--n", 30, "--device", "cpu")
    again = (*again, "--weights", sources["weights"])
    assert json.loads(succeeded(run_command(*again, "--json")))["new_calls"] == 0
    assert run_command(*again, "--split-seed", 6).returncode == 2


def test_rows_without_a_label_are_called_on_counted_and_verified(store):
    labels = Store.open(store).read_sample("train/labels")
    unlabelled = int((labels == -1).sum())
    assert 0 < unlabelled < 24
    assert (Store.open(store).read_sample("val/labels") >= 0).all()
    described = json.loads(succeeded(run_command("ckd-cache", "info", "--store", store, "--json")))
    assert (described["rows_valid"], described["labelled"], described["unlabelled"]) == (
        24,
        24 - unlabelled,
        unlabelled,
    )
    logits = Store.open(store).read("train/logits")[:, 0]
    right = (logits.argmax(axis=1) == labels)[labels >= 0]
    assert described["teacher_accuracy"] == pytest.approx(right.mean())
    assert f"of {24 - unlabelled} rows; {unlabelled} have none" in succeeded(
        run_command("ckd-cache", "info", "--store", store)
    )
    succeeded(run_command("ckd-cache", "verify", "--store", store))


def test_images_that_nothing_is_asked_about_are_counted_by_whether_they_have_a_label(store, photos):
    added = ("ckd-cache", "extend", "--store", store, "--rest", "all", "--dataset", f"imagefolder:{photos}")
    assert json.loads(succeeded(run_command(*added, "--json")))["new_calls"] == 0
    opened = Store.open(store)
    labels = opened.read_sample("train/labels")
    described = json.loads(succeeded(run_command("ckd-cache", "info", "--store", store, "--json")))
    assert (described["labelled"], described["unlabelled"]) == ((labels[:24] >= 0).sum(), (labels[:24] == -1).sum())
    assert described["rest"] == {
        "rows": len(labels) - 24,
        "labelled": (labels[24:] >= 0).sum(),
        "unlabelled": (labels[24:] == -1).sum(),
    }
    assert described["rest"]["labelled"] > 0
    assert described["rest"]["unlabelled"] > 0
    # All there is but the validation images of any n, a fifth of those with a label.
    assert len(labels) == 24 - 24 // 5 + UNLABELLED
    succeeded(run_command("ckd-cache", "verify", "--store", store))
    other = run_command(*added, "--split-seed", 6)
    assert other.returncode == 2
    assert "is not the one that it was built from: dataset.digest (store: " in other.stderr


@pytest.mark.parametrize("method", ["vanilla", "ckd", "kd"])
def test_a_method_that_reads_labels_is_refused_where_rows_have_none(method, store):
    refused = train(store, "--method", method)
    assert refused.returncode == 2
    assert "rows of" in refused.stderr
    assert "have no label, and" in refused.stderr
    assert "give a sum of losses that can, as --loss kd: match_logits, kd," in refused.stderr
    assert not list(store.parent.glob("run/metrics.csv"))


@pytest.mark.parametrize("loss", ["kd", "match_logits:compared=true"])
def test_losses_that_need_no_label_learn_from_rows_without_one(loss, store):
    trained = json.loads(succeeded(train(store, "--loss", loss, "--json")))
    assert (trained["n"], trained["teacher_calls"]) == (24, 24)
    unlabelled_first = int((Store.open(store).read_sample("train/labels")[:2] == -1).sum())
    few = train(store, "--method", "vanilla", "--n", 2)
    assert (few.returncode == 2) == (unlabelled_first > 0)


def test_validation_images_are_every_fifth_of_those_that_have_a_label():
    is_labelled = np.arange(60) % 3 > 0
    small, large = (draw_sample(60, n, 1, is_labelled) for n in (12, 52))
    assert is_labelled[large.val].all()
    assert len(large.val) == 8
    np.testing.assert_array_equal(large.train[:12], small.train)
    np.testing.assert_array_equal(large.val[: len(small.val)], small.val)
    assert not set(large.train) & set(large.val)
    np.testing.assert_array_equal(draw_sample(60, 40, 1, np.ones(60, bool)).val, draw_sample(60, 40, 1).val)


def test_too_few_labels_for_validation_are_refused(photos, weights, tmp_path):
    rows = [f"ant/0{number}.png,ant,{'test' if number > 7 else 'train'}" for number in range(9)][6:]
    rows += [f"bee/0{number}.png,bee,train" for number in range(1)]
    rows += [f"unlabelled/{number:02}.png,,train" for number in range(UNLABELLED)]
    (photos / "p.csv").write_text("\n".join(["path,label,split", *rows]))
    refused = run_command(
        "ckd-cache", "build", "--teacher", "resnet8", "--dataset", f"csv:{photos / 'p.csv'}", "--n", 4, "--weights",
        weights, "--store", tmp_path / "s", "--device", "cpu",
    )  # fmt: skip
    assert refused.returncode == 2
    assert "3 training images have a label, and every fifth of those is for validation; label more" in refused.stderr


def test_a_teacher_is_trained_on_the_images_that_have_a_label(photos, tmp_path):
    out = tmp_path / "t.safetensors"
    succeeded(
        run_command(
            "ckd-cache", "train-teacher", "--teacher", "resnet8", "--dataset", f"imagefolder:{photos}", "--split",
            "0.8/0.2", "--epochs", 1, "--device", "cpu", "--image-size", 16, "--out", out,
        )
    )  # fmt: skip
    assert out.exists()


def test_images_of_a_table_are_prepared_as_the_teachers_library_does(photos, tmp_path):
    rows = [f"{name}/{number:02}.png,{name}" for name in ("ant", "bee") for number in range(15)]
    (photos / "p.csv").write_text("\n".join(["path,label", *rows]))
    network = torchvision.models.get_model("mobilenet_v3_small", weights=None, num_classes=2)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    config = BuildConfig(
        teacher="torchvision:mobilenet_v3_small", weights=tmp_path / "w.safetensors", dataset=f"csv:{photos / 'p.csv'}",
        split="0.8/0.2", n=4, store=tmp_path / "s", device="cpu",
    )  # fmt: skip
    geometry = prepare_build(config).plan.identity.geometry
    assert (geometry.image_size, geometry.crop_size) == (256, 224)


def test_minus_one_in_a_table_or_a_list_is_no_label(photos):
    rows = [f"{name}/{number:02}.png,{name},train" for name in ("ant", "bee") for number in range(4)]
    rows += ["ant/05.png,-1,train", "ant/06.png,ant,test", "bee/06.png,bee,test"]
    (photos / "p.csv").write_text("\n".join(["path,label,split", *rows]))
    table = open_dataset(f"csv:{photos / 'p.csv'}")
    assert (table.classes, (table.train.labels == -1).sum()) == (("ant", "bee"), 1)
    (photos / "train.txt").write_text("ant/00.png\nbee/00.png\nbee/01.png -1\n")
    (photos / "test.txt").write_text("ant/06.png\nbee/06.png\n")
    listed = open_dataset(f"imagefolder:{photos}")
    assert (listed.classes, (listed.train.labels == -1).sum()) == (("ant", "bee"), 1)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_grid_whose_methods_read_labels_that_rows_lack_is_refused_before_a_call(photos, weights, tmp_path, more):
    rows = [f"{name}/{number:02}.png,{name},train" for name in ("ant", "bee") for number in range(12)]
    rows += [f"unlabelled/{number:02}.png,,train" for number in range(UNLABELLED)]
    rows += ["ant/13.png,ant,test", "bee/13.png,bee,test"]
    (photos / "p.csv").write_text("\n".join(["path,label,split", *rows]))
    grid = {
        "name": "unlabelled",
        "dataset": f"csv:{photos / 'p.csv'}",
        "pairs": [{"teacher": "resnet8", "student": "resnet8", "weights": str(weights)}],
        "methods": ["vanilla"],
        "n": [24],
        "seeds": 1,
        "training": {"max_evals": 1},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    refused = run_command("ckd-pipeline", "run", tmp_path / "grid.yaml", "--out", tmp_path / "out", *more)
    assert refused.returncode == 2
    assert "have no label, and" in refused.stderr
    assert "line 8" in refused.stderr
    assert not (tmp_path / "out" / "stores").exists()


def test_a_grid_divides_images_that_have_no_splits(photos, weights, tmp_path):
    shutil.rmtree(photos / "unlabelled")
    grid = {
        "name": "divided",
        "dataset": f"imagefolder:{photos}",
        "split": "0.8/0.2",
        "split_seed": 3,
        "pairs": [{"teacher": "resnet8", "student": "resnet8", "weights": str(weights)}],
        "methods": ["kd"],
        "n": [12],
        "seeds": 1,
        "training": {"max_evals": 1},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    run = ("ckd-pipeline", "run", tmp_path / "grid.yaml", "--out", tmp_path / "out")
    assert "1 trained, 0 failed; 12 new teacher calls" in succeeded(run_command(*run))
    (store,) = (tmp_path / "out" / "stores").iterdir()
    sources = Manifest.load(store).sources
    assert (sources["split"], sources["split_seed"]) == ("0.8/0.2", "3")
    planned, other = (
        plan_runs(read_grid(tmp_path / "grid.yaml"), "fp32")[0].folder,
        plan_runs(replace(read_grid(tmp_path / "grid.yaml"), split_seed=4), "fp32")[0].folder,
    )
    assert planned != other
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid | {"split": "0.8"}, sort_keys=False))
    refused = run_command(*run)
    assert (refused.returncode, "which make 1 together, as 0.8/0.2; got '0.8'" in refused.stderr) == (2, True)
