"""What a published network calls its classes is found out where its library says it."""

from __future__ import annotations

import pytest

from models.class_names import all_class_names_of
from models.origins import Asked


def class_names_of(network: str, classes: int):
    return all_class_names_of(network, classes, Asked(name=network.partition(":")[2], image_size=0))


def test_torchvisions_weights_name_their_classes():
    names = class_names_of("torchvision:resnet18", 1000)
    assert names[0] == ("tench",)
    assert len(names) == 1000


def test_timms_networks_are_named_by_wordnet_and_by_words():
    names = class_names_of("timm:tf_efficientnet_lite0", 1000)
    assert names[0] == ("n01440764", "tench", "Tinca tinca")
    assert names[701][:2] == ("n03888257", "parachute")


@pytest.mark.parametrize(
    ("network", "classes"),
    [
        ("resnet8", 10),
        ("torchvision:resnet18", 999),
        ("timm:tf_efficientnet_lite0", 101),
    ],
)
def test_where_nobody_says_it_nothing_is_guessed(network, classes):
    assert class_names_of(network, classes) is None
