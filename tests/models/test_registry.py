"""Names and seeds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import UnknownName
from models import canonical_name, create_model, model_names, network_shape, weights_digest


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("wrn40_2", "wrn_40_2"),
        ("wrn_40_2", "wrn_40_2"),
        ("WRN-40-2", "wrn_40_2"),
        ("ShuffleV1", "ShuffleV1"),
        ("shufflev1", "ShuffleV1"),
        ("mobilenetv2", "MobileNetV2"),
        ("resnet8x4", "resnet8x4"),
        ("RESNET-50", "ResNet50"),
    ],
)
def test_both_spellings_name_one_network(given_name: str, expected: str) -> None:
    assert canonical_name(given_name) == expected


@given(name=st.sampled_from(model_names()), data=st.data())
def test_case_underscores_and_hyphens_do_not_matter(name: str, data: st.DataObject) -> None:
    pieces = [
        data.draw(st.sampled_from([letter.upper(), letter.lower()])) + data.draw(st.sampled_from(["", "_", "-"]))
        for letter in name
        if letter not in "_-"
    ]
    assert canonical_name("".join(pieces)) == name


@pytest.mark.parametrize(("wrong", "nearest"), [("wrn_40_3", "wrn_40_2"), ("Resnet-9", "resnet8"), ("vgg_12", "vgg")])
def test_unknown_name_suggests_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(UnknownName, match=f"no network is called '{wrong}'; did you mean .*{nearest}"):
        create_model(wrong, num_classes=2)


def test_a_name_like_none_lists_them_all() -> None:
    with pytest.raises(UnknownName, match=r"known: .*ShuffleV2, .*resnet8") as caught:
        canonical_name("qqqq")
    assert caught.value.exit_code == 2


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (weights_digest(create_model("resnet8", 10, seed=seed)) for seed in (7, 7, 8))
    assert one == same != other
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_seed_the_global_generator_decides() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = create_model("resnet8", 10), create_model("resnet8", 10)
        torch.manual_seed(0)
        again = create_model("resnet8", 10)
    assert weights_digest(first) == weights_digest(again) != weights_digest(second)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50"])
@pytest.mark.parametrize("side", [32, 56])
def test_the_shape_of_a_network_is_what_a_real_one_says(name: str, side: int) -> None:
    state = torch.get_rng_state()
    shape = network_shape(name, 7, side)
    assert torch.equal(torch.get_rng_state(), state)
    network = create_model(name, 7, seed=0).eval()
    with torch.inference_mode():
        said = network.represent(torch.zeros(1, 3, side, side), network.extra_names)
    assert dict(shape.outputs) == {"logits": (7,)} | {key: tuple(t.shape[1:]) for key, t in said.features.items()}
    assert shape.layers == network.layers
    assert shape.num_bytes == sum(tensor.nbytes for tensor in network.state_dict().values())
