"""Networks of transformers' folders answer as its own do, and are shown the pixels that its processors make."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ground.errors import InvalidInput
from ground.fitting import fitted
from ground.geometry import Fit, ViewGeometry
from ground.views import apply_views, plain_views
from models import create_model, load_weights, weights_digest
from models.module_network import ModuleNetwork
from models.network import Network
from models.origins import Asked, class_names_of, open_trained, preprocessing_of
from models.origins.huggingface_processor import preprocessing_from
from tests.models import huggingface_folders as folders

transformers = pytest.importorskip("transformers")

PROMPTS = (
    ("cat", "a photo of a cat"),
    ("dog", "a photo of a dog"),
    ("dog", "a drawing of a dog"),
    ("owl", "owl"),
)
SHAPES = ((601, 404), (211, 320), (320, 213), (64, 64), (33, 500), (150, 47))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each kind, by its name."""
    root = tmp_path_factory.mktemp("folders")
    makers = {"vit": folders.save_vit, "clip": folders.save_clip, "siglip": folders.save_siglip}
    return {name: make(root / name) for name, make in {**makers, "dino": folders.save_dino}.items()}


def asked(folder: Path, size: int = 32, **more: object) -> Asked:
    return Asked(name=str(folder), image_size=size, **more)


def trained(folder: Path, size: int = 32, **more: object) -> Network:
    return open_trained(f"hf:{folder}", asked(folder, size, **more)).eval()


