"""From the answers that a teacher gives to those that a store keeps.

All of it is computed on the teacher's device, in float32, but for the draws of `sampled`: these are made in float64 on
the CPU, from random numbers that follow from the store's seed and the input alone. So whoever answers for a cell, and
how often, the same logits give the same sample.

Sources: Anshumann et al., ACL 2025, Sparse Logit Sampling, arXiv:2503.16870, for `sampled`: with k draws from the
teacher's distribution, the share of a class among them has its probability as mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ground.errors import InvalidInput
from storage.answers import NO_CLASS, AnswerForm, Kind
from storage.identity import Identity
from teacher_cache.teachers import Answers, Card

# A label that no number led to: neither a class nor a refusal, so that no store takes it.
NO_NUMBER = -2
MOST_NUMBERS = 1 << 20
_LEAST = torch.finfo(torch.float32).tiny
# Numbers to draw with, (C, k), made only where they are needed.
_Random = Callable[[], np.ndarray]

_LOSSLESS = (Kind.LOG_PROBS, Kind.PROBABILITIES)
# What each kind can be made into; of its own kind, an answer stays as it is, or is cut.
_MADE_FROM: dict[Kind, tuple[Kind, ...]] = {
    Kind.LOGITS: tuple(Kind),
    Kind.LOG_PROBS: (*_LOSSLESS, Kind.TOP_K, Kind.SAMPLED, Kind.LABEL),
    Kind.PROBABILITIES: (*_LOSSLESS, Kind.TOP_K, Kind.SAMPLED, Kind.LABEL),
    Kind.TOP_K: (Kind.TOP_K, Kind.LABEL),
    Kind.SAMPLED: (Kind.SAMPLED,),
    Kind.LABEL: (Kind.LABEL,),
}
_SAID = {Kind.TOP_K: "top:K", Kind.SAMPLED: "sampled:K"}


def num_answered(card: Card) -> int:
    """Classes that a teacher's answers are over: those of the data, where a map says which of its own they are."""
    class_map = card.identity.class_map
    return card.identity.num_classes if class_map is None else len(class_map)


def gives_answers(card: Card) -> bool:
    """Whether a teacher answers over classes at all, and not with features alone."""
    return all(name in card.outputs for name in card.answer.names)


