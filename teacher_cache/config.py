"""What the user asks of stage one; the defaults are those of the commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ground.errors import InvalidInput, UnknownName, store_command
from ground.geometry import VIEW_POLICIES
from ground.places import ObjectUrl, Place, only_read
from ground.user_code import UserCode
from models.names import is_placed
from models.remote_names import is_remote
from storage.answers import AnswerForm
from storage.database import parse_url, sqlite_path
from storage.float_types import FLOAT_TYPES
from storage.formats import FORMATS
from storage.identity import MAX_VIEWS
from storage.manifest import Manifest
from teacher_cache.class_map import ClassMap
from teacher_cache.datasets.registry import takes_path
from teacher_cache.remote.policy import AskingConfig
from teacher_cache.rendering import RenderingOverrides
from teacher_cache.rest import Rest
from teacher_cache.selection import SelectorSpec
from teacher_cache.teachers.elsewhere import RemoteOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class CallConfig:
    """How calls are made, whatever they are for.

    Args:
        store: its folder or URL; at a URL, whole chunks are written by a builder each, see
            `teacher_cache.chunk_builder`.
        ledger: URL of a shared ledger; None for the store's own.
        budget: most calls ever to be spent on this teacher; None leaves the ledger's as it is.
        budget_micros: the most that it may ever cost, likewise, in millionths of the currency of its price.
        batch_size: teacher calls made together.
        lease_seconds: how long other builders wait for this one when it no longer shows that it lives.
        accept_rollback: go on with a ledger that is older than its witness, or a fork.
        asking: how a teacher that is elsewhere is asked; of one that runs here, its price.
    """

    store: Place
    ledger: str | None = None
    budget: int | None = None
    budget_micros: int | None = None
    batch_size: int = 64
    lease_seconds: float = 60.0
    accept_rollback: bool = False
    asking: AskingConfig = field(default_factory=AskingConfig)

    def __post_init__(self) -> None:
        _require_between("batch_size", self.batch_size, 1 << 16)
        if not 0.5 <= self.lease_seconds <= 86400:
            raise InvalidInput(f"--lease must be 0.5 to 86400 seconds, got {self.lease_seconds}")

    @property
    def folder(self) -> Path:
        """The store's, where it is one on a disk; raises `InvalidInput` for one in object storage."""
        if isinstance(self.store, ObjectUrl):
            raise only_read(self.store)
        return self.store


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig(CallConfig):
    """A store to make, to finish or to grow.

    Args:
        n: training images the teacher is called on.
        weights: of the teacher; None looks where `train-teacher` puts them.
        features, feature_dtype: see `teacher_cache.outputs.choose_outputs`.
        views: V, calls per image.
        trust_teacher: go on whatever its first answers look like; see `teacher_cache.sanity`.
        code: what is done with a teacher that is code from outside this program.
        prompts: lines "class,prompt" of a teacher that compares images with texts.
        rendering: how the teacher is shown images, where that is not its library's or the data set's way.
        class_map: file that says what the teacher's classes are here, or "names", or a map that was read before; None
            where both sides have the same classes.
        features_only: keep no answers over the classes.
        keep: how these are kept; None for as the teacher gives them, or as the store that is there does.
        remote: what is said of a teacher that answers over a network.
        rest: further images to keep, which the teacher is not asked about; None for those of the store that is there.
        select: the rule that chooses what is bought beyond what the store has; None for the order of the seed.
        rehash: read every image file, whatever is known of it; see `teacher_cache.datasets.known_files`.
    """

    teacher: str
    n: int
    dataset: str = "cifar100"
    data_root: Path | None = None
    image_size: int | None = None
    split: str | None = None
    split_seed: int = 0
    code: UserCode = UserCode.REFUSED
    prompts: Path | None = None
    rendering: RenderingOverrides = field(default_factory=RenderingOverrides)
    download: bool = False
    weights: Path | None = None
    array_format: str = "zarr"
    features: str = "none"
    class_map: str | ClassMap | None = None
    features_only: bool = False
    keep: AnswerForm | None = None
    feature_dtype: str | None = None
    views: int = 1
    view_policy: str = "augmented"
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    trust_teacher: bool = False
    remote: RemoteOptions = field(default_factory=RemoteOptions)
    rest: Rest | None = None
    select: SelectorSpec | None = None
    rehash: bool = False

    def __post_init__(self) -> None:
        choices = {
            "format": (self.array_format, FORMATS),
            "view policy": (self.view_policy, VIEW_POLICIES),
        }
        for kind, (name, known) in choices.items():
            if name not in known:
                raise UnknownName(kind, name, known)
        _require_type(self.feature_dtype)
        if self.view_policy == "plain" and self.views > 1:
            raise InvalidInput("every plain view of an image is the same; use --views 1, or --view-policy augmented")
        if self.features_only and self.features == "none":
            raise InvalidInput("--features-only keeps no logits, so there is nothing to keep; give --features too")
        if self.features_only and self.class_map is not None:
            raise InvalidInput("--features-only keeps no logits, so there is nothing to map; leave out --class-map")
        if self.features_only and self.keep is not None:
            raise InvalidInput("--features-only keeps no answers over the classes; leave out --keep")
        _require_between("views", self.views, MAX_VIEWS)
        if isinstance(self.store, ObjectUrl):
            _require_for_objects(self.store, self)
        # Not super(): a dataclass with slots is another class than the one that is being defined.
        CallConfig.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionConfig(CallConfig):
    """Outputs to add to a whole store.

    Args:
        features: see `teacher_cache.extend.added_outputs`.
        feature_dtype: see `teacher_cache.outputs.choose_outputs`.
        weights: of the store's own teacher; None looks where `build` does.
        teacher: its name, where the store's does not lead to it: of a file, or of code.
        code: what is done with a teacher that is code from outside this program.
        prompts: as in `BuildConfig`.
    """

    features: str
    weights: Path | None = None
    teacher: str | None = None
    code: UserCode = UserCode.REFUSED
    prompts: Path | None = None
    feature_dtype: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        _require_type(self.feature_dtype)
        CallConfig.__post_init__(self)


