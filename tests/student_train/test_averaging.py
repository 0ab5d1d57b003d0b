"""The average is the formula's, of all that a network has, and costs the network nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from models import create_model
from models.network import Network
from student_train.averaging import AveragedWeights


def moved(network: Network, generator: torch.Generator) -> None:
    """As if by a step: other weights, and another batch seen by batch norm."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        network(torch.randn(4, 3, 32, 32, generator=generator))


def followed(decay: float, steps: int) -> tuple[Network, AveragedWeights, list[dict[str, np.ndarray]]]:
    """A network, its average, and all that the network was, in float64."""
    network, generator = create_model("resnet8", num_classes=5, seed=0), torch.Generator().manual_seed(0)
    average = AveragedWeights(network.train(), decay)
    seen = [{name: tensor.double().numpy().copy() for name, tensor in network.state_dict().items()}]
    for _ in range(steps):
        moved(network, generator)
        average.update(network)
        seen.append({name: tensor.double().numpy().copy() for name, tensor in network.state_dict().items()})
    return network, average, seen


# The warm-up reaches 0.2 at the third update, and 0.9 not before the 81st.
@pytest.mark.parametrize("decay", [0.2, 0.9])
def test_the_average_is_the_sum_of_all_steps_by_their_shares(decay):
    steps = 12
    _, average, seen = followed(decay, steps)
    kept = np.array([min(decay, (1 + t) / (10 + t)) for t in range(steps)])
    # What the start and each step still count for: its share, times what every later update kept.
    shares = [np.prod(kept), *((1 - kept[t]) * np.prod(kept[t + 1 :]) for t in range(steps))]
    assert sum(shares) == pytest.approx(1)
    assert int(average.updates) == steps
    for name, tensor in average.network.state_dict().items():
        if not tensor.is_floating_point():
            assert tensor == seen[-1][name] == steps
            continue
        expected = sum(share * weights[name] for share, weights in zip(shares, seen, strict=True))
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_it_is_frozen_ready_to_answer_and_apart_from_the_network():
    network, average, seen = followed(0.9, 3)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(tensor.double().numpy(), seen[-1][name])


def test_one_that_is_loaded_goes_on_as_the_one_that_was_saved():
    network, average, _ = followed(0.999, 5)
    other = AveragedWeights(create_model("resnet8", num_classes=5, seed=1), 0.999)
    other.load_state_dict(copy.deepcopy(average.state_dict()))
    moved(network, torch.Generator().manual_seed(1))
    for one in (average, other):
        one.update(network)
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        AveragedWeights(create_model("resnet8", num_classes=5), decay)
