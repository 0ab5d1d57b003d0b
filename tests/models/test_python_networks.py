"""Networks that the user's own code makes, and those of origins that packages add."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

from ground.errors import InvalidInput, UnknownName
from ground.user_code import UserCode
from models import canonical_name, create_model, names
from models.names import absolute_name, identity_name
from models.origins import Asked, class_names_of, open_trained, preprocessing_of

HERE = f"python:{__name__}"
SIZES: list[int] = []


def small(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )


def of_three():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return small(3)


of_three.classes = ("cat", "dog", "owl")
of_three.preprocessing = {"input_size": (3, 48, 48), "crop_pct": 0.75, "interpolation": "bicubic"}


def of_a_size(num_classes, image_size):
    SIZES.append(image_size)
    return small(num_classes)


def failing(num_classes):
    raise KeyError("weights.pth")


def leaving(num_classes):
    raise SystemExit(0)


def unseeded():
    return small(3)


def no_module():
    return "a network"


def of_no_size():
    return small(3)


of_no_size.preprocessing = {"input_size": "large"}


def in_half_precision():
    return of_three().half()


def asked(factory: str) -> Asked:
    return Asked(name=f"{__name__}:{factory}", image_size=16, code=UserCode.ALLOWED)


def test_a_factory_is_called_with_what_it_takes():
    assert create_model(f"{HERE}:small", 5, 0, 16, code=UserCode.ALLOWED).num_classes == 5
    create_model(f"{HERE}:of_a_size", 5, 0, 24, code=UserCode.ALLOWED)
    assert SIZES[-1] == 24


def test_code_is_run_only_where_that_was_allowed():
    with pytest.raises(InvalidInput, match="is code from outside this program.*--allow-code"):
        create_model(f"{HERE}:small", 5)


def test_a_factory_of_a_network_of_its_own_says_its_classes_and_how_it_is_shown_images():
    name = f"{HERE}:of_three"
    assert open_trained(name, asked("of_three")).num_classes == 3
    assert class_names_of(name, asked("of_three")) == ("cat", "dog", "owl")
    shown = preprocessing_of(name, asked("of_three"))
    assert (shown.resize_size, shown.input_size, shown.interpolation) == (64, 48, "bicubic")
    assert preprocessing_of(f"{HERE}:small", asked("small")) is None


def test_a_network_with_other_weights_each_time_is_refused_before_it_can_be_paid_for():
    with pytest.raises(
        InvalidInput, match="unseeded makes other weights each time, .* let it load weights, or seed it"
    ):
        open_trained(f"{HERE}:unseeded", asked("unseeded"))


def test_a_network_of_any_number_of_classes_is_not_taken_for_a_trained_one():
    with pytest.raises(InvalidInput, match="which is not trained; give --weights FILE"):
        open_trained(f"{HERE}:small", asked("small"))


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        ("failing", r"failed when it was called with \{'num_classes': 5\} \(KeyError: 'weights.pth'\)"),
        ("leaving", r"failed when it was called with .* \(SystemExit: 0\)"),
        ("no_module", "made a str; it has to make a torch.nn.Module"),
        ("SIZES", "is no factory"),
        ("missing", "cannot be imported"),
    ],
)
def test_a_factory_that_fails_is_named_with_its_reason(factory, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        create_model(f"{HERE}:{factory}", 5, code=UserCode.ALLOWED)


def test_what_a_factory_says_of_its_images_is_checked():
    with pytest.raises(InvalidInput, match="'input_size': 'large'.*which cannot be"):
        preprocessing_of(f"{HERE}:of_no_size", asked("of_no_size"))


@pytest.mark.parametrize(
    "said",
    [
        {"input_size": ()},
        {"input_size": float("inf")},
        {"input_size": -3},
        {"input_size": 1 << 20},
        {"input_size": (3, 32, 48)},
        {"input_size": 32, "crop_pct": 1e-9},
        {"input_size": 32, "crop_pct": -1},
        {"input_size": 32, "interpolation": "no filter"},
    ],
)
def test_images_that_cannot_be_are_refused_before_any_is_made(said, monkeypatch):
    monkeypatch.setattr(of_no_size, "preprocessing", said)
    with pytest.raises(InvalidInput, match="of_no_size (says of its images|is said to be shown)"):
        preprocessing_of(f"{HERE}:of_no_size", asked("of_no_size"))


def test_images_smaller_than_the_input_fill_it_and_that_is_said(monkeypatch):
    monkeypatch.setattr(of_no_size, "preprocessing", {"input_size": 46, "crop_pct": 1.15})
    shown = preprocessing_of(f"{HERE}:of_no_size", asked("of_no_size"))
    assert (shown.resize_size, shown.input_size) == (46, 46)
    assert "images of 40 pixels on a black square of 46" in shown.remark


@pytest.mark.parametrize("said", [5, "cat", {"cat": 0}])
def test_classes_that_are_no_list_are_refused(said, monkeypatch):
    monkeypatch.setattr(of_three, "classes", said)
    with pytest.raises(InvalidInput, match="says that its classes are .*; give a list of their names"):
        class_names_of(f"{HERE}:of_three", asked("of_three"))


def test_a_network_in_half_precision_is_used_as_float32_and_that_is_said(caplog):
    caplog.set_level("INFO")
    network = open_trained(f"{HERE}:in_half_precision", asked("in_half_precision")).eval()
    assert "in_half_precision keeps its weights as float16; they are used as float32" in caplog.text
    assert network(torch.zeros(1, 3, 16, 16)).dtype == torch.float32


def test_an_address_without_a_factory_is_refused():
    with pytest.raises(InvalidInput, match="names no factory; give it as python:package.module:factory"):
        create_model("python:numpy", 5, code=UserCode.ALLOWED)


class Acme:
    """An origin of another package."""

    package = extra = None

    def check(self, name):
        if name != "small":
            raise UnknownName("network of acme", name, ["small"])

    def preprocessing(self, asked):
        return None

    def class_names(self, asked):
        return None

    def untrained(self, asked, num_classes):
        return small(num_classes)

    def trained(self, asked):
        return small(2)


ACME = Acme()


def test_a_package_adds_an_origin_by_an_entry_point(monkeypatch):
    entry = EntryPoint("acme", f"{__name__}:ACME", "ckd.teachers")
    monkeypatch.setattr(names, "entry_points", lambda group: [entry] if group == "ckd.teachers" else [])
    names.registered_origins.cache_clear()
    try:
        assert canonical_name("acme:small") == "acme:small"
        assert create_model("acme:small", 7, image_size=16).num_classes == 7
        with pytest.raises(UnknownName, match="no network of acme is called 'smal'; did you mean small"):
            create_model("acme:smal", 7)
    finally:
        names.registered_origins.cache_clear()


def test_a_store_knows_a_network_by_a_name_without_a_path(tmp_path):
    assert identity_name("WRN40_2") == "wrn_40_2"
    assert identity_name("python:my.models:teacher") == "python:my.models.teacher"


def test_a_network_in_a_file_is_named_so_that_it_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "teacher.onnx").touch()
    monkeypatch.chdir(tmp_path)
    assert absolute_name("onnx:teacher.onnx") == f"onnx:{tmp_path}/teacher.onnx"
    assert absolute_name("timm:resnet18") == "timm:resnet18"


def deep(num_classes):
    stages = [nn.Sequential(nn.Conv2d(into, 4, 3, 2, 1), nn.ReLU()) for into in (3, 4)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))


def test_layers_beside_a_networks_own_choice_are_read_where_they_are_asked_for():
    network = create_model(f"{HERE}:deep", 5, 0, 16, code=UserCode.ALLOWED, further=["1.0", "1", "pooled"]).eval()
    assert network.feature_names == ("0", "1", "pooled")
    assert network.extra_names == ("last", "1.0")
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        said = network.represent(images, ["1.0"]).features
    torch.testing.assert_close(said["1"], said["1.0"].relu())


def test_a_layer_that_it_does_not_have_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match=r"no layer of the network is called '1.2'; did you mean 1.1, 1.0"):
        create_model(f"{HERE}:deep", 5, 0, 16, code=UserCode.ALLOWED, further=["1.2"])
