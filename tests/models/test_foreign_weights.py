"""Checkpoints as people have them: each kind is read for what it is, or refused by name with what to do."""

from __future__ import annotations

import argparse
import io
import pathlib
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ground.errors import CheckpointError, CheckpointMismatch, InvalidInput
from models import create_model, load_weights, weights_digest

NETWORK = create_model("resnet8", num_classes=10, seed=0)
WEIGHTS = NETWORK.state_dict()
EMA = {key: value + 1 if value.is_floating_point() else value for key, value in WEIGHTS.items()}


def loaded_from(path: Path | str) -> str:
    """Digest of what a checkpoint puts into a network."""
    network = create_model("resnet8", num_classes=10, seed=1)
    load_weights(network, path)
    return weights_digest(network)


def digest_of(weights: dict[str, torch.Tensor]) -> str:
    network = create_model("resnet8", num_classes=10)
    network.load_state_dict(weights)
    return weights_digest(network)


def below(prefix: str, weights: dict[str, torch.Tensor] = WEIGHTS) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in weights.items()}


class Options:
    """A class of somebody's own."""

    def __init__(self) -> None:
        self.depth = 3


READ: dict[str, Any] = {
    **{key: {key: WEIGHTS} for key in ("state_dict_ema", "model_state_dict", "weights", "params", "model_ema", "any")},
    "nested": {"ckpt": {"g": {"weights": WEIGHTS}}},
    "compiled": below("_orig_mod."),
    "compiled in parallel": {"model": below("module._orig_mod.")},
    "lightning net": {"state_dict": below("net."), "pytorch-lightning_version": "2.0"},
    "lightning backbone and criterion": {"state_dict": below("backbone.") | {"criterion.center": torch.zeros(3)}},
    "averaged": below("module.") | {"n_averaged": torch.tensor(3)},
    "profiled": WEIGHTS | {"total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)},
    "optimizer beside": {"net": WEIGHTS, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(4)}}}},
    "namespace": {"model": WEIGHTS, "opt": argparse.Namespace(lr=1, out=pathlib.Path("x"))},
    "path": {"model": WEIGHTS, "path": pathlib.PurePosixPath("/data/x")},
    "defaultdict beside": {"model": WEIGHTS, "log": defaultdict(list, {"loss": [1.0]})},
    "defaultdict": defaultdict(dict, WEIGHTS),
    "array": {"model": WEIGHTS, "confusion": np.arange(4), "mean": np.zeros(2, np.float32)},
    "text": {"model": WEIGHTS, "note": "text", "name": np.str_("text")},
    **{f"numpy {kind}": {"model": WEIGHTS, "best": np.dtype(kind).type(1)} for kind in ("i2", "u1", "i1", "f4", "c8")},
    "object dtype": {"model": WEIGHTS, "odd": np.array([1], dtype=object)},
    "other network beside": {"teacher": create_model("resnet14", 10, seed=0).state_dict(), "student": WEIGHTS},
    "one object twice": {"model": WEIGHTS, "state_dict": WEIGHTS},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", READ)
def test_common_checkpoints_load_the_very_weights(tmp_path: Path, kind: str, legacy: bool) -> None:
    torch.save(READ[kind], tmp_path / "it.pth", _use_new_zipfile_serialization=not legacy)
    assert loaded_from(tmp_path / "it.pth") == weights_digest(NETWORK)


CHOICES: dict[str, tuple[Any, dict[str, dict[str, torch.Tensor]]]] = {
    "average": (
        {"state_dict": WEIGHTS, "state_dict_ema": EMA, "epoch": 3},
        {"state_dict": WEIGHTS, "state_dict_ema": EMA},
    ),
    "prefixes": (below("student.") | below("teacher.", EMA), {"student": WEIGHTS, "teacher": EMA}),
    "prefixes in a set": (
        {"state_dict": below("student.") | below("teacher.", EMA)},
        {"state_dict.student": WEIGHTS, "state_dict.teacher": EMA},
    ),
    "bare and average": (WEIGHTS | {"ema": EMA}, {"": WEIGHTS, "ema": EMA}),
}


