"""Students of other libraries: their weights load back there without us, and their logits are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from student_train.finished_student import FinishedStudent
from tests.student_train.conftest import train


def made_by_torchvision() -> nn.Module:
    import torchvision

    return torchvision.models.mobilenet_v3_small(num_classes=3)


def made_by_timm() -> nn.Module:
    import timm

    return timm.create_model("mobilenetv3_small_050", num_classes=3)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_students_file_loads_strictly_into_its_library(library, request, photograph_store, tmp_path):
    if library == "timm":
        run, module = train(photograph_store, tmp_path / "run", "timm:mobilenetv3_small_050"), made_by_timm()
    else:
        run, module = Path(request.getfixturevalue("foreign_run")), made_by_torchvision()
    module.load_state_dict(safetensors.torch.load_file(run / "student.safetensors"), strict=True)
    student = FinishedStudent.open(run)
    images = torch.randn(5, 3, student.rendering.size, student.rendering.size)
    with torch.inference_mode():
        torch.testing.assert_close(module.eval()(images), student.network(images), rtol=0, atol=0)
