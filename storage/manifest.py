"""The manifest: what a store is, so that nothing that does not match is ever mixed into it.

`Identity` is what must agree before rows are added; `Manifest` adds what may change (how many rows) and what is
only worth knowing (versions). It is a JSON file, written atomically, and the last thing written when a store is
made: a folder without one holds no calls.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ground.durable import write_json
from ground.errors import IdentityMismatch, StoreUnreadable, store_command
from ground.geometry import VIEW_POLICIES, Normalisation, Rendering, ViewGeometry
from ground.layers import LOGITS, POOLED, is_before, is_layer_name, layer_of
from storage.migrations import OlderManifest, brought_forward, require_readable
from storage.schema import (
    HEAD_BIAS,
    HEAD_WEIGHT,
    OutputSpec,
    norm_parameters,
    parameter_arrays,
    sample_arrays,
    split_rows,
)

FORMAT_VERSION = 3
FILE_NAME = "manifest.json"
# The manifest of a store that is to take the place of the one beside it.
EXTENSION = "extension.json"
_MAX_MANIFEST_BYTES = 16 << 20
_MAX_ROWS = 1 << 24
_MAX_SEED = 1 << 40
_MAX_TEXT = 4096
_MAX_DIMENSIONS = 8
_MAX_LAYERS = 1 << 10
_PARAMETER = re.compile(r"[A-Za-z0-9_./-]{1,160}")
MAX_VIEWS = 1 << 10
_MAX_SIZE = 1 << 14
ARRAYS_NAME = r"data(-[0-9]{1,6})?\.(zarr|h5)"


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherIdentity:
    """Which teacher.

    Args:
        fingerprint: covers architecture, all weights and buffers, and normalisation.
        layers: every layer it can give, in order, whether it is kept or not.
    """

    name: str
    fingerprint: str
    num_classes: int
    normalisation: Normalisation
    precision: str
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetIdentity:
    """Which images: `digest` covers the content of both splits."""

    name: str
    digest: str
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What every row of a store has in common.

    Args:
        seed: of the sample's order and of the views.
        views: V, teacher calls per image.
        view_policy: "augmented" or "plain".
        outputs: what is kept of each call, logits first, then layers in the teacher's order.
        parameters: what is kept of the teacher itself: its head, and the norms of kept pre-activations.
    """

    teacher: TeacherIdentity
    dataset: DatasetIdentity
    geometry: ViewGeometry
    seed: int
    views: int
    view_policy: str
    outputs: tuple[OutputSpec, ...]
    parameters: tuple[OutputSpec, ...]

    @property
    def teacher_rendering(self) -> Rendering:
        """How the teacher was shown the images."""
        return Rendering(geometry=self.geometry, normalisation=self.teacher.normalisation)

    @property
    def features(self) -> dict[str, tuple[int, ...]]:
        """Layer name -> shape of one view's map, without the logits."""
        return {output.name: output.shape for output in self.outputs if output.name != "logits"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A store's identity, its size, and where its calls are recorded.

    Args:
        store_id: 32 hex digits, made once.
        array_format: "zarr" or "hdf5".
        arrays: name of the file or folder of the arrays, next to the manifest.
        n: training images; val and test likewise.
        samples: sample array, or parameter of the teacher -> SHA-256 of its values.
        ledger: URL without password, or None for the store's own `ledger.sqlite`.
        ledger_head: hash of the ledger's newest entry when the last build ended.
        history: the stores it was made from, oldest first: store_id, and made_by (convert, extend, upgrade).
        versions: package versions that made the store.
        older: what it is on the disk, where that is of an older format: then it can be read, and not be saved.
    """

    store_id: str
    array_format: str
    arrays: str
    identity: Identity
    n: int
    num_val: int
    num_test: int
    samples: Mapping[str, str]
    ledger: str | None = None
    ledger_head: str | None = None
    history: Sequence[Mapping[str, str]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    older: OlderManifest | None = None

    @property
    def format_version(self) -> int:
        """Of what is on the disk."""
        return FORMAT_VERSION if self.older is None else self.older.version

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each split."""
        return split_rows(self.n, self.num_val, self.num_test)

    @property
    def ids(self) -> set[str]:
        """Ids of the store and of those it was made from: calls of any of these may be kept in it."""
        return {self.store_id, *(step["store_id"] for step in self.history)}

    def grown(self, n: int, num_val: int) -> Manifest:
        """The same store with more rows."""
        return replace(self, n=max(n, self.n), num_val=max(num_val, self.num_val))

    @property
    def digest(self) -> str:
        """SHA-256 of all that may not change between builds: what a ledger records of a store."""
        if self.older is not None:
            return self.older.digest
        document = self._document()
        del document["ledger_head"]
        return _digest(document)

    def save(self, folder: Path, file_name: str = FILE_NAME) -> None:
        """Write it, atomically and durably, with a digest of its own."""
        assert self.older is None, "a store of an older format is upgraded before it is written to"
        document = {"format_version": FORMAT_VERSION, **self._document()}
        write_json(folder / file_name, {**document, "digest": _digest(document)})

    def _document(self) -> dict[str, Any]:
        document = asdict(self)
        del document["older"]
        return document

    @classmethod
    def load(cls, folder: Path, file_name: str = FILE_NAME) -> Manifest:
        """Read and check it; one of an older format is brought forward, in memory alone.

        Raises:
            StoreUnreadable: it is missing, malformed, of a newer format, or of one that nothing leads on from.
        """
        path = folder / file_name
        try:
            if path.stat().st_size > _MAX_MANIFEST_BYTES or not path.is_file():
                raise ValueError("it is no file, or too large for a manifest")
            document = json.loads(path.read_bytes())
            digest, version = document.pop("digest", None), document["format_version"]
            require_readable(path, version, FORMAT_VERSION)
            if digest != _digest(document):
                raise ValueError("it was changed: it does not match its own digest")
            del document["format_version"]
            older = None
            if version != FORMAT_VERSION:
                recorded = {name: value for name, value in document.items() if name != "ledger_head"}
                older = OlderManifest(version, _digest(recorded))
                document = brought_forward(document, version, FORMAT_VERSION)
            manifest = replace(_manifest(document), older=older)
        except FileNotFoundError as error:
            raise StoreUnreadable(
                f"there is no store at {folder} (no {file_name}); build one with: {store_command('build', folder)}"
            ) from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreUnreadable(
                f"{path} is not a manifest this release can read ({error}); bring it back from a copy, or build "
                "the store again in a new folder"
            ) from error
        return manifest


def require_same(found: Identity, wanted: Identity, folder: Path) -> None:
    """Refuse to add to a store that was made from something else.

    Raises:
        IdentityMismatch: names every field that differs, with both values.
    """
    differing = list(_differences(asdict(found), asdict(wanted), ""))
    if not found.parameters and found == replace(wanted, parameters=()) and differing:
        raise IdentityMismatch(
            f"the store at {folder} keeps no last layer of its teacher, as it was upgraded without the teacher's "
            f"weights; add it with: {store_command('upgrade', folder)} --weights FILE"
        )
    if differing:
        raise IdentityMismatch(
            f"the store at {folder} was built with another {'; '.join(differing)}; "
            "give the same settings, or another folder"
        )


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str) -> list[str]:
    lines = []
    for name, value in found.items():
        other = wanted[name]
        if isinstance(value, Mapping):
            lines += _differences(value, other, f"{prefix}{name}.")
        elif value != other:
            lines.append(f"{prefix}{name} (store: {_shown(value)}, asked: {_shown(other)})")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], Mapping):
        return ",".join(f"{item['name']}:{item['dtype']}" for item in value)
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."


