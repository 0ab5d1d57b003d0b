"""Whether a teacher's classes are those of the data set, and what makes them so: a class map, by file or by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ground.errors import InvalidInput
from ground.terminal import plain
from models import canonical_name
from models.class_names import all_class_names_of
from models.origins import Asked
from models.trained_on import TrainedOn
from teacher_cache.class_map import ClassMap
from teacher_cache.class_map_file import BY_NAME, Classes, match_names, read_class_map

_FEATURES_ONLY = "keep no logits, with --features LAYERS --features-only"


@dataclass(frozen=True, slots=True)
class ClassChoice:
    """What the user says of a teacher's classes.

    Args:
        class_map: a file, "names" to match them by name, or a map that was read before; None for none.
        features_only: no logits are kept, so classes do not matter.
    """

    class_map: str | ClassMap | None = None
    features_only: bool = False


@dataclass(frozen=True, slots=True)
class Agreement:
    """How logits become those of the data's classes.

    Args:
        class_map: None where they are, as they come.
        taken: what is taken at the user's word of them; None for nothing.
    """

    class_map: ClassMap | None = None
    taken: str | None = None


@dataclass(frozen=True, slots=True)
class TeacherClasses:
    """What is known of a teacher's classes.

    Args:
        classes: how many, and their names.
        origin: what they come from, for messages.
        is_certain: whether the names came with the weights; those of published ones may not be those of others.
    """

    classes: Classes
    origin: str
    is_certain: bool

    @classmethod
    def said_by(cls, said: TrainedOn, weights: Path) -> TeacherClasses | None:
        """By the file of its weights; None where that names none."""
        if said.classes is None:
            return None
        names = tuple((name,) for name in said.classes)
        origin = f"{weights} was trained on {plain(said.dataset or 'other data')}, whose classes"
        return cls(Classes("teacher", len(names), names), origin, is_certain=True)

    @classmethod
    def published(cls, name: str, num_classes: int, asked: Asked) -> TeacherClasses:
        """By its origin, for the weights that come from there."""
        names = all_class_names_of(canonical_name(name), num_classes, asked)
        origin = f"the classes of {name}"
        return cls(Classes("teacher", num_classes, names), origin, is_certain=names is not None)

    @classmethod
    def of_weights(cls, name: str, num_classes: int, asked: Asked, weights: Path) -> TeacherClasses:
        """By its origin, for weights that may be the published ones, as they are of as many classes."""
        names = all_class_names_of(canonical_name(name), num_classes, asked)
        return cls(Classes("teacher", num_classes, names), f"the classes of {weights}", is_certain=False)


def agree(teacher: TeacherClasses, dataset: str, names: Sequence[str], choice: ClassChoice) -> Agreement:
    """Settle what a teacher's classes mean.

    Args:
        dataset: its name.
        names: of its classes.

    Raises:
        InvalidInput: they are not those of the data set and no map says what they are, or the map cannot be used.
    """
    if choice.features_only:
        return Agreement()
    theirs, ours = teacher.classes, Classes("data", len(names), tuple((name,) for name in names))
    if not theirs.count:
        raise InvalidInput(f"this teacher has no classes, so it gives no logits; {_FEATURES_ONLY}")
    published = f"the {theirs.count} classes of its library's own weights, in their order"
    if choice.class_map is not None:
        class_map, by_name = _map_of(choice.class_map, theirs, ours)
        taken = published if by_name and not teacher.is_certain else None
        return Agreement(_without_effect(class_map, theirs), taken)
    matched = _by_name(theirs, ours)
    are_same = theirs.names == ours.names or (matched is not None and _without_effect(matched, theirs) is None)
    if theirs.count != ours.count or not (are_same or (matched is None and not teacher.is_certain)):
        raise _mismatch(teacher, dataset, ours)
    if teacher.is_certain:
        return Agreement()
    return Agreement(taken=f"{theirs.count} classes in the order of {dataset}" if matched is None else published)


def _map_of(asked: str | ClassMap, theirs: Classes, ours: Classes) -> tuple[ClassMap, bool]:
    """The map, and whether it follows from what the teacher's classes are called."""
    if asked == BY_NAME:
        return match_names(theirs, ours), True
    if isinstance(asked, str):
        return read_class_map(Path(asked), theirs, ours)
    most = max(place for group in asked for place in group)
    if len(asked) != ours.count or most >= theirs.count:
        raise InvalidInput(
            f"the store's class map has {len(asked)} classes and names the teacher's {most}, and these weights are of "
            f"{theirs.count}; give the store's own --weights"
        )
    return asked, False


def _without_effect(class_map: ClassMap, theirs: Classes) -> ClassMap | None:
    """None for the map that changes nothing, so that it makes no other teacher of this one."""
    return None if class_map == tuple((place,) for place in range(theirs.count)) else class_map


def _by_name(theirs: Classes, ours: Classes) -> ClassMap | None:
    try:
        return match_names(theirs, ours)
    except InvalidInput:
        return None


def _mismatch(teacher: TeacherClasses, dataset: str, ours: Classes) -> InvalidInput:
    theirs = teacher.classes
    remedies = "say which is which with --class-map FILE (a CSV with the header teacher,data)"
    if _by_name(theirs, ours) is not None:
        remedies = f"match them by name, with --class-map {BY_NAME}, or {remedies}"
    if teacher.is_certain:
        remedies = f"give that data set, or other --weights, or {remedies}"
    return InvalidInput(
        f"{teacher.origin} are not those of {dataset} ({_difference(theirs, ours)}); {remedies}, or {_FEATURES_ONLY}"
    )


def _difference(theirs: Classes, ours: Classes) -> str:
    if theirs.count != ours.count:
        return f"{theirs.count} there, {ours.count} here"
    if _by_name(theirs, ours) is not None:
        return "the same in another order"
    assert theirs.names is not None, "unknown names differ by their number alone"
    assert ours.names is not None
    both = zip(theirs.names, ours.names, strict=True)
    place = next(place for place, (before, now) in enumerate(both) if before != now)
    return f"label {place} is {plain(theirs.names[place][0])} there, {plain(ours.names[place][0])} here"
