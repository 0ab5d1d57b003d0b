"""What is saved of a student is all that its training has changed."""

from __future__ import annotations

import copy
import io
import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from models import create_model
from storage.ledger_chain import Seal
from student_train.averaging import AveragedWeights
from student_train.bound_method import Losses
from student_train.protocol import Protocol, ProtocolConfig
from student_train.student_state import StudentState, state_digest

CPU = torch.device("cpu")
ROW = {"step": 3, "epoch": 1, "lr": 0.1, "train_loss": 2.0, "val_accuracy": 0.5, "test_accuracy": 0.5}


def fresh(seed: int, average: float = 0.0) -> StudentState:
    student, learned = (
        create_model("resnet8", num_classes=5, seed=seed),
        nn.ModuleList([nn.Identity(), nn.Linear(2, 2)]),
    )
    parameters = [*student.parameters(), *learned.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    averaged = AveragedWeights(student, average) if average else None
    return StudentState(student, learned, optimizer, Protocol(ProtocolConfig()), averaged)


def step(state: StudentState) -> None:
    said = state.student(torch.ones(2, 3, 32, 32))
    state.optimizer.zero_grad()
    said.square().sum().backward()
    state.optimizer.step()
    state.advance()
    state.losses.append(Losses(said.detach().sum(), torch.stack([said.detach().mean(), torch.tensor(2.0)])))


def written_and_read(saved: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def weights(state: StudentState) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.modules.parameters()])


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_restored_state_goes_on_as_the_saved_one(average):
    one, other = fresh(0, average), fresh(1, average)
    for _ in range(2):
        step(one)
    one.remember()
    step(one)
    one.protocol.update(0.5)
    one.rows.append(ROW)
    one.seconds = 1.5
    other.restore(written_and_read(one.saved()), CPU)
    assert (other.step, other.seconds, other.rows) == (3, 1.5, one.rows)
    assert other.protocol == one.protocol
    for state in (one, other):
        step(state)
    assert torch.equal(weights(one), weights(other))
    assert one.take_losses() == other.take_losses()
    for state in (one, other):
        state.go_back()
        step(state)
    assert torch.equal(weights(one), weights(other))


def test_losses_are_means_over_the_steps_since_they_were_taken():
    state = fresh(0)
    for total in (1.0, 3.0):
        state.losses.append(Losses(torch.tensor(total), torch.tensor([total / 2, 7.0])))
    assert state.take_losses() == (2.0, [1.0, 7.0])
    state.losses.append(Losses(torch.tensor(5.0), torch.tensor([5.0, 5.0])))
    assert state.take_losses() == (5.0, [5.0, 5.0])


def test_a_state_of_a_release_that_kept_the_sum_alone_goes_on():
    one, other = fresh(0), fresh(1)
    step(one)
    kept = written_and_read(one.saved())
    del kept["terms"]
    other.restore(kept, CPU)
    step(one)
    step(other)
    total, terms = other.take_losses()
    assert total == one.take_losses()[0]
    assert terms == [None, None], "what was not recorded is not guessed"


@pytest.mark.parametrize("test_accuracy", [None, 0.5])
def test_a_state_goes_on_whether_or_not_test_images_were_measured(test_accuracy):
    one, other = fresh(0), fresh(1)
    one.protocol.update(0.5)
    one.rows.append(ROW | {"test_accuracy": test_accuracy})
    other.restore(written_and_read(one.saved()), CPU)
    assert other.rows == one.rows


def test_it_is_known_whether_the_weights_are_the_best():
    state = fresh(0)
    assert state.is_at_best
    step(state)
    assert not state.is_at_best
    state.remember()
    assert state.is_at_best
    state.student.head.bias.data[0] += 1
    assert not state.is_at_best
    state.go_back()
    assert state.is_at_best


def test_going_back_forgets_the_momentum():
    state = fresh(0)
    before = weights(state)
    step(state)
    assert state.optimizer.state
    state.go_back()
    assert torch.equal(weights(state), before)
    assert not state.optimizer.state


def test_the_best_average_becomes_both_the_average_and_the_weights_that_go_on():
    state = fresh(0, average=0.9)
    for _ in range(3):
        step(state)
    best = {name: tensor.clone() for name, tensor in state.evaluated.state_dict().items()}
    assert state.evaluated is not state.student
    assert any(not torch.equal(tensor, state.student.state_dict()[name]) for name, tensor in best.items())
    state.remember()
    step(state)
    state.go_back()
    for network in (state.student, state.evaluated):
        assert all(torch.equal(tensor, best[name]) for name, tensor in network.state_dict().items())
    assert not state.optimizer.state
    # It goes on from there, and is not at its beginning.
    step(state)
    assert int(state.average.updates) == state.step == 5


