"""Every method trains from a store alone: its loss falls, and a resumed training equals an uninterrupted one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ground.errors import Diverged, InvalidInput
from models.compute import Compute
from models.reused_head import rebuild
from storage.store import Store
from student_train import trainer as trainer_module
from student_train.losses import LOSSES
from student_train.method_spec import MethodSpec
from student_train.methods import method_names, parse_losses, parse_method
from student_train.protocol import ProtocolConfig
from student_train.run_folder import RunFolder
from student_train.sampling import Batch, Sampling
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build

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
    build(*prepare_build(config))
    return config.store


@dataclass(frozen=True)
class SameBatch(Sampling):
    """The first batch of another sampling, again and again: what is learned of it has to show."""

    first: Sampling

    def batch(self, step: int, *, labels: Tensor, batch_size: int, seed: int) -> Batch:
        return self.first.batch(0, labels=labels, batch_size=batch_size, seed=seed)


def specified(name: str) -> str:
    return f"{name}:{SETTINGS[name]}" if name in SETTINGS else name


def make_trainer(store, out, name: str, method: MethodSpec | None = None, asked_view: str = "teacher") -> Trainer:
    spec = specified(name)
    config = TrainConfig(student="resnet8", seed=3, batch_size=8, lr=0.01, student_view=asked_view)
    trainer = Trainer.open(config, store, None, method or parse_method(spec), CPU, RunFolder(out))
    trainer.stepper.sampling = SameBatch(trainer.stepper.sampling)
    trainer.state.student.train()
    return trainer


@pytest.mark.parametrize("name", method_names())
def test_a_method_lowers_its_loss_and_resumes_exactly(rich_store, tmp_path, name):
    whole = make_trainer(rich_store, tmp_path, name)
    whole.prepare()
    for _ in range(6):
        whole.state.losses.append(whole.train_step())
    losses = [loss.total for loss in whole.state.losses]
    whole.save_state()
    after = [whole.train_step().total for _ in range(3)]
    losses += after
    assert all(loss.isfinite() for loss in losses)
    assert torch.stack(losses[-3:]).mean() < torch.stack(losses[:2]).mean()

    resumed = make_trainer(rich_store, tmp_path, name)
    resumed.restore_state(resumed.folder.load_state(resumed.settings()))
    resumed.state.student.train()
    again = [resumed.train_step().total for _ in range(3)]
    assert again == after
    for (key, ours), theirs in zip(
        whole.state.modules.state_dict().items(), resumed.state.modules.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("name", [*LOSSES, "kd standardised"])
def test_a_loss_shows_a_student_that_has_diverged(rich_store, tmp_path, name):
    """Alone, without the cross-entropy that would show it too."""
    loss = "kd:standardised=true" if name == "kd standardised" else specified(name)
    trainer = make_trainer(rich_store, tmp_path, name, parse_losses([loss]))
    with torch.no_grad():
        next(trainer.state.student.parameters()).fill_(torch.nan)
    assert not trainer.train_step().total.isfinite()


def train(store, out, *losses: str, comparison: str | None = None, **settings) -> torch.Tensor:
    """One step of a sum of losses."""
    config = TrainConfig(student="resnet8", seed=3, batch_size=8, **settings)
    method = parse_losses(losses, comparison)
    trainer = Trainer.open(config, store, None, method, CPU, RunFolder(out))
    trainer.state.student.train()
    return trainer.train_step().total


def test_losses_see_the_student_that_simkd_made(rich_store, tmp_path):
    for name in ("cc", "crd:on=pooled,negatives=16", "srrl", "sdd", "catkd"):
        for losses in (("simkd", name), (name, "simkd")):
            assert train(rich_store, tmp_path, *losses).isfinite()
    with pytest.raises(InvalidInput, match="simkd and simkd would each change what the student is"):
        train(rich_store, tmp_path, "simkd", "simkd:on=pooled")


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_reused_last_layer_is_not_anchored(rich_store, tmp_path, average):
    method = parse_losses(["simkd:compared=true"], "sampled")
    config = TrainConfig(student="resnet8", batch_size=8, average=average, protocol=ProtocolConfig(max_evals=1))
    trainer = Trainer.open(config, rich_store, None, method, CPU, RunFolder(tmp_path))
    trainer.run()
    state = load_file(tmp_path / "student.safetensors")
    kept = Store.open(rich_store).read_parameters()
    torch.testing.assert_close(state["classifier.bias"], torch.from_numpy(kept["head/bias"]), rtol=0, atol=0)
    images = torch.zeros(2, 3, 32, 32)
    torch.testing.assert_close(rebuild("resnet8", state).eval()(images), trainer.state.evaluated.eval()(images))


def test_maps_are_learned_from_the_crop_that_the_teacher_saw(rich_store, tmp_path):
    views = {}
    for name in ("kd", "hint", "cc"):
        trainer = make_trainer(rich_store, tmp_path, name, asked_view="auto")
        views[name] = trainer.config.student_view
    assert views == {"kd": "fresh", "hint": "teacher", "cc": "fresh"}
    assert make_trainer(rich_store, tmp_path, "hint", asked_view="fresh").config.student_view == "fresh"


def test_pairs_that_fit_no_memory_are_refused_before_training(rich_store, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "free_memory", lambda compute: 1e8)
    with pytest.raises(InvalidInput, match=r"vid of all 8\^2 pairs of a batch would take .* compare sampled pairs"):
        train(rich_store, tmp_path, "vid:compared=true", comparison="all")
    assert train(rich_store, tmp_path, "match_logits:compared=true", comparison="all").isfinite()


def test_a_student_that_diverges_in_the_last_step_is_found_out(rich_store, tmp_path):
    protocol = ProtocolConfig(max_evals=1)
    config = TrainConfig(student="resnet8", batch_size=48, protocol=protocol)
    trainer = Trainer.open(config, rich_store, None, parse_method("kd"), CPU, RunFolder(tmp_path))
    step = trainer.train_step

    def too_far():
        loss = step()
        with torch.no_grad():
            trainer.state.student.head.weight[0, 0] = torch.inf
        return loss

    trainer.train_step = too_far
    with pytest.raises(Diverged, match="a weight of the student is not finite at step 1; lower --lr"):
        trainer.run()
