"""What a grid asks for: teacher-student pairs x methods x n x samples x seeds.

Nothing here opens a data set, a store or a teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from experiments.rules import RANDOM, checked, students_of
from experiments.weights import Form, Forms
from ground.errors import InvalidInput, UnknownName
from models import canonical_name
from models.names import is_code
from student_train.method_spec import MethodSpec
from student_train.methods import parse_method
from student_train.protocol import ProtocolConfig
from student_train.train_config import TrainConfig

# The row of what labels give without a call.
ALL_LABELS = "vanilla, all labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherStudent:
    """A teacher and a student.

    Args:
        weights: of the teacher; None looks where `ckd-cache build` does.
        teacher_epochs: train the teacher for so long, in the grid's folder, if it is not there; None never does.
        student_size: of the student's input, to which views are resized; None is the grid's.
    """

    teacher: str
    student: str
    weights: Path | None = None
    teacher_epochs: int | None = None
    student_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodEntry:
    """A row of the tables: a method with the settings it is trained with.

    Args:
        label: what tables call it.
        text: how the grid writes it, for people.
        candidates: settings of the training, of which the best by validation is chosen; usually one.
        line: in the grid, for messages.
        rest: what it learns from images that the teacher was not asked about, as the grid writes it
            (`experiments.rests`).
        select: the rule that chose the rows it learns from (`experiments.rules`).
        base: its label, whatever the rule.
        weighed: the method with each of the weights among which validation chooses too; none where it has one for each
            loss. `spec` and `rest` are then those of the first.
    """

    label: str
    text: str
    spec: MethodSpec
    candidates: tuple[Mapping[str, Any], ...]
    line: int
    rest: tuple[str, ...] = ()
    select: str = RANDOM
    base: str = ""
    weighed: tuple[Form, ...] = ()

    @classmethod
    def of(cls, forms: Forms, **said: Any) -> MethodEntry:
        """That with these forms; raises `UnknownName`, `InvalidInput` where one of them is refused."""
        first, *others = made = forms.made()
        return cls(spec=first.spec, rest=first.rest, weighed=made if others else (), **said)

    @property
    def forms(self) -> tuple[Form, ...]:
        """The method with each weight, at least one."""
        return self.weighed or (Form(self.text, self.spec, self.rest),)

    @property
    def num_candidates(self) -> int:
        """Students of each seed, of which one is chosen."""
        return len(self.candidates) * len(self.forms)

    def require_looked_at(self, rule: str) -> None:
        """Raise `InvalidInput` where a rule cannot look at its students, while rows are bought."""
        if self.num_candidates > 1:
            raise InvalidInput(f"{self.base} chooses among trainings, and a rule looks at one; give it one")
        if self.rest:
            raise InvalidInput(
                f"{self.base} learns from a rest, of which nobody knows what is left before all rows are bought, and "
                f"{rule} looks at its students before; let it look at a method without rest"
            )

    def configs(self, student: str, seed: int) -> list[TrainConfig]:
        """One for each candidate."""
        return [train_config(student, seed, settings) for settings in self.candidates]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """How stores are built; as the options of `ckd-cache build`.

    Args:
        rest: images to keep beside the largest n, without asking about them; None for all there are.
    """

    views: int = 1
    view_policy: str = "augmented"
    seed: int = 0
    array_format: str = "zarr"
    feature_dtype: str | None = None
    budget: int | None = None
    trust_teacher: bool = False
    rest: int | None = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Everything a grid says.

    Args:
        student_size: of students' inputs, where their pair does not say; None shows them views as they are.
        split, split_seed: how images without splits of their own are divided, as `ckd-cache build --split`.
        sizes: values of n, increasing.
        seeds: of the students' trainings.
        sample_seeds: of the samples, a store each; none for the one sample that `store.seed` draws.
        targets: accuracies in (0, 1) whose price in teacher calls is asked for.
        test_images: images of the test split that each teacher is called on, to compare its logits with students'.
        labels_only: the row of labels alone: every labelled image of a store, n = 0, no call; None for none. Its rule
            may be none of the methods': then its store is one that nothing is asked about.
        room: rows that stores in the order of the seed are laid out with before any call, for the validation images
            that go with them; None for the largest n.
        path, source: the file it was read from, and what it said; None for one that was never written.
        lines: key -> line in the file, for what is found out later.
    """

    name: str
    dataset: str
    data_root: Path | None = None
    image_size: int | None = None
    split: str | None = None
    split_seed: int = 0
    student_size: int | None = None
    pairs: tuple[TeacherStudent, ...]
    methods: tuple[MethodEntry, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    sample_seeds: tuple[int, ...] = ()
    store: StoreSettings = field(default_factory=StoreSettings)
    targets: tuple[float, ...] = ()
    test_images: int = 0
    labels_only: MethodEntry | None = None
    room: int | None = None
    path: Path | None = None
    source: bytes = b""
    lines: Mapping[str, int] = field(default_factory=dict)

    def refused(self, key: str, reason: object) -> InvalidInput:
        """An error to raise that names the line of a key."""
        if self.path is None:
            return InvalidInput(str(reason))
        line = self.lines.get(key)
        return InvalidInput(f"{self.path}{'' if line is None else f', line {line}'}: {reason}")

    def size_of(self, pair: TeacherStudent) -> int | None:
        """Of a student's input; None where it takes the views as they are."""
        return self.student_size if pair.student_size is None else pair.student_size

    @property
    def samples(self) -> tuple[int, ...]:
        """Seeds of all samples, at least one."""
        return self.sample_seeds or (self.store.seed,)

    @property
    def entries(self) -> tuple[MethodEntry, ...]:
        """The methods, and labels alone where they are a row."""
        return self.methods if self.labels_only is None else (*self.methods, self.labels_only)

    def sizes_of(self, entry: MethodEntry) -> tuple[int, ...]:
        """Values of n that one of `entries` is trained at."""
        return (0,) if entry is self.labels_only else self.sizes

    @property
    def rules(self) -> tuple[str, ...]:
        """By which rows are bought, a store each."""
        return tuple(dict.fromkeys(entry.select for entry in self.methods))

    @property
    def orders(self) -> tuple[str, ...]:
        """Those, and the rule whose store labels alone learn from."""
        return tuple(dict.fromkeys(entry.select for entry in self.entries))

    @property
    def num_runs(self) -> int:
        """Students to be trained."""
        candidates = sum(entry.num_candidates * len(self.sizes_of(entry)) for entry in self.entries)
        return len(self.pairs) * candidates * len(self.samples) * len(self.seeds)


_PROTOCOL = tuple(item.name for item in fields(ProtocolConfig))


def single_grid(
    *,
    teacher: str,
    student: str,
    method: str,
    dataset: str,
    data_root: Path | None,
    weights: Path | None,
    seeds: int,
    lr: Sequence[float],
    rest: Sequence[str] = (),
    trust_teacher: bool = False,
    select: str = RANDOM,
    student_size: int | None = None,
    **training: Any,
) -> Grid:
    """A grid of one pair and one method, without sizes: what `until` grows.

    Args:
        method: as a grid writes it, as is `rest`: of a weight that is `auto` validation chooses.
        lr: learning rates among which it chooses too; at least one.

    Raises:
        CKDError: a name is not known, or a setting is refused.
    """
    pair = TeacherStudent(teacher=network_called(teacher), student=network_called(student), weights=weights)
    entry = MethodEntry.of(
        Forms.of_method(method, rest),
        label=method,
        text=method,
        candidates=tuple({**training, "lr": rate} for rate in dict.fromkeys(lr)),
        line=0,
        select=select,
        base=method,
    )
    for settings in entry.candidates:
        train_config(pair.student, 0, settings)
    for label in students_of(select):
        if label != method:
            raise UnknownName("method", label, [method])
        entry.require_looked_at(select)
    checked(select, seeds)
    return Grid(
        name="until",
        dataset=dataset,
        data_root=data_root,
        student_size=student_size,
        pairs=(pair,),
        methods=(entry,),
        sizes=(),
        seeds=tuple(range(seeds)),
        store=StoreSettings(trust_teacher=trust_teacher),
    )


def train_config(student: str, seed: int, settings: Mapping[str, Any]) -> TrainConfig:
    """The configuration of one training, from the flat settings of a grid."""
    protocol = ProtocolConfig(**{key: value for key, value in settings.items() if key in _PROTOCOL})
    rest = {key: value for key, value in settings.items() if key not in _PROTOCOL}
    return TrainConfig(student=student, seed=seed, protocol=protocol, **rest)


def network_called(name: str) -> str:
    """Its canonical name; raises `InvalidInput` for code, which workers would run without having been asked."""
    if is_code(name):
        raise InvalidInput(
            f"{name} is code from outside this program, and grids take none; build with ckd-cache and train with "
            "ckd-train, each with --allow-code"
        )
    return canonical_name(name)


def labels_alone(candidates: tuple[Mapping[str, Any], ...], line: int = 0, select: str = RANDOM) -> MethodEntry:
    """The row of labels alone.

    Args:
        candidates: settings of its training.
        line: in the grid, for messages.
        select: the rule from whose store it learns; with a whole rest all of them keep the same images.
    """
    return MethodEntry(
        label=ALL_LABELS,
        text="vanilla",
        spec=parse_method("vanilla"),
        candidates=candidates,
        line=line,
        rest=("ce",),
        select=select,
    )


def slug(text: str) -> str:
    """Text as part of a file's name."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_.") else "-" for letter in text)[:60]
