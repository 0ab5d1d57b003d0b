"""Exported programs as networks: run only where that is allowed, and by what they are, not by what they are called."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ground.errors import InvalidInput
from ground.user_code import UserCode
from models import create_model, weights_digest
from models.network import Network
from models.origins import Asked, class_names_of, open_trained, preprocessing_of

SIZE, CLASSES = 16, 5


class Several(nn.Module):
    """Answers with logits and a map."""

    def __init__(self, answer: str = "dict") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.answer = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(4, CLASSES), answer

    def forward(self, images: Tensor) -> Any:
        stage = self.conv(images).relu()
        logits = self.fc(stage.mean(dim=(2, 3)))
        return {"dict": {"stage": stage, "logits": logits}, "tuple": (logits, stage), "one": logits}[self.answer]


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def program(path: Path, module: nn.Module, batch: Any = "any", count: int = 2, **texts: Any) -> Path:
    """Of torch.export."""
    shapes = ({0: torch.export.Dim("batch") if batch == "any" else batch},) if batch is not None else None
    exported = torch.export.export(module.eval(), (images(count),), dynamic_shapes=shapes)
    torch.export.save(exported, path, extra_files={"description": json.dumps(texts)} if texts else None)
    return path


def script(path: Path, module: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module.eval(), images(2), strict=False).save(str(path))
    return path


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> dict[str, Path]:
    """Two programs, each made once; their names say nothing of what they are."""
    folder = tmp_path_factory.mktemp("programs")
    return {
        "program": program(folder / "program.bin", Several(), size=SIZE, classes=list("abcde")),
        "script": script(folder / "script.bin", Several("tuple")),
    }


def asked(path: Path, size: int = SIZE, code: UserCode = UserCode.ALLOWED) -> Asked:
    return Asked(name=str(path), image_size=size, code=code)


def opened(path: Path, size: int = SIZE) -> Network:
    return open_trained(f"export:{path}", asked(path, size)).eval()


@pytest.mark.parametrize(("kind", "layer"), [("program", "stage"), ("script", "output_1")])
@pytest.mark.parametrize("count", [1, 5])
def test_it_says_what_the_module_says_of_any_number_of_images(kept, kind, layer, count):
    network = opened(kept[kind])
    assert (network.num_classes, network.layers) == (CLASSES, (layer,))
    with torch.inference_mode():
        said, expected = network.represent(images(count), [layer]), Several()(images(count))
    torch.testing.assert_close(said.logits, expected["logits"])
    torch.testing.assert_close(said.features[layer], expected["stage"])


@pytest.mark.parametrize("code", [UserCode.REFUSED, UserCode.UNSEEN])
@pytest.mark.parametrize("kind", ["program", "script"])
@pytest.mark.parametrize("what", [open_trained, preprocessing_of, class_names_of])
def test_nothing_is_loaded_where_code_is_not_allowed(kept, monkeypatch, code, kind, what: Callable[..., object]):
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(torch.export, "load", loaded)
    monkeypatch.setattr(torch.jit, "load", loaded)
    with pytest.raises(InvalidInput, match=r"the program export:.* is code from outside this program.*--allow-code"):
        what(f"export:{kept[kind]}", asked(kept[kind], code=code))


def test_a_program_says_its_size_and_its_card_the_classes(kept):
    found = preprocessing_of(f"export:{kept['program']}", asked(kept["program"], 0))
    assert found is not None
    assert (found.input_size, found.normalisation) == (SIZE, None)
    assert class_names_of(f"export:{kept['program']}", asked(kept["program"])) == tuple("abcde")
    with pytest.raises(InvalidInput, match="takes images of any size and does not say which; give --input-size"):
        preprocessing_of(f"export:{kept['script']}", asked(kept["script"], 0))
    with pytest.raises(InvalidInput, match="takes images of 16 pixels, and would be given 32"):
        opened(kept["program"], 32)


def test_a_renamed_program_is_the_same_network(kept, tmp_path):
    renamed = Path(shutil.copyfile(kept["script"], tmp_path / "teacher.pt"))
    assert weights_digest(opened(renamed)) == weights_digest(opened(kept["script"]))
    assert weights_digest(opened(renamed)) != weights_digest(opened(kept["program"]))


@pytest.mark.parametrize(("batch", "count"), [(None, 4), ("most", 2)])
def test_a_program_of_a_fixed_batch_or_of_so_many_at_most_is_given_that(tmp_path, batch, count):
    limit = torch.export.Dim("batch", max=4) if batch == "most" else None
    network = opened(program(tmp_path / "four.pt2", Several("one"), batch=limit, count=count))
    for several in (1, 4, 6):
        with torch.inference_mode():
            torch.testing.assert_close(network(images(several)), Several("one")(images(several)))


def of_weights(path: Path) -> None:
    torch.save(Several().state_dict(), path)


def of_other_files(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes/todo.txt", "nothing")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def hollow(path: Path) -> None:
    """With the names of a program's parts, and nothing in them."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("teacher/archive_format", "pt2")


BAD_FILES = {
    "cut short": (cut, "is no exported program, or is cut short"),
    "a text": (lambda path: path.write_text("a program, as they say"), "is no exported program"),
    "weights": (of_weights, "holds weights and no program; give --teacher the network's own name, and --weights"),
    "an archive": (of_other_files, "is a zip archive of other files"),
    "hollow": (hollow, "cannot be loaded"),
    "empty": (lambda path: path.write_bytes(b""), "is an empty file"),
    "missing": (Path.unlink, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(kept, tmp_path, case):
    path = Path(shutil.copyfile(kept["script"], tmp_path / "bad.pt"))
    spoil, sentence = BAD_FILES[case]
    spoil(path)
    with pytest.raises(InvalidInput, match=sentence):
        opened(path)


def test_a_program_that_fails_on_such_images_is_refused(tmp_path):
    path = script(tmp_path / "flat.pt", nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES)))
    with pytest.raises(InvalidInput, match="does not take 24-pixel images on cpu"):
        opened(path, 24)


class Elsewhere(nn.Module):
    """Adds numbers that stay on the device where it was traced."""

    def forward(self, images: Tensor) -> Tensor:
        return (images + torch.ones(3, 1, 1)).mean(dim=(2, 3))


def test_a_program_follows_to_a_device_and_one_that_cannot_is_refused_before_a_call(kept, tmp_path):
    moved = opened(kept["program"]).to("meta")
    assert moved(images().to("meta")).device.type == "meta"
    bound = opened(script(tmp_path / "bound.pt", Elsewhere()))
    with pytest.raises(InvalidInput, match="does not take 16-pixel images on meta"):
        bound.to("meta")


def test_it_cannot_be_trained(kept):
    with pytest.raises(InvalidInput, match="is a teacher with its weights in it"):
        create_model(f"export:{kept['script']}", 10, code=UserCode.ALLOWED)