def _manifest(document: dict[str, Any]) -> Manifest:
    identity = document.pop("identity")
    teacher, dataset = identity.pop("teacher"), identity.pop("dataset")
    normalisation = Normalisation(**{name: _triple(values) for name, values in teacher.pop("normalisation").items()})
    outputs = tuple(_spec(output, _is_output) for output in identity.pop("outputs"))
    parameters = tuple(_spec(parameter, _is_parameter) for parameter in identity.pop("parameters"))
    dataset["classes"] = tuple(dataset["classes"])
    teacher["layers"] = tuple(teacher["layers"])
    document["history"] = tuple(document["history"])
    manifest = Manifest(
        **document,
        identity=Identity(
            **identity | {"geometry": ViewGeometry(**identity["geometry"])},
            teacher=TeacherIdentity(**teacher, normalisation=normalisation),
            dataset=DatasetIdentity(**dataset),
            outputs=outputs,
            parameters=parameters,
        ),
    )
    _check_types(manifest)
    return manifest


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _spec(document: dict[str, Any], is_name: Callable[[object], bool]) -> OutputSpec:
    spec = OutputSpec(document["name"], tuple(document["shape"]), document["dtype"])
    if not is_name(spec.name) or np.dtype(spec.dtype) not in (np.float16, np.float32):
        raise ValueError(f"{spec.name!r} of type {spec.dtype!r} is not a layer or parameter")
    if (
        len(spec.shape) > _MAX_DIMENSIONS
        or not all(type(size) is int and size > 0 for size in spec.shape)
        or math.prod(spec.shape) > 1 << 28
    ):
        raise ValueError(f"{spec.name} has the impossible shape {spec.shape}")
    return spec


