"""Weights in and out of files: every wrapping, every kind of damage, nothing ever run."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ground.errors import CheckpointError, CheckpointMismatch, DiskFull
from models import (
    Network,
    create_model,
    load_weights,
    read_metadata,
    read_weights,
    save_weights,
    weights_digest,
)

NAME = "resnet8"


@pytest.fixture
def network() -> Network:
    return create_model(NAME, num_classes=10, seed=0)


def fresh(num_classes: int = 10) -> Network:
    return create_model(NAME, num_classes=num_classes, seed=1)


def prefixed(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return OrderedDict((prefix + key, tensor) for key, tensor in state_dict.items())


WRAPPINGS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda weights: weights,
    "model": lambda weights: {"epoch": 240, "best_acc": np.float64(75.61), "model": weights},
    "state_dict": lambda weights: {"state_dict": weights, "note": "text", "lr": 0.05, "step": np.int64(3)},
    "net": lambda weights: {"net": weights, "acc": np.float32(1.5), "done": np.bool_(True), "shape": (1, 2)},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.student.", "student."])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_and_prefix_loads(
    tmp_path: Path, network: Network, wrapping: str, prefix: str, legacy: bool
) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    content = WRAPPINGS[wrapping](prefixed(network.state_dict(), prefix))
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = fresh()
    load_weights(loaded, path)
    assert weights_digest(loaded) == weights_digest(network)
    assert all(isinstance(value, Tensor) for value in read_weights(path).state_dict.values())


def test_a_prefix_that_only_some_keys_have_stays(tmp_path: Path) -> None:
    path = tmp_path / "mixed.pth"
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1), "epoch": 3}, path)
    assert sorted(read_weights(path).state_dict) == ["b", "module.a"]


@pytest.mark.parametrize("numpy_module", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize(
    "scalar", [np.float64(75.5), np.float32(2), np.float16(1), np.int64(-3), np.int32(4), np.bool_(True)]
)
def test_numpy_scalars_of_both_numpy_generations_are_read(
    tmp_path: Path, network: Network, scalar: np.generic, numpy_module: str
) -> None:
    path = tmp_path / "old.pth"
    torch.save({"best_acc": scalar, "model": network.state_dict()}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    here = f"c{np.float64(0).__reduce__()[0].__module__}\nscalar\n".encode()
    assert content.count(here) == 1
    # The legacy format is bare pickles, so the name can be exchanged in place.
    path.write_bytes(content.replace(here, f"c{numpy_module}\nscalar\n".encode()))
    loaded = fresh()
    load_weights(loaded, path)
    assert weights_digest(loaded) == weights_digest(network)


def test_kind_is_decided_by_content_not_by_extension(tmp_path: Path, network: Network) -> None:
    save_weights(network, tmp_path / "safe.pth", {})
    torch.save(network.state_dict(), tmp_path / "torch.safetensors")
    for name in ("safe.pth", "torch.safetensors"):
        assert read_weights(str(tmp_path / name)).state_dict.keys() == network.state_dict().keys()


def test_step_counters_that_old_torch_did_not_save_may_be_missing(tmp_path: Path, network: Network) -> None:
    old = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    loaded = fresh()
    load_weights(loaded, tmp_path / "old.pth")
    assert weights_digest(loaded) == weights_digest(network)


class RunsACommand:
    """Unpickled by pickle itself, this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class CallsEval(RunsACommand):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("attack", [RunsACommand, CallsEval])
def test_malicious_pickle_is_refused_and_never_runs(
    tmp_path: Path, network: Network, attack: type[RunsACommand], form: str
) -> None:
    path, proof = tmp_path / "evil.pth", tmp_path / "proof"
    content = {"model": network.state_dict(), "extra": attack(proof)}
    if form == "bare":
        path.write_bytes(pickle.dumps({"extra": attack(proof)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"evil\.pth") as caught:
        read_weights(path)
    assert not proof.exists()
    # One sentence: neither torch's page of advice nor a chain of tracebacks.
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def write_torch(path: Path, network: Network) -> None:
    torch.save({"model": network.state_dict()}, path)


def write_legacy(path: Path, network: Network) -> None:
    torch.save({"model": network.state_dict()}, path, _use_new_zipfile_serialization=False)


def write_safetensors(path: Path, network: Network) -> None:
    save_weights(network, path, {})


WRITERS = (write_torch, write_legacy, write_safetensors)


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("write", WRITERS)
def test_truncated_file_is_refused(
    tmp_path: Path, network: Network, write: Callable[[Path, Network], None], part: float
) -> None:
    path = tmp_path / "cut"
    write(path, network)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match="cut"):
        read_weights(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200),
    start=st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"\x10" + b"\0" * 7 + b"{"]),
)
def test_no_bytes_raise_anything_but_a_checkpoint_error(tmp_path: Path, content: bytes, start: bytes) -> None:
    path = tmp_path / "noise"
    path.write_bytes(start + content)
    with pytest.raises(CheckpointError, match="noise"):
        read_weights(path)


def test_missing_file_and_folder_say_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*absent"):
        read_weights(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="is a folder; give the checkpoint file"):
        read_weights(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_weights(tmp_path / "file" / "below.pth")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"epoch": 3}}, torch.zeros(2), "text", {}])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match=r"empty\.pth holds no weights; give a file with a state_dict"):
        read_weights(tmp_path / "empty.pth")


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "weight": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(CheckpointError, match=r"sparse\.pth"):
        read_weights(tmp_path / "sparse.pth")