@pytest.mark.parametrize("case", CHOICES)
def test_several_sets_of_weights_are_a_choice_and_each_can_be_typed(tmp_path: Path, case: str) -> None:
    content, choices = CHOICES[case]
    path = tmp_path / "two.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointMismatch, match=r"two\.pth has 2 sets of weights that fit .*; choose one: ") as caught:
        loaded_from(path)
    for label, weights in choices.items():
        assert f"'{path}#{label}'" in str(caught.value)
        assert loaded_from(f"{path}#{label}") == digest_of(weights)


def test_a_choice_may_leave_out_a_prefix_that_is_the_only_one(tmp_path: Path) -> None:
    torch.save({"raw": below("module."), "ema": below("module.", EMA)}, tmp_path / "two.pth")
    assert loaded_from(tmp_path / "two.pth#ema") == loaded_from(tmp_path / "two.pth#ema.module") == digest_of(EMA)


def test_a_choice_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    torch.save({"raw": WEIGHTS, "ema": EMA}, tmp_path / "two.pth")
    with pytest.raises(CheckpointMismatch, match=r"no weights under 'em'; choose '.*two\.pth#raw' or '.*two\.pth#ema'"):
        loaded_from(tmp_path / "two.pth#em")
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*absent\.pth;"):
        loaded_from(tmp_path / "absent.pth#ema")


def test_a_file_with_a_mark_in_its_own_name_is_that_file(tmp_path: Path) -> None:
    torch.save({"raw": WEIGHTS, "ema": EMA}, tmp_path / "run#1.pth")
    torch.save(WEIGHTS, tmp_path / "run#1.pth#ema")
    assert loaded_from(tmp_path / "run#1.pth#ema") == weights_digest(NETWORK)
    (tmp_path / "run#1.pth#ema").unlink()
    assert loaded_from(tmp_path / "run#1.pth#ema") == digest_of(EMA)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_known(tmp_path: Path, kind: torch.dtype) -> None:
    torch.save({key: value.to(kind) if value.is_floating_point() else value for key, value in WEIGHTS.items()},
               tmp_path / "half.pth")  # fmt: skip
    network = create_model("resnet8", num_classes=10)
    assert load_weights(network, tmp_path / "half.pth").low_precision == (str(kind).removeprefix("torch."),)
    assert torch.equal(network.head.weight, NETWORK.head.weight.to(kind).float())


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def own_line(keys: str) -> str:
    load = rf"torch\.load\('.*bad\.pth', weights_only=False, map_location='cpu'\){keys}"
    return rf"torch\.save\({load}, '.*bad-weights\.pth'\)"


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is an empty file; get it again"),
    "git-lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid", "is a git-lfs pointer .*git lfs pull"),
    "page": (lambda: b"\n <!DOCTYPE html><html></html>", "is a web page .*download the file itself"),
    "cut": (lambda: saved(WEIGHTS)[:90_000], "is cut short, or damaged .*; get it again"),
    "cut legacy": (
        lambda: saved(WEIGHTS, _use_new_zipfile_serialization=False)[:90_000],
        r"is cut short: it should have 314928 bytes of weights, and has \d+; get it again",
    ),
    "cut legacy early": (
        lambda: saved(WEIGHTS, _use_new_zipfile_serialization=False)[:900],
        "is cut short; get it again",
    ),
    "zip": (lambda: zipped({"a/photo.png": b"x"}), r"is a zip archive of other files \(a/photo.png\); unpack it"),
    "module": (
        lambda: saved(NETWORK),
        r"holds a whole network, which is code of its own \(models\.resnet\.ResNet\); .*"
        + own_line(r"\.state_dict\(\)"),
    ),
    "module inside": (
        lambda: saved({"model": NETWORK}),
        "holds a whole network under model, .*" + own_line(r"\['model'\]\.state_dict\(\)"),
    ),
    "own class": (
        lambda: saved({"a": {"opt": Options()}, "net": WEIGHTS}),
        r"holds a tests\.models\.test_foreign_weights\.Options under a\.opt, which .*" + own_line(r"\['net'\]"),
    ),
    "script": (
        lambda: zipped({"x/data.pkl": b"\x80\x02}.", "x/constants.pkl": b""}),
        r"is a TorchScript program, .*torch\.jit\.load\(",
    ),
    "onnx": (lambda: b"\x08\x07\x12\x07pytorch", "is an ONNX model; give the state_dict"),
    "h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file, as Keras and TensorFlow"),
    "numpy": (lambda: b"\x93NUMPY\x01\x00", "is a numpy array"),
    "gzip": (lambda: b"\x1f\x8b" + bytes(9), "is compressed with gzip; unpack it"),
    "bare pickle": (lambda: pickle.dumps({"a": 1}), "is a pickle that torch.save did not write"),
    "protocol 4": (lambda: saved({"m": WEIGHTS}, pickle_protocol=4), "was saved with pickle protocol 4, "),
    "text": (lambda: b"some text", "is not a checkpoint: neither safetensors nor what torch.save writes"),
    "sparse": (lambda: saved({"w": torch.eye(3).to_sparse()}), "holds a tensor under w that is sparse"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_checkpoint_is_refused_by_its_kind(tmp_path: Path, kind: str) -> None:
    make, message = REFUSED[kind]
    (tmp_path / "bad.pth").write_bytes(make())
    with pytest.raises(InvalidInput, match=rf"bad\.pth {message}") as caught:
        loaded_from(tmp_path / "bad.pth")
    assert "\n" not in str(caught.value)


def test_the_line_that_makes_a_safe_file_does(tmp_path: Path) -> None:
    torch.save({"opt": Options(), "net": WEIGHTS}, tmp_path / "own.pth")
    with pytest.raises(CheckpointError) as caught:
        loaded_from(tmp_path / "own.pth")
    exec(str(caught.value).partition("in Python: ")[2], {"torch": torch})
    assert loaded_from(tmp_path / "own-weights.pth") == weights_digest(NETWORK)


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def bare_torch(program: bytes) -> bytes:
    return zipped({"x/data.pkl": program, "x/version": b"3\n", "x/byteorder": b"little"})


def codec_bomb() -> bytes:
    import codecs

    value: Any = "00"
    for _ in range(40):
        value = Calls(codecs.encode, value, "hex")
    return saved({"w": value})


def oversized(size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(2).untyped_storage(), dtype=torch.float32, _internal=True
    )
    rebuilt = Calls(torch._utils._rebuild_tensor_v2, storage, 0, size, stride, False, OrderedDict())
    return saved({"w": rebuilt}, _use_new_zipfile_serialization=False)


def short_record() -> bytes:
    whole = zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(1000)})))
    return zipped({name: b"" if "/data/" in name else whole.read(name) for name in whole.namelist()})