def test_the_state_of_an_average_that_somebody_changed_is_refused():
    state = fresh(0, average=0.9)
    step(state)
    for name, value in (("2.updates", torch.tensor(-10)), ("2.network.fc.weight", torch.zeros(5, 63))):
        saved = written_and_read(state.saved())
        saved["modules"][name] = value
        with pytest.raises(ValueError, match="the average is of other steps|is of another shape"):
            fresh(1, average=0.9).restore(saved, CPU)
    # A run with an average does not go on from the state of one without, nor the other way.
    for one, other in ((0.0, 0.9), (0.9, 0.0)):
        with pytest.raises(ValueError, match="the names are others"):
            fresh(1, other).restore(written_and_read(fresh(0, one).saved()), CPU)


def test_an_average_that_is_no_number_is_seen():
    state = fresh(0, average=0.9)
    with torch.no_grad():
        state.evaluated.head.weight[0, 0] = math.nan
    assert not state.is_finite()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_seen(value):
    state = fresh(0)
    assert state.is_finite()
    with torch.no_grad():
        state.student.head.weight[0, 0] = value
    assert not state.is_finite()


def saved_after_a_step() -> dict[str, Any]:
    state = fresh(0)
    step(state)
    return written_and_read(state.saved())


def put(*path: Any) -> Any:
    """A change of a saved state: the last of `path` is put where the others lead."""
    *way, last, value = path

    def change(saved: dict[str, Any]) -> None:
        for name in way:
            saved = saved[name]
        saved[last] = value

    return change


WEIGHT = "0.head.weight"


@pytest.mark.parametrize(
    "change",
    [
        put("step", -1),
        put("step", math.inf),
        put("step", "7"),
        put("seconds", math.nan),
        put("rows", "[1]"),
        put("rows", "{"),
        put("rows", json.dumps([ROW])),
        put("protocol", "reached", -2),
        put("protocol", "best", math.nan),
        put("protocol", "best", 0.9),
        put("protocol", "evals", 1),
        put("protocol", None),
        put("losses", torch.zeros(1, dtype=torch.int64)),
        put("losses", torch.zeros(1, 1)),
        put("losses", [1.0]),
        put("terms", torch.zeros(1, 3)),
        put("terms", None),
        put("modules", WEIGHT, torch.zeros(5, 63)),
        put("modules", WEIGHT, torch.zeros(5, 64, dtype=torch.complex64)),
        put("modules", WEIGHT, "weights"),
        put("modules", []),
        put("best", 3, torch.zeros(1)),
        put("optimizer", "state", 0, "momentum_buffer", torch.zeros(2)),
        put("optimizer", "state", 0, {}),
        put("optimizer", "state", 10_000, {"momentum_buffer": None}),
        put("optimizer", "state", "0", {"momentum_buffer": None}),
        put("optimizer", []),
    ],
)
def test_a_state_that_somebody_changed_is_refused_when_it_is_read_and_not_at_a_later_step(change):
    saved = saved_after_a_step()
    change(saved)
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError, RuntimeError)):
        fresh(1).restore(saved, CPU)


def test_an_optimizers_settings_are_those_of_the_run_whatever_a_state_says():
    saved, state = saved_after_a_step(), fresh(1)
    saved["optimizer"]["param_groups"] = [{"lr": "high", "params": []}]
    state.restore(saved, CPU)
    assert state.optimizer.param_groups[0]["momentum"] == 0.9
    step(state)


def test_a_states_digest_stands_for_all_that_is_in_it():
    saved, digests = saved_after_a_step(), set()
    for change in (put("step", 1), put("step", 1.0), put("rows", "[ ]"), put("modules", WEIGHT, torch.zeros(5, 64))):
        other = copy.deepcopy(saved)
        change(other)
        digests.add(state_digest(other, Seal(None)))
    assert len(digests) == 4
    assert state_digest(saved, Seal(None)) in digests, "the first of them changes nothing"
    assert state_digest(saved, Seal("key")) not in digests


@pytest.mark.parametrize("tensor", [torch.empty(0), torch.tensor(2.0), torch.ones(3, 2, dtype=torch.bfloat16).T])
def test_a_digest_is_taken_of_any_tensor(tensor):
    assert state_digest({"a": tensor}, Seal(None)) == state_digest({"a": tensor.clone()}, Seal(None))
