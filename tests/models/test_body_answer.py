"""A network without a head answers with something else than logits, and the vector in it is found."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ground.errors import InvalidInput
from models.body_answer import Answer, square_of
from models.module_network import ModuleNetwork
from models.registry import shape_of


@dataclass
class Said:
    """As transformers' models answer."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None


class Body(nn.Module):
    """Patches, and perhaps a class token; `answers` makes of the tokens what it answers with."""

    def __init__(self, answers, prefix: int = 1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, prefix, 8, generator=torch.Generator().manual_seed(0)))
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.answers = answers

    def forward(self, images: Tensor):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.answers(self.block(torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)))


class Blocks(nn.Module):
    """A body whose answer is its last map."""

    def __init__(self, is_channels_last: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 10, 3, stride=2, padding=1)
        self.is_channels_last = is_channels_last

    def forward(self, images: Tensor) -> Tensor:
        said = self.second(self.first(images))
        return said.permute(0, 2, 3, 1) if self.is_channels_last else said


def images(size: int = 16) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


VECTORS = {
    "what the network pools": (lambda tokens: Said(tokens, tokens[:, 0] * 2), 1, lambda tokens: tokens[:, 0] * 2),
    "a pooled map of one position": (
        lambda tokens: Said(tokens, tokens[:, :1].transpose(1, 2)[..., None]), 1, lambda tokens: tokens[:, 0],
    ),
    "the class token of a record": (Said, 1, lambda tokens: tokens[:, 0]),
    "the class token before registers": (Said, 5, lambda tokens: tokens[:, 0]),
    "the mean where there is none": (Said, 0, lambda tokens: tokens.mean(dim=1)),
    "the class token of tokens": (lambda tokens: tokens, 1, lambda tokens: tokens[:, 0]),
    "a vector": (lambda tokens: tokens[:, 3], 1, lambda tokens: tokens[:, 3]),
    "the first of a tuple": (lambda tokens: (tokens, 0), 1, lambda tokens: tokens[:, 0]),
}  # fmt: skip


@pytest.mark.parametrize("case", VECTORS)
def test_a_body_gives_features_and_a_vector_and_no_logits(case):
    answers, prefix, vector = VECTORS[case]
    torch.manual_seed(0)
    network = ModuleNetwork(Body(answers, prefix), 16, classifies=False).eval()
    with torch.inference_mode():
        said = network.represent(images())
        tokens = Body(lambda tokens: tokens, prefix)
        tokens.load_state_dict(network.module.state_dict())
        torch.testing.assert_close(said.features["pooled"], vector(tokens(images())))
    assert (network.num_classes, network.head) == (0, None)
    assert said.logits.shape == (3, 0)
    assert list(said.features) == [*network.feature_names]
    assert "logits" not in shape_of(network, 16).outputs


@pytest.mark.parametrize("is_channels_last", [False, True])
def test_a_map_is_averaged_over_its_positions(is_channels_last):
    torch.manual_seed(0)
    network = ModuleNetwork(Blocks(is_channels_last), 32, classifies=False).eval()
    assert network.layers == ("first", "second", "pooled", "last")
    with torch.inference_mode():
        said = network.represent(images(32), ["last"])
    torch.testing.assert_close(said.features["last"], said.features["second"])
    torch.testing.assert_close(said.features["pooled"], said.features["second"].mean(dim=(2, 3)))


def test_an_answer_without_a_vector_leaves_the_layers():
    network = ModuleNetwork(Body(lambda tokens: {"tokens": tokens}), 16, classifies=False).eval()
    assert "pooled" not in network.layers
    with torch.inference_mode():
        assert [*network.represent(images()).features] == [*network.feature_names]


def test_tokens_that_are_no_square_have_no_mean_that_means_anything():
    assert Answer.of(torch.zeros(2, 27, 8)) == Answer(None, prefix=2)
    assert Answer.of(torch.zeros(2, 3, 8)) is None
    assert Answer.of(torch.zeros(2, 27, 8), prefix=1) is None
    assert square_of(26, None) == (1, 5)
    assert square_of(26, 3) is None


def test_who_does_not_say_that_it_is_a_body_has_to_answer_with_logits():
    with pytest.raises(InvalidInput, match="does not answer with logits"):
        ModuleNetwork(Body(Said), 16)
