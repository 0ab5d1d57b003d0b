"""Whether a store keeps what a method learns from: answers of a kind that its losses can use, and a last layer."""

from __future__ import annotations

from collections.abc import Sequence

from ground.errors import InvalidInput
from ground.layers import LOGITS
from storage.answers import AnswerForm
from storage.identity import Identity
from storage.schema import HEAD_WEIGHT
from student_train.losses import LOSSES
from student_train.losses.kinds import why_not
from student_train.method_spec import LossSpec, MethodSpec
from student_train.methods import parse_method
from student_train.recipes import METHODS

_MOST_NAMED = 6


def require_answers(method: MethodSpec, student: Sequence[str], identity: Identity) -> None:
    """Refuse a method that cannot learn from what a store keeps of the teacher's answers.

    It needs logits, and the store keeps no answers over the classes, or none that its losses can use; or it needs the
    layer that makes logits, and the store has none.

    Args:
        student: its layers.

    Raises:
        InvalidInput: names the losses that cannot learn here and why, and methods that can.
    """
    asking = [loss for loss in method.losses if _asks_logits(loss, student, identity)]
    if asking and not identity.keeps_answers:
        names = [loss.name for loss in asking]
        same_classes = identity.teacher.num_classes == len(identity.dataset.classes)
        later = ", or add the logits with ckd-cache extend --features logits" if same_classes else ""
        raise InvalidInput(
            f"{' and '.join(names)} learn{'s' if len(names) == 1 else ''} from the teacher's logits, and the store "
            f"keeps features only; give {_that_fit(student, identity)}{later}"
        )
    form = identity.answer_form
    reasons = [] if form is None else [(loss.name, _why_not(loss, form)) for loss in asking]
    refused = [f"{name} ({reason})" for name, reason in reasons if reason is not None]
    if form is not None and refused:
        raise InvalidInput(
            f"the store keeps the teacher's answers as {form.text}, and that is nothing to learn from for "
            f"{' and '.join(refused)}; give {_that_fit(student, identity)}"
        )
    through = [loss.name for loss in method.losses if loss.needs.head]
    if through and _has_no_head(identity):
        raise InvalidInput(
            f"{' and '.join(through)} go{'es' if len(through) == 1 else ''} through the teacher's last layer, and the "
            f"store keeps none that gives the logits of its classes; give {_that_fit(student, identity)}"
        )


def _has_no_head(identity: Identity) -> bool:
    """Whether a build kept no last layer; a store of an older format may lack it too, and can be upgraded."""
    adds_classes = any(len(group) > 1 for group in identity.teacher.class_map or ())
    is_kept = any(spec.name == HEAD_WEIGHT for spec in identity.parameters)
    return not identity.keeps_answers or adds_classes or (bool(identity.parameters) and not is_kept)


def _asks_logits(loss: LossSpec, student: Sequence[str], identity: Identity) -> bool:
    return any(theirs == LOGITS for _, theirs in loss.needs.pairs(student, identity.teacher.layers))


def _why_not(loss: LossSpec, form: AnswerForm) -> str | None:
    return why_not(loss.make(), form, compared=loss.compared, standardised=loss.standardised)


def _that_fit(student: Sequence[str], identity: Identity) -> str:
    """Some methods that learn from what a store keeps."""
    names = dict.fromkeys([*METHODS, *LOSSES])
    fitting = [spec for name in names if (spec := _as_it_fits(name, student, identity)) is not None]
    if not fitting:
        return "--method vanilla, or keep more features with ckd-cache extend"
    return f"a method of what is kept, as {', '.join(fitting[:_MOST_NAMED])}"


def _as_it_fits(name: str, student: Sequence[str], identity: Identity) -> str | None:
    """A method as it is published, or else at temperature 1, or without its KD; None where none of them fits."""
    form = identity.answer_form
    kept = {*identity.features, *(() if form is None else (LOGITS,))}
    has_head = any(spec.name == HEAD_WEIGHT for spec in identity.parameters)
    for spec in (name, f"{name}:temperature=1", f"{name}:kd=0"):
        try:
            method = parse_method(spec)
            asked = method.wanted(student, identity.teacher.layers, logits=False).teacher
        except InvalidInput:  # it has no such setting, or asks for layers that one of the two has not
            continue
        asking = [loss for loss in method.losses if _asks_logits(loss, student, identity)]
        learns = form is None or not any(_why_not(loss, form) for loss in asking)
        is_kept = kept.issuperset(asked) and (has_head or not any(needs.head for needs in method.needs))
        if asked and is_kept and learns:
            return spec
    return None
