"""A photograph gets the very logits that evaluation gave it, and one that cannot be read is named beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ground.errors import InvalidInput
from ground.geometry import Fit
from ground.listing import LeftOut
from ground.views import evaluation_batches
from models.compute import Compute
from storage.store import Store
from student_train.finished_student import FinishedStudent
from student_train.prediction import find_images, predict
from tests.running import run_command

CPU = Compute.choose("cpu", "fp32")


def evaluated(run: Path, store: Path) -> torch.Tensor:
    """Logits of all test images of a store, as the training evaluated them."""
    student, opened = FinishedStudent.open(run), Store.open(store)
    images, labels = (torch.from_numpy(opened.read_sample(f"test/{name}")) for name in ("images", "labels"))
    CPU.place(student.network)
    with torch.inference_mode():
        return torch.cat(
            [student.network(inputs) for inputs, _ in evaluation_batches(images, labels, student.rendering)]
        )


@pytest.mark.parametrize("which", ["finished_run", "foreign_run"])
def test_photographs_of_the_test_split_get_the_very_logits_of_evaluation(request, which, photograph_store, photographs):
    run = request.getfixturevalue(which)
    student = FinishedStudent.open(run)
    files = find_images([photographs / "test"], LeftOut())
    said = torch.stack([prediction.logits for prediction in predict(student, files, CPU)])
    torch.testing.assert_close(said, evaluated(run, photograph_store), rtol=0, atol=0)
    labels = Store.open(photograph_store).read_sample("test/labels")
    accuracy = float((said.argmax(dim=1).numpy() == labels).mean())
    assert accuracy == pytest.approx(student.record.test_accuracy)


def test_a_photograph_alone_is_prepared_as_among_others(finished_run, photograph_store, photographs):
    student = FinishedStudent.open(finished_run)
    assert student.fit == Fit(shape="centre-1", interpolation="bicubic")
    (alone,) = predict(student, [photographs / "test" / "dog" / "3.png"], CPU)
    expected = evaluated(finished_run, photograph_store)[6 + 3]
    torch.testing.assert_close(alone.logits, expected, rtol=1e-5, atol=1e-6)


def test_the_command_names_classes_with_probabilities_that_add_up(finished_run, photographs):
    shown = run_command("ckd-train", "predict", finished_run, photographs / "test", "--top", 9, "--json")
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert len(document["images"]) == 18
    first = document["images"][0]
    assert first["image"].endswith("test/cat/0.png")
    assert {answer["class"] for answer in first["best"]} == {"cat", "dog", "owl"}
    shares = [answer["probability"] for answer in first["best"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    table = run_command("ckd-train", "predict", finished_run, photographs / "test" / "owl", "--top", 2)
    assert table.returncode == 0, table.stderr
    assert table.stdout.count("owl/") == 6
    assert table.stdout.count(" %") == 12


def test_a_file_that_does_not_decode_is_named_and_the_rest_is_answered(finished_run, photographs, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "notes.txt").write_text("of no concern")
    shown = run_command("ckd-train", "predict", finished_run, tmp_path, "--json")
    assert shown.returncode == 1
    assert "bad.png: not an image" in shown.stderr
    assert "left out: 1 no image by their suffix" in shown.stderr
    bad, good = json.loads(shown.stdout)["images"]
    assert (bad["problem"], bad["best"], good["problem"]) == ("not an image", [], None)
    assert len(good["best"]) == 3


def test_what_is_no_image_to_begin_with_is_refused(finished_run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="there are no images in"):
        find_images([tmp_path / "empty"], LeftOut())
    missing = run_command("ckd-train", "predict", finished_run, tmp_path / "none.png")
    assert missing.returncode == 2
    assert "there is no file or folder" in missing.stderr
    unfinished = run_command("ckd-train", "predict", tmp_path / "empty", tmp_path)
    assert unfinished.returncode == 2