def test_wrong_class_count_comes_first(tmp_path: Path, network: Network) -> None:
    weights = dict(network.state_dict())
    weights["surplus"] = torch.zeros(1)
    del weights["bn1.weight"]
    torch.save(weights, tmp_path / "ten.pth")
    with pytest.raises(CheckpointMismatch) as caught:
        load_weights(fresh(100), tmp_path / "ten.pth")
    parts = str(caught.value).split("does not fit the network: ")[1].split("; ")
    assert parts[0].startswith("the checkpoint has 10 classes, the network 100")
    assert [part.split()[0].rstrip(":") for part in parts[1:]] == ["missing", "unexpected", "misshapen"]
    assert "bn1.weight" in parts[1]
    assert "surplus" in parts[2]
    assert "fc.weight (10, 64) for (100, 64)" in parts[3]


def test_long_lists_are_cut_after_five(tmp_path: Path, network: Network) -> None:
    torch.save({f"other{number}": torch.zeros(1) for number in range(8)}, tmp_path / "other.pth")
    num_missing = sum(not key.endswith("num_batches_tracked") for key in network.state_dict())
    with pytest.raises(CheckpointMismatch) as caught:
        load_weights(network, tmp_path / "other.pth")
    assert f" and {num_missing - 5} more" in str(caught.value)
    assert "other0, other1, other2, other3, other4 and 3 more" in str(caught.value)


@pytest.mark.parametrize("kind", [torch.int64, torch.complex64])
def test_weights_of_another_kind_of_number_are_misshapen(tmp_path: Path, network: Network, kind: torch.dtype) -> None:
    weights = dict(network.state_dict())
    weights["conv1.weight"] = weights["conv1.weight"].to(kind)
    torch.save(weights, tmp_path / "kind.pth")
    with pytest.raises(CheckpointMismatch, match=r"misshapen: conv1\.weight (integer|complex) \(16, 3, 3, 3\)"):
        load_weights(network, tmp_path / "kind.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_and_change_nothing(
    tmp_path: Path, network: Network, value: float
) -> None:
    weights = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    weights["fc.weight"][3, 5] = value
    torch.save(weights, tmp_path / "burnt.pth")
    target = fresh()
    before = weights_digest(target)
    with pytest.raises(CheckpointError, match=r"burnt\.pth .*fc\.weight"):
        load_weights(target, tmp_path / "burnt.pth")
    assert weights_digest(target) == before


def test_half_precision_weights_convert(tmp_path: Path, network: Network) -> None:
    torch.save(
        {key: t.half() if t.is_floating_point() else t for key, t in network.state_dict().items()},
        tmp_path / "h",
    )
    loaded = fresh()
    load_weights(loaded, tmp_path / "h")
    torch.testing.assert_close(loaded.head.weight, network.head.weight, rtol=1e-3, atol=1e-4)
    assert loaded.head.weight.dtype == torch.float32


def test_safetensors_round_trip_keeps_weights_and_metadata(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "network.safetensors"
    metadata = {"architecture": "resnet8", "note": "Größe ≥ 1"}
    path.write_bytes(b"an older file")
    save_weights(network.to(memory_format=torch.channels_last), path, metadata)
    loaded = fresh()
    assert load_weights(loaded, path).metadata == metadata == read_weights(path).metadata == read_metadata(path)
    assert weights_digest(loaded) == weights_digest(network)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "network.safetensors"
    path.write_bytes(b"old")

    def no_room(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(DiskFull, match="no room left"):
        save_weights(network, path, {})
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_digest_ignores_memory_format(network: Network) -> None:
    plain = weights_digest(network)
    assert plain == weights_digest(network.to(memory_format=torch.channels_last))
    assert len(plain) == 64
    assert set(plain) <= set("0123456789abcdef")


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_digest_changes_with_one_bit_anywhere(data: st.DataObject) -> None:
    network = fresh()
    before = weights_digest(network)
    tensor = data.draw(st.sampled_from(list(network.state_dict().values())))
    raw = tensor.view(-1).view(torch.uint8).numpy()
    raw[data.draw(st.integers(0, raw.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert weights_digest(network) != before


def test_digest_tells_dtypes_apart_and_reads_bfloat16(network: Network) -> None:
    assert len({weights_digest(network.to(kind)) for kind in (torch.float32, torch.float16, torch.bfloat16)}) == 3


def test_digest_tells_names_and_shapes_apart() -> None:
    def digest(**buffers: Tensor) -> str:
        module = torch.nn.Module()
        module.source_digest = None
        for name, tensor in buffers.items():
            module.register_buffer(name, tensor)
        return weights_digest(module)  # type: ignore[arg-type]

    values = torch.tensor(struct.unpack("<6f", struct.pack("<6f", *range(6))))
    digests = [
        digest(a=values),
        digest(b=values),
        digest(a=values.view(2, 3)),
        digest(a=values[:3], b=values[3:]),
    ]
    assert len(set(digests)) == 4
    assert digest(b=values, a=values) == digest(a=values, b=values)