def images(size: int, count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def photograph(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width).integers(0, 256, (11, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def test_a_classifier_answers_as_transformers_own(saved):
    own = transformers.AutoModelForImageClassification.from_pretrained(saved["vit"]).eval()
    network = trained(saved["vit"])
    with torch.inference_mode():
        said = network.represent(images(32))
        expected = own(images(32), output_hidden_states=True)
    # Its default attention rounds otherwise.
    torch.testing.assert_close(said.logits, expected.logits, rtol=0, atol=1e-6)
    first = expected.hidden_states[1][:, 1:].transpose(1, 2).reshape(6, 32, 4, 4)
    torch.testing.assert_close(said.features["vit.layers.0"], first, rtol=0, atol=1e-5)
    assert network.head is not None
    assert class_names_of(f"hf:{saved['vit']}") == folders.CLASSES


def test_answers_do_not_depend_on_the_batch(saved):
    network = trained(saved["vit"])
    with torch.inference_mode():
        together = network(images(32, 12))
        torch.testing.assert_close(network(images(32, 12)), together, rtol=0, atol=0)
        alone = torch.cat([network(image[None]) for image in images(32, 12)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)


def test_a_file_of_weights_fits_the_folders_configuration_and_is_the_same_teacher(saved):
    file = saved["vit"] / "model.safetensors"
    network = create_model(f"hf:{saved['vit']}", 3, seed=5, image_size=32)
    before = weights_digest(network)
    load_weights(network, file)
    assert before != weights_digest(network) == weights_digest(trained(saved["vit"]))
    assert network.state_dict().keys() == load_file(file).keys()
    other = create_model(f"hf:{saved['vit']}", 7, seed=5, image_size=64).eval()
    assert other(images(64)).shape == (6, 7)


def test_weights_that_were_pickled_are_read_by_our_own_reader(saved, tmp_path):
    folder = shutil.copytree(saved["vit"], tmp_path / "vit")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert weights_digest(trained(folder)) == weights_digest(trained(saved["vit"]))

    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    torch.save({"weights": Hostile()}, folder / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="pytorch_model.bin is damaged, or was made to harm"):
        trained(folder)
    assert not (tmp_path / "touched").exists()


def test_half_precision_is_said(saved, tmp_path, caplog):
    folder = tmp_path / "half"
    half = transformers.ViTForImageClassification.from_pretrained(saved["vit"], dtype=torch.float16)
    half.save_pretrained(folder)
    with caplog.at_level(logging.INFO):
        network = trained(folder)
    assert f"hf:{folder} keeps its weights as float16; they are used as float32" in caplog.text
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_prompts_make_the_logits_of_transformers_own(saved, name):
    size = 28 if name == "clip" else 32
    own = transformers.AutoModel.from_pretrained(saved[name]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved[name])
    one = [pair for pair in PROMPTS if pair[1] != "a drawing of a dog"]
    padding = {"padding": "max_length", "max_length": 24} if name == "siglip" else {"padding": True}
    texts = tokenizer([prompt for _, prompt in one], return_tensors="pt", **padding)
    network = trained(saved[name], size, prompts=one)
    with torch.inference_mode():
        expected = own(pixel_values=images(size), **texts)
        said = network.represent(images(size))
    torch.testing.assert_close(said.logits, expected.logits_per_image, rtol=0, atol=5e-5)
    torch.testing.assert_close(said.logits.softmax(1), expected.logits_per_image.softmax(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(said.features["pooled"], expected.image_embeds, rtol=0, atol=1e-6)


def test_several_prompts_are_averaged_and_change_the_teacher(saved):
    own = transformers.AutoModel.from_pretrained(saved["clip"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved["clip"])
    with torch.inference_mode():
        said = own.get_text_features(**tokenizer([text for _, text in PROMPTS], padding=True, return_tensors="pt"))
        cat, dog, drawn, owl = torch.nn.functional.normalize(said.pooler_output, dim=-1)
        of_dogs = torch.nn.functional.normalize((dog + drawn) / 2, dim=0)
        expected = torch.stack([cat, of_dogs, owl]) * own.logit_scale.exp()
    network, again = (trained(saved["clip"], 28, prompts=PROMPTS) for _ in range(2))
    torch.testing.assert_close(network.head.weight.detach(), expected, rtol=0, atol=2e-5)
    assert weights_digest(network) == weights_digest(again)
    assert weights_digest(network) != weights_digest(trained(saved["clip"], 28, prompts=PROMPTS[:2] + PROMPTS[3:]))
    assert class_names_of(f"hf:{saved['clip']}", asked(saved["clip"], prompts=PROMPTS)) == folders.CLASSES


def test_tokens_of_a_body_become_maps_without_class_and_register_tokens(saved):
    from models.origins.huggingface import ORIGIN

    module = ORIGIN.trained(asked(saved["dino"], 42))
    assert (module.num_prefix_tokens, module.classifies) == (5, False)

    class WithHead(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = module, torch.nn.Linear(32, 3)
            self.num_prefix_tokens = module.num_prefix_tokens

        def forward(self, pixels):
            return self.head(self.body(pixels).pooler_output)

    # 28 pixels are 2 x 2 patches: with their 5 tokens before, these are 9, which is a square too.
    for size, side in ((42, 3), (28, 2)):
        network = ModuleNetwork(WithHead(), size).eval()
        with torch.inference_mode():
            said = network.represent(images(size))
            states = module(images(size), output_hidden_states=True).hidden_states
        last = network.feature_names[-2]
        assert said.features[last].shape == (6, 32, side, side)
        expected = states[-1][:, 5:].transpose(1, 2).reshape(6, 32, side, side)
        torch.testing.assert_close(said.features[last], expected, rtol=0, atol=1e-5)


def rendered(folder_or_processor, image: Image.Image) -> torch.Tensor:
    """(3, H, W), as a plain view of a base image is shown."""
    own = (
        preprocessing_of(f"hf:{folder_or_processor}")
        if isinstance(folder_or_processor, Path)
        else preprocessing_from(folder_or_processor, "hf:x")
    )
    base = fitted(image, own.resize_size, Fit(shape=own.shape, interpolation=own.interpolation))
    geometry = ViewGeometry(image_size=own.resize_size, crop_size=own.input_size, padding=0)
    view = apply_views(torch.from_numpy(np.array(base))[None], plain_views(geometry, 1), geometry)
    return own.normalisation.apply(view)[0]


@pytest.mark.parametrize("name", ["vit", "clip", "siglip", "dino"])
def test_a_plain_view_has_the_pixels_that_the_processor_makes(saved, name):
    processor = transformers.AutoImageProcessor.from_pretrained(saved[name], backend="pil")
    for shape in SHAPES:
        image = photograph(*shape)
        theirs = processor(images=[image], return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(rendered(saved[name], image), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("ConvNext", {"size": {"shortest_edge": 64}, "crop_pct": 0.95}, (67, 64, "bicubic", "centre-high")),
        ("ConvNext", {"size": {"shortest_edge": 384}}, (384, 384, "bicubic", "squashed")),
        ("DeiT", {"size": {"height": 72, "width": 72}, "crop_size": 64}, (72, 64, "bicubic", "squashed")),
        ("Levit", {"size": {"shortest_edge": 56}, "crop_size": 56}, (64, 56, "bicubic", "centre-low")),
        ("EfficientNet", {"size": {"height": 64, "width": 64}}, (64, 64, "bicubic", "squashed")),
        ("ViT", {"size": {"height": 64, "width": 64}, "do_rescale": False}, (64, 64, "bilinear", "squashed")),
    ],
)
def test_what_a_processor_does_counts_and_not_what_its_settings_are_called(kind, settings, expected):
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**settings)
    own = preprocessing_from(processor, "hf:x")
    assert (own.resize_size, own.input_size, own.interpolation, own.shape) == expected
    for shape in SHAPES[:4]:
        image = photograph(*shape)
        theirs = processor(images=[image], return_tensors="pt")["pixel_values"][0].float()
        ours = rendered(processor, image)
        assert ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max() < 1e-5


def test_what_cannot_be_said_of_a_processor_is_refused_and_what_is_nearly_so_is_said():
    for settings in ({"do_resize": False}, {"size": {"height": 32, "width": 48}}):
        with pytest.raises(InvalidInput, match="hf:x is shown images by a ViTImageProcessor in a way that cannot"):
            preprocessing_from(transformers.ViTImageProcessorPil(**settings), "hf:x")
    with pytest.raises(InvalidInput, match="MobileViTImageProcessor"):  # blue before red
        preprocessing_from(transformers.MobileViTImageProcessorPil(), "hf:x")
    own = preprocessing_from(transformers.DINOv3ViTImageProcessor(size={"height": 64, "width": 64}), "hf:x")
    assert own.shape == "squashed"
    assert "here Pillow does, and pixels differ by up to" in own.remark


def test_another_filter_is_replaced_with_a_line(saved, tmp_path):
    folder = shutil.copytree(saved["vit"], tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=0).save_pretrained(folder)
    own = preprocessing_of(f"hf:{folder}")
    assert own.interpolation == "bicubic"
    assert "published with images resized by nearest interpolation, and is shown them by bicubic" in own.remark
    assert preprocessing_of(f"hf:{saved['vit']}").remark is None


def edited(folder: Path, to: Path, file: str = "config.json", **changes: object) -> Path:
    """A copy of a folder with other settings."""
    shutil.copytree(folder, to)
    (to / file).write_text(json.dumps(json.loads((to / file).read_text()) | changes))
    return to


def test_a_folder_that_is_none_is_refused(tmp_path, saved):
    with pytest.raises(InvalidInput, match="has no config.json"):
        preprocessing_of(f"hf:{tmp_path}")
    for name in ("no_such_folder", f"{tmp_path}/none", "./none/here"):
        with pytest.raises(InvalidInput, match="there is no folder"):
            preprocessing_of(f"hf:{name}")
    without = shutil.copytree(saved["vit"], tmp_path / "without")
    (without / "preprocessor_config.json").unlink()
    with pytest.raises(InvalidInput, match="has no preprocessor_config.json, which says how it is shown images"):
        preprocessing_of(f"hf:{without}")
    (without / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InvalidInput, match="cannot be read"):
        trained(without)


def test_what_the_hub_does_not_give_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidInput, match="hf:nobody/nothing cannot be had .*where there is a network"):
        trained("nobody/nothing")


def test_code_beside_the_weights_is_never_run(saved, tmp_path):
    folder = edited(
        saved["vit"], tmp_path / "code", model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Own"}
    )
    (folder / "own.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(InvalidInput, match="hf:.* cannot be read"):
        trained(folder)


def test_weights_that_are_missing_are_not_made_up(saved, tmp_path):
    from safetensors.torch import save_file

    folder = shutil.copytree(saved["vit"], tmp_path / "vit")
    state = load_file(folder / "model.safetensors")
    save_file({key: tensor for key, tensor in state.items() if "classifier" not in key}, folder / "model.safetensors")
    with pytest.raises(InvalidInput, match="lacks weights of its own network .*classifier.bias"):
        trained(folder)


def test_what_is_no_network_of_images_is_refused_by_name(tmp_path):
    transformers.BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match=r"is a bert \(BertForMaskedLM\), which does not classify images"):
        trained(tmp_path)


def test_prompts_where_they_do_not_belong_and_none_where_they_do_are_refused(saved):
    with pytest.raises(InvalidInput, match="has no classes of its own; give --prompts FILE"):
        trained(saved["clip"], 28)
    with pytest.raises(InvalidInput, match="does not compare images with texts; leave out --prompts"):
        trained(saved["vit"], prompts=PROMPTS)
    with pytest.raises(InvalidInput, match="does not compare images with texts; leave out --prompts"):
        open_trained("torchvision:resnet18", replace(asked(saved["vit"], prompts=PROMPTS), name="resnet18"))
    with pytest.raises(InvalidInput, match="give --prompts FILE, and no --weights"):
        create_model(f"hf:{saved['clip']}", 3)
    with pytest.raises(InvalidInput, match="'a photo of a photo.* has 3. tokens, and hf:.*clip reads 24"):
        trained(saved["clip"], 28, prompts=[("cat", "a photo of a photo of a photo of a cat")])


def test_another_input_size_than_the_networks_is_refused(saved):
    with pytest.raises(InvalidInput, match="does not take 48-pixel images .*; give another size"):
        trained(saved["vit"], 48)
