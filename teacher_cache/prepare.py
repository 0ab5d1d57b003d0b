"""From what the user asks for to what a build needs: the data set, the teacher, what it is shown, and the plan.

Everything that can be checked without a call is checked here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ground.documents import is_line
from ground.errors import InvalidInput
from ground.fitting import for_margin
from ground.geometry import Fit, shows_boxes
from models import canonical_name
from models.compute import Compute
from models.names import CALL_PRECISIONS, absolute_name, is_placed
from models.origins import Preprocessing
from models.remote_names import is_remote, without_path
from storage.answers import AnswerForm
from storage.identity import DatasetIdentity, Identity, require_storable
from storage.manifest import Manifest, is_store
from storage.schema import RowCounts
from teacher_cache.answers import Conversion, chosen_form
from teacher_cache.config import BuildConfig
from teacher_cache.datasets import ImageDataset, open_dataset
from teacher_cache.datasets.registry import takes_path
from teacher_cache.outputs import choose_outputs, further_layers, kept_parameters, parameter_specs
from teacher_cache.plan import BuildPlan, costed, draw_up, matching_store, require_buildable, require_disk
from teacher_cache.remote.billing import rates_of, require_bounded
from teacher_cache.remote.canaries import NUM_CANARIES
from teacher_cache.remote.limits import seconds_under_limits
from teacher_cache.rest import images_twice, rest_to_keep
from teacher_cache.rounds import bought_by_rules, choose_rows
from teacher_cache.sample import NestedSample, draw_sample
from teacher_cache.sanity import GATE_CALLS, gate_cells
from teacher_cache.shown import Shown, show
from teacher_cache.teachers import Card, ClassChoice, Teacher, TeacherSource, ZooTeacher, open_teacher
from teacher_cache.teachers.attempts import RemoteTeacher
from teacher_cache.teachers.elsewhere import open_remote
from teacher_cache.teachers.weights import default_weights
from teacher_cache.teachers.zoo import own_preprocessing, remote_asked
from teacher_cache.unpaid import unpaid_inputs


class Prepared(NamedTuple):
    """What a build, or an extension, is given."""

    plan: BuildPlan
    teacher: Teacher | RemoteTeacher
    shown: Shown

    @property
    def all_calls(self) -> int:
        """Calls still to be made, those among them that tell whether the teacher is the same."""
        return self.plan.needed_calls and self.plan.needed_calls + self.plan.canaries

    def seconds(self) -> float | None:
        """An estimate for the calls still to be made; None where it depends on a server alone."""
        plan, teacher, asking = self.plan, self.teacher, self.plan.config.asking
        if isinstance(teacher, RemoteTeacher):
            return seconds_under_limits(self.all_calls, teacher, asking)
        if not plan.needed_calls:
            return 0.0
        asked = Conversion.into(plan.identity, teacher.card).asked(plan.called_names)
        return plan.needed_calls * teacher.seconds_per_call(asked, plan.config.batch_size)

    def upper_micros(self) -> int | None:
        """The most that these calls can cost, where each is made once; None where nobody says a price."""
        rates = rates_of(self.teacher, self.plan.config.asking.price)
        return None if rates.price is None else self.all_calls * rates.upper_micros


def prepare_build(
    config: BuildConfig,
    dataset: ImageDataset | None = None,
    teacher: Teacher | RemoteTeacher | None = None,
    rounds: int = 1,
) -> Prepared:
    """Check everything that can be checked without a call, and count what is to be done.

    Args:
        dataset: the one that `config` names, where it is open already; its files are read once.
        teacher: the one that `config` names, or a stand-in, where it is open already.
        rounds: builds that it is done in, each of which asks a teacher elsewhere whether it is the same.

    Raises:
        CKDError: anything that would make the build fail later.
    """
    # Cheapest checks first: names, then files, then the images.
    if teacher is None:
        canonical_name(config.teacher)
    compute, dataset = _open_names(config, dataset)
    sample = draw_sample(
        len(dataset.train),
        config.n,
        config.seed,
        dataset.is_labelled,
        bought_by_rules(config.store, dataset.digest, config.seed),
        makes=config.select is not None and config.select.make().makes,
    )
    if teacher is None:
        teacher = _opened(_source(config), dataset, compute)
    return _prepare(config, dataset, teacher, sample, compute, rounds)


def prepare_test_build(
    config: BuildConfig, dataset: ImageDataset | None = None, teacher: Teacher | RemoteTeacher | None = None
) -> Prepared:
    """The same for the first n images of the test split, as evaluation shows them: one plain view each.

    Where a student and its teacher are compared on unseen images, those calls are calls like any others. They are kept
    in a store of their own, whose training split is the test images; it can grow. `config.views` and its policy are not
    used.

    Raises:
        CKDError: as `prepare_build`; InvalidInput if the test split is smaller than n.
    """
    if teacher is None:
        canonical_name(config.teacher)
    compute, dataset = _open_names(config, dataset)
    if not 2 <= config.n <= len(dataset.test):
        raise InvalidInput(
            f"{config.n} test images are asked for, and {dataset.name} has {len(dataset.test)}; ask for 2 to that many"
        )
    if teacher is None:
        # Its weights are looked for by the name of the whole data set, and it is the teacher of the training images.
        teacher = _opened(_source(config), dataset, compute)
    config = replace(config, views=1, view_policy="plain", rest=None, select=None)
    index = np.arange(config.n, dtype=np.int64)
    tested = replace(dataset, name=f"{dataset.name}/test", train=dataset.test)
    # A store holds at least one image for validation; nobody uses it.
    return _prepare(config, tested, teacher, NestedSample(train=index, val=index[:1]), compute)


def _opened(source: TeacherSource, dataset: ImageDataset, compute: Compute) -> Teacher | RemoteTeacher:
    """The teacher, here or elsewhere; see `open_teacher` and `open_remote`."""
    if is_remote(source.name):
        return open_remote(remote_asked(source, dataset))
    return open_teacher(source, dataset, compute)


def _source(config: BuildConfig) -> TeacherSource:
    return TeacherSource(
        name=config.teacher,
        weights=config.weights,
        rendering=config.rendering,
        boxes=shows_boxes(config.view_policy),
        code=config.code,
        further=further_layers(config.features),
        prompts=config.prompts,
        classes=ClassChoice(config.class_map, config.features_only),
        remote=config.remote,
    )


def images_of_build(config: BuildConfig) -> ImageDataset:
    """The images that a build shows its teacher, for several builds of one data set.

    Raises:
        CKDError: they are not there, or cannot be used.
    """
    return _open_names(config, None)[1]


def _open_names(config: BuildConfig, dataset: ImageDataset | None) -> tuple[Compute, ImageDataset]:
    precision = "fp32" if config.precision == "auto" else config.precision
    compute = Compute.choose(config.device, precision, precisions=CALL_PRECISIONS)
    if dataset is None:
        dataset = _open_dataset(config, own_preprocessing(_source(config)))
    return compute, dataset


def _open_dataset(config: BuildConfig, own: Preprocessing | None) -> ImageDataset:
    """The images; the user's own as he says, or as the teacher's library prepares them, where it says how.

    Then a plain view is what published preprocessing crops: 224 pixels from the centre of 256, say, or the same share
    of the size that is asked for.
    """
    said = config.rendering
    if not takes_path(config.dataset):
        if said.crop_pct is not None:
            raise InvalidInput(f"--crop-pct is for images of your own, and {config.dataset} has views of its own")
        return open_dataset(
            config.dataset,
            data_root=config.data_root,
            image_size=config.image_size,
            download=config.download,
            split=config.split,
            split_seed=config.split_seed,
            rehash=config.rehash,
        )
    geometry = said.folder_geometry(own, config.image_size)
    size = config.image_size if geometry is None else geometry.image_size
    usual, shape = "bilinear", Fit().shape
    if own is not None and geometry is not None:
        usual, shape = own.interpolation, for_margin(own.shape, geometry.image_size - geometry.crop_size)
    dataset = open_dataset(
        config.dataset,
        image_size=size,
        interpolation=said.interpolation or usual,
        squares=shape,
        split=config.split,
        split_seed=config.split_seed,
        rehash=config.rehash,
    )
    return dataset if geometry is None else replace(dataset, geometry=geometry)


def _prepare(
    config: BuildConfig,
    dataset: ImageDataset,
    teacher: Teacher | RemoteTeacher,
    sample: NestedSample,
    compute: Compute,
    num_builds: int = 1,
) -> Prepared:
    identity = _identity(config, dataset, teacher.card)
    require_storable(identity)
    store = matching_store(config.store, identity, config.array_format)
    before = None if store is None else store.manifest
    drawn, (sample, rounds) = sample, choose_rows(config, dataset.train, identity, compute, sample, before)
    rest = rest_to_keep(config.rest, sample, before, drawn)
    n = len(sample.train)
    num_images = max(n, 0 if store is None else store.manifest.n) + rest
    twice = images_twice(sample, before, drawn)
    sample = sample.keeping(num_images - n)
    counts = RowCounts(n=n, rest=len(sample.rest), num_val=len(sample.val), num_test=len(dataset.test))
    shown = show(
        dataset,
        sample,
        identity.teacher_rendering,
        policy=config.view_policy,
        seed=config.seed,
        num_views=config.views,
        store=store,
    )
    plan = draw_up(
        config,
        identity,
        shown,
        store,
        array_format=config.array_format,
        rows_of=lambda spec: counts.of(spec) + (twice if spec.is_training_sample else 0),
        called_outputs=identity.outputs,
        purpose="build",
        sources=_sources(config, dataset, teacher),
    )
    plan = replace(plan, num_images=num_images, rest=rest, rounds=rounds)
    # A store that is whole beyond its first answers has passed it, and nothing has to be decoded to say so; one of few
    # rows may be all that was bought of a teacher that did not pass.
    if not config.trust_teacher and (len(plan.missing_cells) or n < 2 * GATE_CALLS):
        plan = replace(plan, gate=gate_cells(plan.input_digests, identity))
    if isinstance(teacher, RemoteTeacher):
        plan = replace(plan, canaries=num_builds * min(NUM_CANARIES, len(sample.val)))
    if store is not None and store.is_published:
        require_buildable(plan, store)
    plan = costed(plan, unpaid_inputs(plan, store))
    if plan.needed_calls:
        require_bounded(rates_of(teacher, config.asking.price), identity.teacher.name, config.budget_micros)
    require_disk(plan, store)
    return Prepared(plan, teacher, shown)


def _sources(config: BuildConfig, dataset: ImageDataset, teacher: Teacher | RemoteTeacher) -> dict[str, str]:
    """Where images and weights lie, and what was listed, as far as a manifest can say it."""
    weights = config.weights
    if weights is None and isinstance(teacher, ZooTeacher):
        weights = default_weights(teacher.card.identity.name, dataset)
    # A teacher may come from elsewhere.
    place = None if weights is None or not weights.is_file() else str(weights.absolute())
    said = {**dataset.options, "weights": place, "listing": dataset.listing}
    if is_placed(teacher.card.identity.name):
        name = config.teacher
        said["teacher"] = without_path(name) if is_remote(name) else absolute_name(name)
    if config.prompts is not None:
        said["prompts"] = str(config.prompts.absolute())
    # A path need not be text.
    return {name: value for name, value in said.items() if value is not None and is_line(value)}


def _identity(config: BuildConfig, dataset: ImageDataset, card: Card) -> Identity:
    kept = Manifest.load(config.store).identity.kept_layers if is_store(config.store) else ()
    outputs = choose_outputs(
        card, config.features, config.feature_dtype, kept, features_only=config.features_only, keep=config.keep
    )
    form = None if config.features_only else chosen_form(card, config.keep)
    return Identity(
        teacher=card.identity,
        dataset=DatasetIdentity(
            name=dataset.name, digest=dataset.digest, classes=dataset.classes, squares=dataset.squares
        ),
        geometry=card.rendering.geometry,
        seed=config.seed,
        views=config.views,
        view_policy=config.view_policy,
        outputs=outputs,
        parameters=parameter_specs(kept_parameters(card, outputs)),
        answer=None if form == AnswerForm() else form,
    )