HOSTILE: dict[str, Callable[[], bytes]] = {
    "compressed zeros": lambda: zipped(
        {"x/data.pkl": b"\x80\x02}.", "x/data/0": bytes(64 << 20)}, zipfile.ZIP_DEFLATED
    ),
    "bytearray of a length": lambda: saved({"w": Calls(bytearray, 3 << 30)}),
    "codec upon codec": codec_bomb,
    "tensor beyond its storage": lambda: oversized((1 << 30,), (1,)),
    "negative tensor": lambda: oversized((-1,), (1,)),
    "record shorter than it says": short_record,
    "far memo": lambda: bare_torch(b"\x80\x02}r\xff\xff\xff\xff."),
    "millions of objects": lambda: bare_torch(b"\x80\x02(" + b"\x8f" * (1 << 19) + b"t."),
    "one list copied again and again": lambda: bare_torch(
        b"\x80\x02(cbuiltins\nset\nq\x01(" + b"K\x00" * 60_000 + b"t\x85q\x02" + b"h\x01h\x02R" * 9_000 + b"t."
    ),
    "header of a gigabyte": lambda: (1 << 30).to_bytes(8, "little") + b"{" + bytes(99),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_small_file_takes_little_memory_before_it_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.pth").write_bytes(HOSTILE[kind]())
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch was given the file"))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"bad\.pth"):
            loaded_from(tmp_path / "bad.pth")
        assert tracemalloc.get_traced_memory()[1] < 96 << 20
    finally:
        tracemalloc.stop()
