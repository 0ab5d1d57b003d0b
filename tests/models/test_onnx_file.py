"""ONNX files as networks: what they say, which of it are logits and layers, and which files are refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ground.errors import InvalidInput, UnknownName
from ground.geometry import Normalisation
from models import create_model, weights_digest
from models.names import absolute_name, identity_name
from models.network import Network
from models.network_card import read_card
from models.onnx_model import read_onnx
from models.origins import Asked, Preprocessing, class_names_of, open_trained, preprocessing_of
from tests.onnx_classifier import CLASSES, SIZE, classifier, weights, written

onnx = pytest.importorskip("onnx")

CARD = {"resize": 20, "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def opened(name: object, size: int = SIZE) -> Network:
    return open_trained(f"onnx:{name}", Asked(name=str(name), image_size=size)).eval()


def shown(path: Path, size: int = 0) -> Preprocessing:
    found = preprocessing_of(f"onnx:{path}", Asked(name=str(path), image_size=size))
    assert found is not None
    return found


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def expected(inputs: Tensor) -> tuple[Tensor, Tensor]:
    conv, linear = weights()
    stage = F.conv2d(inputs, conv, stride=2, padding=1).relu()
    return stage, stage.mean(dim=(2, 3)) @ linear


@pytest.fixture
def file(tmp_path) -> Path:
    return written(tmp_path / "teacher.onnx")


def test_it_says_what_its_layers_say_under_names_that_layers_may_have(file):
    network = opened(file)
    assert network.num_classes == CLASSES
    assert network.layers == ("stage.Relu_output_0", "pooled")
    said = network.represent(images(), ["stage.Relu_output_0"])
    stage, logits = expected(images())
    assert [*said.features] == ["stage.Relu_output_0"]
    torch.testing.assert_close(said.features["stage.Relu_output_0"], stage, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(said.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network.represent(images()).logits, said.logits, rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_a_fixed_batch_is_filled_and_cut(tmp_path, count):
    network = opened(written(tmp_path / "four.onnx", classifier(batch=4)))
    said = network.represent(images(count), network.layers)
    stage, logits = expected(images(count))
    torch.testing.assert_close(said.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(said.features["stage.Relu_output_0"], stage, rtol=1e-5, atol=1e-5)


def test_channels_last_and_half_precision_are_given_what_they_take(tmp_path):
    last = opened(written(tmp_path / "last.onnx", classifier(channels_last=True)))
    half = opened(written(tmp_path / "half.onnx", classifier(kind="FLOAT16")))
    _, logits = expected(images())
    torch.testing.assert_close(last(images()), logits, rtol=1e-5, atol=1e-5)
    assert half(images()).dtype == torch.float32
    torch.testing.assert_close(half(images()), logits, rtol=2e-2, atol=2e-2)


def test_which_output_holds_the_logits_has_to_be_said_where_several_could(tmp_path):
    path = written(tmp_path / "two.onnx", classifier(outputs=("vector", "matmul", "label")))
    with pytest.raises(InvalidInput, match=r"has 2 outputs that could be logits \('vector', 'matmul'\); say which, as"):
        opened(path)
    chosen = opened(f"{path}#matmul")
    assert (chosen.num_classes, chosen.layers) == (CLASSES, ("vector",))
    assert weights_digest(chosen) != weights_digest(opened(f"{path}#vector"))
    with pytest.raises(UnknownName, match="that could be logits is called 'matmull'; did you mean matmul"):
        opened(f"{path}#matmull")
    path.with_suffix(".json").write_text(json.dumps({"output": "matmul"}))
    assert weights_digest(opened(path)) == weights_digest(chosen)
    only = written(tmp_path / "map.onnx", classifier(outputs=("/stage/Relu_output_0", "label")))
    with pytest.raises(InvalidInput, match="has no output .* that could be logits"):
        opened(only)


def test_probabilities_are_not_taken_for_logits(tmp_path):
    path = written(tmp_path / "softmax.onnx", classifier(softmax=True))
    with pytest.raises(InvalidInput, match="'logits' of .* adds up to 1 for each image: it holds probabilities"):
        opened(path)


def test_a_renamed_file_is_the_same_network_and_another_content_another(file, tmp_path):
    model = classifier()
    model.doc_string = "another"
    digests = [weights_digest(opened(path)) for path in (
        file, written(tmp_path / "renamed.onnx"), written(tmp_path / "another.onnx", model))]  # fmt: skip
    assert digests[0] == digests[1] != digests[2]


def test_a_name_keeps_its_output_wherever_it_is_written(file, monkeypatch):
    assert identity_name(f"onnx:{file}#a/b") == "onnx:teacher.onnx-a-b"
    monkeypatch.chdir(file.parent)
    assert absolute_name("onnx:teacher.onnx#logits") == f"onnx:{file}#logits"


def test_weights_beside_it_belong_to_it(tmp_path):
    def with_data(name: str) -> Path:
        (tmp_path / "data").unlink(missing_ok=True)
        onnx.save(classifier(), tmp_path / name, save_as_external_data=True, location="data", size_threshold=0)
        return tmp_path / name

    path = with_data("first.onnx")
    digest = weights_digest(opened(path))
    torch.testing.assert_close(opened(path)(images()), expected(images())[1], rtol=1e-5, atol=1e-5)
    content = bytearray((tmp_path / "data").read_bytes())
    content[3] ^= 1
    (tmp_path / "data").write_bytes(content)
    assert weights_digest(opened(path)) != digest
    assert weights_digest(opened(with_data("second.onnx"))) == digest
    (tmp_path / "data").unlink()
    with pytest.raises(InvalidInput, match="and no such file can be read"):
        read_onnx(path)


@pytest.mark.parametrize("location", ["../data", "/etc/passwd", "link", "*/_ORT_MEM_ADDR_/*", "", "sub/../../data"])
def test_weights_outside_its_folder_are_refused(tmp_path, location):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "data").write_bytes(bytes(4096))
    (folder / "link").symlink_to(tmp_path / "data")
    model = classifier()
    # In an attribute of a node of a branch, where a look at the initializers alone would miss it.
    hidden = onnx.helper.make_tensor("hidden", onnx.TensorProto.FLOAT, [1], [0.0])
    hidden.ClearField("float_data")
    hidden.data_location = onnx.TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value=location)
    branch = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["c"], value=hidden)], "branch", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["label"], ["unused"], then_branch=branch, else_branch=branch))
    with pytest.raises(InvalidInput, match=r"cannot be used \(the place of its weights is "):
        read_onnx(written(folder / "teacher.onnx", model))


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def of_many_bytes(path: Path) -> None:
    os.truncate(path, 3 << 30)


BAD_FILES = {
    "cut short": (broken, "is not a whole ONNX file"),
    "no ONNX": (lambda path: path.write_text("weights, as they say"), "is not a"),
    "empty": (lambda path: path.write_bytes(b""), "is an empty file"),
    "huge": (of_many_bytes, "has 3.2 GB, and an ONNX file no more than 2"),
    "missing": (Path.unlink, r"cannot be read \(No such file or directory\); check the path"),
    "another operator": (lambda path: written(path, classifier(domain="evil")), "onnxruntime cannot run"),
    "bytes": (lambda path: written(path, classifier(kind="UINT8")), "takes uint8 and not float numbers"),
    "vectors": (lambda path: written(path, of_vectors()), r"takes an input \(any, 48\) and not images"),
    "of tables": (lambda path: path.write_bytes(b"\x08\x07\x12\x04none"), "is not an ONNX file"),
    "grey": (lambda path: written(path, grey()), r"takes an input \(any, 1, 16, 16\) and not images"),
    "oblong": (lambda path: written(path, oblong()), r"takes an input \(any, 3, 16, 8\); give a file of square images"),
    "of a great batch": (lambda path: written(path, classifier(batch=1 << 30)), "of at most 4096 at once"),
    "two inputs": (lambda path: written(path, of_two()), r"has 2 inputs \('images', 'more'\)"),
}


def of_vectors() -> onnx.ModelProto:
    model = classifier()
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["any", 48]))
    return model


def grey() -> onnx.ModelProto:
    model = classifier()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    return model


def oblong() -> onnx.ModelProto:
    model = classifier()
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 8
    return model


def of_two() -> onnx.ModelProto:
    model = classifier()
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))
    return model


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(file, case):
    spoil, sentence = BAD_FILES[case]
    spoil(file)
    with pytest.raises(InvalidInput, match=sentence):
        opened(file)


def test_a_pipe_or_a_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    for place in (tmp_path / "pipe.onnx", tmp_path):
        with pytest.raises(InvalidInput, match="is no file; give the file of a network"):
            opened(place)


@pytest.mark.parametrize("name", ["", "#logits", "a" * 5000, "a\0b"])
def test_a_name_that_is_no_path_is_refused(name):
    with pytest.raises(InvalidInput, match=r"cannot be read|is no file"):
        opened(name)


def test_a_device_that_onnxruntime_does_not_know_is_refused_when_it_is_placed_there(file):
    network = opened(file)
    with pytest.raises(InvalidInput, match="onnxruntime here does not run on meta.*; give --device cpu, or install"):
        network.to("meta")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_package_that_is_missing_is_named_with_what_installs_it(file, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InvalidInput, match=rf"needs the package {package}; install it with: pip .*\[onnx\]'"):
        opened(file)


def test_it_cannot_be_trained(file):
    with pytest.raises(InvalidInput, match=r"is a teacher with its weights in it.*give students a network of another"):
        create_model(f"onnx:{file}", 10)


def test_another_size_than_the_files_is_refused_and_an_open_one_has_to_be_said(file, tmp_path):
    with pytest.raises(InvalidInput, match=r"takes images of 16 pixels, and would be given 32; leave out --input-size"):
        opened(file, 32)
    assert (shown(file).resize_size, shown(file).input_size, shown(file).normalisation) == (SIZE, SIZE, None)
    anything = written(tmp_path / "any.onnx", classifier(size="side"))
    with pytest.raises(InvalidInput, match="takes images of any size and does not say which; give --input-size"):
        shown(anything)
    assert shown(anything, 24).input_size == 24
    anything.with_suffix(".json").write_text(json.dumps({"size": 20}))
    assert shown(anything).input_size == 20


def test_a_card_beside_it_goes_before_what_it_says_of_itself(tmp_path):
    model = classifier()
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in CARD.items()}
    onnx.helper.set_model_props(model, texts | {"classes": '["a", "b", "c", "d", "e"]', "author": "not JSON"})
    path = written(tmp_path / "teacher.onnx", model)
    half = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert shown(path) == Preprocessing(20, SIZE, "bicubic", half)
    assert class_names_of(f"onnx:{path}") == ("a", "b", "c", "d", "e")
    path.with_suffix(".json").write_text(json.dumps({"resize": 40, "crop": 32, "files": {}, "student": "resnet8"}))
    assert shown(path) == Preprocessing(20, SIZE, "bilinear", None)
    assert class_names_of(f"onnx:{path}") is None
    (tmp_path / "teacher.onnx.json").write_text(json.dumps(CARD))
    assert shown(path) == Preprocessing(20, SIZE, "bicubic", half)


BAD_CARDS = {
    "no JSON": ("{", "cannot be used"),
    "a list": ("[]", "it is no JSON object"),
    "a size": ('{"size": 0}', "size is 0, not a whole number of pixels"),
    "a text for a number": ('{"resize": "256"}', "resize is '256', not a whole number of pixels"),
    "too large": ('{"size": 1000000}', "size is 1000000, not"),
    "another size": ('{"size": 24}', "takes images of 16 pixels, and its card says 24"),
    "a crop": ('{"resize": 20, "crop": 24}', "a crop of 24 pixels does not fit an image of 20"),
    "an interpolation": ('{"interpolation": "lanczos"}', "'lanczos' is not one of bilinear, bicubic"),
    "half of it": ('{"mean": [0, 0, 0]}', "one of mean and std"),
    "a deviation of 0": ('{"mean": [0, 0, 0], "std": [1, 0, 1]}', "positive deviations"),
    "no number": ('{"mean": [NaN, 0, 0], "std": [1, 1, 1]}', "holds NaN"),
    "a number past all": ('{"mean": [1e999, 0, 0], "std": [1, 1, 1]}', "cannot be used"),
    "what a terminal obeys": ('{"classes": ["\\u001b[2J", "b", "c", "d", "e"]}', "not a line of text"),
    "no classes": ('{"classes": []}', "names no classes"),
    "other classes": ('{"classes": ["a", "b"]}', "answers for 5 classes, and its card names 2"),
    "megabytes": (" " * (9 << 20), "larger than 8 MiB"),
}


@pytest.mark.parametrize("case", BAD_CARDS)
def test_a_card_that_cannot_be_is_refused_in_a_sentence(file, case):
    text, sentence = BAD_CARDS[case]
    file.with_suffix(".json").write_text(text)
    with pytest.raises(InvalidInput, match=sentence):
        (shown(file), opened(file))


def test_texts_in_the_file_that_cannot_be_are_refused_with_the_way_around_them(tmp_path):
    model = classifier()
    onnx.helper.set_model_props(model, {"classes": "cat,dog"})
    path = written(tmp_path / "teacher.onnx", model)
    with pytest.raises(InvalidInput, match="says of itself what cannot be .*; correct it, or put another card beside"):
        shown(path)
    path.with_suffix(".json").write_text("{}")
    assert shown(path).input_size == SIZE


def test_outputs_that_would_be_called_alike_are_refused(tmp_path):
    model = classifier(outputs=("logits", "pooled", "vector"))
    model.graph.node.append(onnx.helper.make_node("Identity", ["vector"], ["/vector/"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("/vector/", onnx.TensorProto.FLOAT, None))
    with pytest.raises(InvalidInput, match="two outputs that would both be called vector"):
        opened(written(tmp_path / "alike.onnx", model))


def test_a_card_says_whether_images_are_squashed(tmp_path):
    for texts in ({"fit": "squashed", "size": "32"}, {"fit": "centre-3", "size": "32"}):
        shown = read_card(tmp_path / "none.onnx", texts).preprocessing("onnx:none.onnx", None, 0)
        assert shown.shape == texts["fit"].partition("-")[0]
    with pytest.raises(InvalidInput, match="the fit 'round' is not one of centre,"):
        read_card(tmp_path / "none.onnx", {"fit": "round"})