def _check_types(manifest: Manifest) -> None:
    """Refuse values that no build writes; the arrays are checked against the manifest when they are opened."""
    identity = manifest.identity
    counts = {"n": manifest.n, "num_val": manifest.num_val, "num_test": manifest.num_test}
    for name, count in counts.items():
        _require(type(count) is int and 0 <= count <= _MAX_ROWS, name, count)
    _require(type(identity.seed) is int and 0 <= identity.seed <= _MAX_SEED, "seed", identity.seed)
    _require(type(identity.views) is int and 1 <= identity.views <= MAX_VIEWS, "views", identity.views)
    geometry = identity.geometry
    for size in (geometry.image_size, geometry.crop_size, geometry.padding):
        _require(type(size) is int and size <= _MAX_SIZE, "geometry", geometry)
    _require(type(geometry.flips) is bool, "geometry", geometry)
    teacher, dataset = identity.teacher, identity.dataset
    for name, text in {
        "array_format": manifest.array_format,
        "arrays": manifest.arrays,
        "view_policy": identity.view_policy,
        "teacher.name": teacher.name,
        "teacher.precision": teacher.precision,
        "dataset.name": dataset.name,
        **{f"class {place}": label for place, label in enumerate(dataset.classes)},
    }.items():
        _require(_is_text(text), name, text)
    _require(re.fullmatch("[A-Za-z0-9_.-]+", teacher.name) is not None, "teacher.name", teacher.name)
    _require(re.fullmatch(ARRAYS_NAME, manifest.arrays) is not None, "arrays", manifest.arrays)
    _require(manifest.ledger is None or _is_text(manifest.ledger), "ledger", manifest.ledger)
    known = {spec.name for spec in (*sample_arrays(1, 1), *parameter_arrays(identity.parameters))}
    _require(manifest.samples.keys() == known, "samples", sorted(manifest.samples))
    for step in manifest.history:
        _require({"store_id", "made_by"} == {*step} and all(map(_is_text, step.values())), "history", step)
    digests = {"store_id": (manifest.store_id, 32), "fingerprint": (teacher.fingerprint, 64)}
    digests |= {"dataset.digest": (dataset.digest, 64)}
    digests |= {f"digest of {name}": (value, 64) for name, value in manifest.samples.items()}
    for name, (value, length) in digests.items():
        _require(type(value) is str and re.fullmatch(f"[0-9a-f]{{{length}}}", value) is not None, name, value)
    _require(identity.view_policy in VIEW_POLICIES, "view_policy", identity.view_policy)
    names = [output.name for output in identity.outputs]
    _check_layers(teacher.layers, names)
    _check_parameters(identity)
    classes = {teacher.num_classes, len(dataset.classes), *identity.outputs[0].shape}
    _require(classes == {len(dataset.classes)}, "the number of classes", classes)


def _check_layers(layers: tuple[str, ...], names: list[str]) -> None:
    """Refuse outputs other than logits and layers of the teacher, in its order."""
    are_plain = len(layers) <= _MAX_LAYERS and all(map(is_layer_name, layers))
    _require(are_plain and len({"logits", *layers}) == len(layers) + 1, "teacher.layers", layers)
    _require(names == ["logits", *(layer for layer in layers if layer in names)], "outputs", names)


def _check_parameters(identity: Identity) -> None:
    """Refuse parameters other than the head's and those of the norms of kept pre-activations, in their order."""
    found = {spec.name: spec for spec in identity.parameters}
    wanted: dict[str, tuple[int, ...]] = {}
    # A teacher need not end in a linear layer.
    if HEAD_WEIGHT in found or HEAD_BIAS in found:
        width = found[HEAD_WEIGHT].shape[-1:] if HEAD_WEIGHT in found else ()
        _require(identity.features.get(POOLED, width) == width, HEAD_WEIGHT, width)
        wanted = {HEAD_WEIGHT: (identity.teacher.num_classes, *width), HEAD_BIAS: (identity.teacher.num_classes,)}
    for layer, shape in identity.features.items():
        names = norm_parameters(layer_of(layer))
        if is_before(layer) and names[0] in found:
            wanted |= dict.fromkeys(names, shape[:1])
    expected = tuple(OutputSpec(name, shape, "float32") for name, shape in wanted.items())
    _require(identity.parameters == expected, "parameters", identity.parameters)


def _is_output(name: object) -> bool:
    return name == LOGITS or is_layer_name(name)


def _is_parameter(name: object) -> bool:
    return type(name) is str and _PARAMETER.fullmatch(name) is not None and ".." not in name


def _is_text(value: object) -> bool:
    """Text that a terminal can show as it is."""
    return type(value) is str and value.isprintable() and len(value) <= _MAX_TEXT


def _digest(document: Mapping[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _require(holds: bool, name: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}")