def chosen_form(card: Card, keep: AnswerForm | None) -> AnswerForm:
    """How a teacher's answers are kept; before any call.

    Args:
        keep: None for as it gives them.

    Raises:
        InvalidInput: that cannot be made of what it gives; names what it gives.
    """
    given, num_classes = card.answer, num_answered(card)
    if keep is None:
        return given
    gives = f"{card.identity.name} answers with {given.text}"
    if keep.kind not in _MADE_FROM[given.kind]:
        ways = ", ".join(_SAID.get(kind, kind.value) for kind in _MADE_FROM[given.kind])
        raise InvalidInput(f"{gives}, of which {keep.text} cannot be made; give --keep {ways}, or leave it out")
    is_cut = keep.kind is given.kind and keep.k is not None and given.k is not None
    if is_cut and ((keep.k or 0) > (given.k or 0) or (keep.kind is Kind.SAMPLED and keep != given)):
        raise InvalidInput(f"{gives}, of which {keep.text} cannot be made; leave out --keep, or keep fewer ids")
    if keep.kind is Kind.TOP_K and (keep.k or 0) > num_classes:
        raise InvalidInput(
            f"{keep.text} keeps more ids than the {num_classes} classes that there are; give --keep top:{num_classes} "
            "or fewer"
        )
    clash = sorted(set(keep.names) & set(card.identity.layers))
    if clash:
        raise InvalidInput(
            f"{card.identity.name} has a layer called {clash[0]!r}, as a store calls what --keep {keep.text} keeps; "
            "give another --keep"
        )
    return keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What becomes of each answer on its way into a store.

    Args:
        given: what the teacher says.
        kept: what the store keeps.
        seed: of the store.
    """

    given: AnswerForm
    kept: AnswerForm
    seed: int = 0

    @classmethod
    def into(cls, identity: Identity, card: Card) -> Conversion:
        """Into a store; one that keeps no answers takes none."""
        return cls(given=card.answer, kept=identity.answer_form or card.answer, seed=identity.seed)

    @property
    def changes_nothing(self) -> bool:
        """Whether answers are kept as they come; what becomes of a missing mass is not in them."""
        return (self.given.kind, self.given.k) == (self.kept.kind, self.kept.k)

    def asked(self, kept: Sequence[str]) -> tuple[str, ...]:
        """What the teacher is asked for, where these outputs are to be kept."""
        others = [name for name in kept if name not in self.kept.names]
        return (*(self.given.names if len(others) < len(kept) else ()), *others)

    def convert(self, said: Answers, inputs: Sequence[bytes]) -> Answers:
        """Answers as they are kept, with all else that was said; whatever numbers it is given, it raises nothing.

        What is no number stays none, so that no store takes it.

        Args:
            said: name -> (C, ...), as the teacher was asked.
            inputs: digests of what it was shown, in order.
        """
        if self.changes_nothing or not said.keys() >= {*self.given.names}:
            return said
        others = {name: values for name, values in said.items() if name not in self.given.names}
        own = {name: said[name] for name in self.given.names}
        try:
            return self._in_blocks(own, inputs) | others
        except torch.OutOfMemoryError:
            # A teacher may fill its device, and what it said is paid for.
            return self._in_blocks({name: values.cpu() for name, values in own.items()}, inputs) | others

    def _in_blocks(self, own: Answers, inputs: Sequence[bytes]) -> dict[str, Tensor]:
        wide = max(1, max(values[:1].numel() for values in own.values()))
        cuts = [*range(0, len(inputs), max(1, MOST_NUMBERS // wide)), len(inputs)]
        blocks = [
            self._converted({name: values[first:last] for name, values in own.items()}, inputs[first:last])
            for first, last in pairwise(cuts)
        ]
        return {name: torch.cat([block[name] for block in blocks]) for name in self.kept.names}

    def _converted(self, own: Answers, inputs: Sequence[bytes]) -> Answers:
        with torch.inference_mode():
            if self.given.kind is Kind.TOP_K:
                made = _cut(own, self.kept)
            else:
                made = _MAKERS[self.kept.kind](_Dense.of(self.given, own), self.kept, _random(self, inputs))
        return dict(zip(self.kept.names, made, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class _Dense:
    """Answers that say something of every class: what they are ordered by, and log-probabilities, both (C, K)."""

    scores: Tensor
    log_probs: Tensor

    @classmethod
    def of(cls, form: AnswerForm, own: Answers) -> _Dense:
        scores = own[form.names[0]].float()
        return cls(scores, _LOG_PROBS[form.kind](scores))

    @property
    def is_broken(self) -> Tensor:
        """(C,) which answers hold something that is no number, or nothing but what is too large or small for one."""
        return self.log_probs.isnan().any(dim=1) | ~self.log_probs.amax(dim=1).isfinite()


_LOG_PROBS: dict[Kind, Callable[[Tensor], Tensor]] = {
    Kind.LOGITS: lambda scores: scores.log_softmax(dim=1),
    Kind.LOG_PROBS: lambda scores: scores,
    # A probability of 0 is as small a one as float32 tells from it: its logarithm is kept too.
    Kind.PROBABILITIES: lambda scores: scores.clamp_min(_LEAST).log(),
}


def _largest(dense: _Dense, form: AnswerForm, random: _Random) -> tuple[Tensor, Tensor]:
    # Not topk, which leaves the order of equals open.
    ids = dense.scores.sort(dim=1, descending=True, stable=True).indices[:, : form.k]
    return ids.int(), dense.log_probs.gather(1, ids)


def _first(dense: _Dense, form: AnswerForm, random: _Random) -> tuple[Tensor]:
    return (dense.scores.argmax(dim=1).int().where(~dense.is_broken, NO_NUMBER),)


def _drawn(dense: _Dense, form: AnswerForm, random: _Random) -> tuple[Tensor, Tensor]:
    broken = dense.is_broken.cpu().numpy()
    logs = dense.log_probs.cpu().numpy().astype(np.float64)
    ids = np.full((len(logs), form.k or 0), NO_CLASS, np.int32)
    weights = np.zeros(ids.shape, np.float32)
    for row, numbers in enumerate(random()):
        if broken[row]:
            ids[row], weights[row] = 0, np.nan
        else:
            classes, shares = sample_of(logs[row], numbers)
            ids[row, : len(classes)], weights[row, : len(classes)] = classes, shares
    return torch.from_numpy(ids), torch.from_numpy(weights)


_MAKERS: dict[Kind, Callable[[_Dense, AnswerForm, _Random], tuple[Tensor, ...]]] = {
    Kind.LOG_PROBS: lambda dense, form, random: (dense.log_probs,),
    Kind.PROBABILITIES: lambda dense, form, random: (dense.log_probs.exp(),),
    Kind.TOP_K: _largest,
    Kind.SAMPLED: _drawn,
    Kind.LABEL: _first,
}


def _cut(own: Answers, form: AnswerForm) -> tuple[Tensor, ...]:
    """The first of what a teacher ranked itself."""
    ids, values = own["top_k.ids"].int(), own["top_k.values"].float()
    if form.kind is Kind.LABEL:
        return (ids[:, 0].where(~values.isnan().any(dim=1), NO_NUMBER),)
    return ids[:, : form.k], values[:, : form.k]


def sample_of(log_probs: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws from a distribution: the different classes, the most drawn first and of equals the lower one, and the share
    of each among the draws.

    Args:
        log_probs: (K,) float64, up to a constant.
        numbers: (k,) float64 in [0, 1), one a draw.
    """
    edges = np.exp(log_probs - log_probs.max()).cumsum()
    # To the right of the edge: a class without probability has no width, and is never drawn.
    drawn = np.searchsorted(edges, numbers * edges[-1], side="right").clip(max=len(edges) - 1)
    classes, counts = np.unique(drawn, return_counts=True)
    order = np.lexsort((classes, -counts))
    return classes[order], counts[order] / len(numbers)


def uniform_numbers(seed: int, input_digest: bytes, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1), from SHAKE-128 of both: the same with every library and on every machine."""
    stream = hashlib.shake_128(b"sampled" + seed.to_bytes(8, "little") + input_digest).digest(8 * count)
    return (np.frombuffer(stream, "<u8") >> np.uint64(11)) * 2.0**-53


def _random(conversion: Conversion, inputs: Sequence[bytes]) -> _Random:
    count = conversion.kept.k or 0
    return lambda: np.stack([uniform_numbers(conversion.seed, digest, count) for digest in inputs])
