"""Steps depend on the state that they change, and on nothing that a step leaves behind."""

from __future__ import annotations

import copy

import torch
from torch import nn

from models.compute import Compute
from student_train.methods import parse_method
from student_train.protocol import Protocol
from student_train.run_folder import RunFolder
from student_train.student_state import StudentState, make_optimizer
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer


def make_trainer(store, out, method: str) -> Trainer:
    config, compute = TrainConfig(student="resnet8", batch_size=16), Compute(torch.device("cpu"), "fp32")
    trainer = Trainer.open(config, store, 48, parse_method(method), compute, RunFolder(out))
    trainer.state.student.train()
    return trainer


def weights(state: StudentState) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.modules.parameters()])


def test_one_stepper_steps_several_students_as_each_would_be_alone(built_store, tmp_path):
    trainer = make_trainer(built_store, tmp_path / "run", "ckd")
    stepper, first, config = trainer.stepper, trainer.state, trainer.config
    student = copy.deepcopy(first.student)
    with torch.no_grad():
        student.head.bias += 1.0
    second = StudentState(
        student, nn.ModuleList(), make_optimizer(config, student.parameters()), Protocol(config.protocol)
    )
    alone = copy.deepcopy(second)
    expected = [stepper.step(alone).total for _ in range(3)]
    found = []
    for _ in range(3):
        stepper.step(first)
        found.append(stepper.step(second).total)
    assert found == expected
    assert torch.equal(weights(second), weights(alone))
    assert not torch.equal(weights(second), weights(first))
    assert (first.step, second.step) == (3, 3)


def test_a_step_from_the_same_state_is_the_same_step(built_store, tmp_path):
    for method in ("kd", "mixup"):
        trainer = make_trainer(built_store, tmp_path / method, method)
        trainer.stepper.step(trainer.state)
        kept = copy.deepcopy(trainer.state.saved())
        after = trainer.stepper.step(trainer.state)
        trainer.state.restore(kept, torch.device("cpu"))
        again = trainer.stepper.step(trainer.state)
        assert torch.equal(again.total, after.total)
        assert torch.equal(again.terms, after.terms)
        assert not after.total.requires_grad


def test_maps_get_their_gradients_in_the_layout_that_the_network_runs_in(built_store, tmp_path):
    trainer = make_trainer(built_store, tmp_path / "run", "fitnets")
    stepper, state = trainer.stepper, trainer.state
    batch = stepper.sampling.batch(0, labels=stepper.labels, batch_size=8, seed=0)
    inputs, _ = stepper.data.inputs(batch, 0, seed=0, student_view="fresh")
    (maps,) = stepper.represent(state.student, inputs, batch, ["layer2"]).features.values()
    found = []
    maps.grad_fn.next_functions[0][0].register_prehook(lambda gradients: found.extend(gradients))
    maps.backward(torch.randn(maps.shape))
    assert [gradient.is_contiguous(memory_format=torch.channels_last) for gradient in found] == [True]
