"""Every method trains from a store alone: its loss falls, and a resumed training equals an uninterrupted one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from models.compute import Compute
from student_train.losses import LOSSES
from student_train.methods import Method, method_names, parse_losses, parse_method
from student_train.run_folder import RunFolder
from student_train.sampling import Batch, Sampling
from student_train.trainer import TrainConfig, Trainer
from teacher_cache.build import build
from teacher_cache.plan import BuildConfig, plan_build

CPU = Compute(torch.device("cpu"), "fp32")
EVERYTHING = "all,last,layer1.pre,layer2.pre,layer3.pre"
SETTINGS = {"rkd_d": "dims=5", "ft": "epochs=1", "crd": "negatives=64", "fitnets+crd": "crd=0.8", "vid+crd": "crd=0.8"}


@pytest.fixture(scope="module")
def rich_store(tmp_path_factory, weights):
    """Two views of 48 rows, with everything that a teacher can give."""
    config = BuildConfig(
        teacher="resnet8",
        weights=weights,
        dataset="digits",
        n=48,
        views=2,
        features=EVERYTHING,
        store=tmp_path_factory.mktemp("rich") / "store",
        device="cpu",
    )
    build(plan_build(config))
    return config.store


@dataclass(frozen=True)
class SameBatch(Sampling):
    """The first batch of another sampling, again and again: what is learned of it has to show."""

    first: Sampling

    def batch(self, step: int, *, labels: Tensor, batch_size: int, seed: int) -> Batch:
        return self.first.batch(0, labels=labels, batch_size=batch_size, seed=seed)


def specified(name: str) -> str:
    return f"{name}:{SETTINGS[name]}" if name in SETTINGS else name


def make_trainer(store, out, name: str, method: Method | None = None) -> Trainer:
    spec = specified(name)
    config = TrainConfig(student="resnet8", method=spec, seed=3, batch_size=8, lr=0.01, student_view="teacher")
    trainer = Trainer.open(config, store, None, method or parse_method(spec), CPU, RunFolder(out))
    trainer.sampling = SameBatch(trainer.sampling)
    trainer.student.train()
    return trainer


@pytest.mark.parametrize("name", method_names())
def test_a_method_lowers_its_loss_and_resumes_exactly(rich_store, tmp_path, name):
    whole = make_trainer(rich_store, tmp_path, name)
    whole.prepare()
    losses = [whole.train_step() for _ in range(6)]
    tmp_path.mkdir(exist_ok=True)
    whole._save()
    after = [whole.train_step() for _ in range(6)]
    losses += after
    assert all(loss.isfinite() for loss in losses)
    assert torch.stack(losses[-3:]).mean() < torch.stack(losses[:2]).mean()

    resumed = make_trainer(rich_store, tmp_path, name)
    resumed._restore(resumed.folder.load_state(resumed._identity()))
    resumed.student.train()
    again = [resumed.train_step() for _ in range(6)]
    assert again == after
    for (key, ours), theirs in zip(
        whole.modules.state_dict().items(), resumed.modules.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("name", [*LOSSES, "kd standardised"])
def test_a_loss_shows_a_student_that_has_diverged(rich_store, tmp_path, name):
    """Alone, without the cross-entropy that would show it too."""
    loss = "kd:standardised=true" if name == "kd standardised" else specified(name)
    trainer = make_trainer(rich_store, tmp_path, name, parse_losses([loss]))
    with torch.no_grad():
        next(trainer.student.parameters()).fill_(torch.nan)
    assert not trainer.train_step().isfinite()