def settings_of(manifest: Manifest) -> dict[str, Any]:
    """What of a `BuildConfig`, and of its rendering, a store says of itself, so that nobody has to say it again; types
    of features aside.

    The user's own images have no place there: what a manifest names, which may come from anybody, is not opened unless
    the user names it too.
    """
    identity = manifest.identity
    teacher, geometry = identity.teacher, identity.geometry
    settings = {
        "array_format": manifest.array_format,
        "features": ",".join(identity.features) or "none",
        "views": identity.views,
        "view_policy": identity.view_policy,
        "seed": identity.seed,
        "precision": teacher.precision,
        "input_size": teacher.input_size,
        "interpolation": teacher.interpolation,
        "mean": teacher.normalisation.mean,
        "std": teacher.normalisation.std,
        "class_map": identity.settled_class_map,
        "features_only": not identity.keeps_answers,
        "keep": identity.answer_form,
    }
    if not is_placed(identity.teacher.name):
        settings["teacher"] = identity.teacher.name
    if takes_path(identity.dataset.name):
        settings |= {"image_size": geometry.image_size, **division_of(manifest)}
        # Views that a data set cuts itself are padded, and no share of the image.
        settings["crop_pct"] = None if geometry.padding else geometry.crop_size / geometry.image_size
    else:
        settings["dataset"] = identity.dataset.name
    return settings


def division_of(manifest: Manifest) -> dict[str, Any]:
    """How its images were divided, where they came without splits."""
    split, seed = (manifest.sources.get(name) for name in ("split", "split_seed"))
    if split is None or seed is None or not (seed.isascii() and seed.isdecimal()):
        return {}
    return {"split": split, "split_seed": int(seed)}


def dataset_options_of(manifest: Manifest) -> dict[str, str]:
    """The options that opened a store's images when it was last built, as far as they are known."""
    names = ("dataset", "data_root", "split", "split_seed")
    return {name: manifest.sources[name] for name in names if name in manifest.sources}


def _require_for_objects(url: ObjectUrl, config: BuildConfig) -> None:
    """Refuse what cannot be built straight into object storage, and say what can be done instead."""
    publish = f"build it in a folder, and publish that with: {store_command('convert', 'DIR', to='objects', out=url)}"
    if config.array_format != "zarr":
        raise InvalidInput(f"HDF5 is one file, which stays on a local disk, and {url} is in object storage; {publish}")
    if config.select is not None and not config.select.is_random:
        raise InvalidInput(
            f"a store in object storage stays as it was made, and {config.select.text} chooses what a store grows by; "
            f"{publish}"
        )
    if is_remote(config.teacher):
        raise InvalidInput(
            f"{config.teacher} is asked image by image, and {url} takes whole chunks of rows at a time; {publish}"
        )
    if config.ledger is None or sqlite_path(parse_url(config.ledger)) is not None:
        raise InvalidInput(
            f"who builds into {url} divides the work by a ledger that all machines reach; give --ledger "
            f"postgresql://USER@HOST/DATABASE, or {publish}"
        )


def _require_type(name: str | None) -> None:
    if name is not None and name not in FLOAT_TYPES:
        raise UnknownName("feature dtype", name, FLOAT_TYPES)


def _require_between(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise InvalidInput(f"--{name.replace('_', '-')} must be 1 to {most}, got {value}")
