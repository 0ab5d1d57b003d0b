"""Cards of teachers behind a network: what users say of one in a JSON file, typed and strict, and without code.

Everything that changes an answer belongs to the teacher's fingerprint, so the whole card does, but for prices, limits,
places of what is for the record, and where the key is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from ground.documents import Amount, Count, Line, Malformed, Positive, read_object, typed, unreadable
from models.network_card import MOST_BYTES, NetworkCard, Pixels
from models.origins import Preprocessing
from storage.price import Price
from teacher_cache.teachers.remote.json_places import require_place
from teacher_cache.teachers.remote.keys import Key, read_key, refuse_secrets, require_header, require_variable

Classes = Annotated[tuple[Line, ...], Meta(min_length=1, max_length=1 << 20)]
Scores = Literal["logits", "log_probs", "probabilities"]
_AMOUNT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,12})?", re.ASCII)
_FIELD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ADVICE = "correct it, as docs/teachers.md describes it"
# How far two answers of the same teacher may differ, where its card does not say.
_TOLERANCE = 1e-3
# Of a card, what changes no answer.
_NO_PART = (
    *("errors_cost", "key", "key_header", "key_prefix", "max_batch", "price", "tolerance", "image_tokens"),
    *("max_tokens_in", "max_tokens_out", "tokens_in_at", "tokens_out_at"),
    *("model_at", "request_id_at", "request_id_header"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceCard:
    """What an attempt costs, as decimal texts: for each call, and for a million tokens in and out."""

    call: Line = "0"
    input_tokens: Line = "0"
    output_tokens: Line = "0"

    def price(self) -> Price:
        """See `Price`."""
        return Price(**{name: _decimal(text) for name, text in asdict(self).items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCard:
    """What all cards may say.

    Args:
        size, resize, crop, interpolation, mean, std: how it is shown images; see `NetworkCard`.
        classes: the names of its classes, in its own order.
        key: variable of the environment in which its key is.
        key_header, key_prefix: how the key is sent, instead of as a bearer.
        errors_cost: whether the server may bill for errors of its own, statuses from 500.
        price: None where nothing is said.
        tolerance: how far two answers to the same image may differ, in any value.
    """

    size: Pixels | None = None
    resize: Pixels | None = None
    crop: Pixels | None = None
    interpolation: Line | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    classes: Classes | None = None
    key: Line | None = None
    key_header: Line = "authorization"
    key_prefix: Line = "Bearer "
    errors_cost: bool = True
    price: PriceCard | None = None
    tolerance: Amount = _TOLERANCE

    def __post_init__(self) -> None:
        _images(self)
        if self.key is not None:
            require_variable(self.key)
        require_header(self.key_header, self.key_prefix)
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("it names a class twice")
        if self.price is not None:
            self.price.price()

    def preprocessing(self, name: str, own: int | None, asked: int | None) -> Preprocessing | None:
        """How the teacher is shown images; None where nobody says a size.

        Args:
            name: ORIGIN:NAME as stores know it, for messages.
            own: the size that the server says; None where it takes any.
            asked: the size that the user says.
        """
        if own is None and self.size is None and asked is None:
            return None
        return _images(self).preprocessing(name, own, asked or 0)

    def read_key(self, *variables: str) -> Key | None:
        """The key, from the card's own variable or from the first of these that is set."""
        return read_key(variables if self.key is None else (self.key,), self.key_header, self.key_prefix)

    @property
    def own_price(self) -> Price | None:
        """What an attempt costs, where the card says it."""
        return None if self.price is None else self.price.price()

    @property
    def part_of_identity(self) -> dict[str, Any]:
        """What of it belongs to the teacher's fingerprint: what is said, and changes an answer."""
        usual = asdict(type(self)(**self._needed()))
        said = {name: value for name, value in asdict(self).items() if name not in _NO_PART}
        return {name: value for name, value in said.items() if value != usual.get(name) or name in self._needed()}

    def _needed(self) -> dict[str, Any]:
        """Fields that every card of this kind has to have."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceCard(RemoteCard):
    """Of a model behind the Open Inference Protocol, what its metadata leave open.

    Args:
        input: name of the input that images go into.
        datatype: of it; BYTES takes files, which are sent in base64.
        layout: of an input of pixels.
        output: name of the output that holds the answer.
        answer: what that is; of `label`, one number or name an image.
        max_batch: images of one request.
        num_classes: where neither classes nor the server's shapes say it.
    """

    input: Line | None = None
    datatype: Literal["FP32", "UINT8", "BYTES"] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    output: Line | None = None
    answer: Literal["logits", "log_probs", "probabilities", "label"] = "logits"
    max_batch: Annotated[int, Meta(ge=1, le=4096, description="a number of images from 1 to 4096")] | None = None
    num_classes: Positive | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCard(RemoteCard):
    """Of a model behind chat completions.

    Args:
        answer: log_probs of all classes, top_k of `top_logprobs` of them, or label, for servers that give no
            log-probabilities. None is log_probs where there are no more classes than `top_logprobs`, and else top_k.
        top_logprobs: how many the server gives for each token.
        max_tokens: of an answer.
        token_limit: what the server calls that.
        image_tokens: the most that the server bills for one image; the usual one is the most that OpenAI does (a
            photograph at high detail for gpt-4o-mini).
    """

    answer: Literal["log_probs", "top_k", "label"] | None = None
    top_logprobs: Annotated[int, Meta(ge=1, le=100, description="a number from 1 to 100")] = 20
    max_tokens: Annotated[int, Meta(ge=1, le=256, description="a number of tokens from 1 to 256")] = 8
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seed: Count = 0
    image_tokens: Count = 36_835
    # Log-probabilities of such servers differ from one time to the next.
    tolerance: Amount = 1.0

    def __post_init__(self) -> None:
        RemoteCard.__post_init__(self)
        if self.classes is not None:
            raise ValueError("it names classes, and the model is asked for those of the data set; leave them out")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoresCard(RemoteCard):
    """Of anything that takes an image and answers with scores in JSON.

    Places in JSON are written with dots: keys, positions from 0, and `*` for each item of a list.

    Args:
        method: of the request.
        send: `bytes`, the PNG file as the body; `multipart`, as the file of a form; `json`, in base64 within `json`.
        field: of the form.
        json: the body, in which the text {image} stands where the image in base64 goes.
        query: of the URL, name -> value.
        answer: what the scores are; `label` where there is only the name or position of one class, at `labels_at`.
        scores_at: where they are: in the order of `classes`, beside `labels_at`, or an object whose keys are labels.
        labels_at: where the label of each score is.
        top: how many of the best classes are answered, where it is not all of them.
        temperature: of the scores' softmax.
        model_at, request_id_at, tokens_in_at, tokens_out_at: where these are, if they are.
        request_id_header: of the answer.
    """

    method: Literal["POST", "PUT"] = "POST"
    send: Literal["bytes", "multipart", "json"] = "bytes"
    field: Line | None = None
    json: Mapping[str, Any] | None = None
    query: Mapping[str, Line] | None = None
    answer: Literal["logits", "log_probs", "probabilities", "label"]
    scores_at: Line | None = None
    labels_at: Line | None = None
    top: Positive | None = None
    temperature: Annotated[float, Meta(gt=0, le=1e4, description="a number above 0")] = 1.0
    model_at: Line | None = None
    request_id_at: Line | None = None
    request_id_header: Line | None = None
    tokens_in_at: Line | None = None
    tokens_out_at: Line | None = None
    max_tokens_in: Count = 0
    max_tokens_out: Count = 0

    def __post_init__(self) -> None:
        RemoteCard.__post_init__(self)
        if self.request_id_header is not None:
            require_header(self.request_id_header)
        if (self.send == "json") is not (self.json is not None) or (self.send == "multipart") is not (
            self.field is not None
        ):
            raise ValueError("send is json with the key json, multipart with the key field, and bytes with neither")
        if (self.answer == "label") is not (self.scores_at is None):
            raise ValueError("it gives scores_at for all answers but label, which has none")
        if self.answer == "label" and (self.labels_at is None or self.top is not None or self.temperature != 1):
            raise ValueError("a label is at labels_at, and has no top and no temperature")
        for name in ("scores_at", "labels_at", "model_at", "request_id_at", "tokens_in_at", "tokens_out_at"):
            if getattr(self, name) is not None:
                require_place(getattr(self, name))
        if self.field is not None and not _FIELD.fullmatch(self.field):
            raise ValueError("the field of a form is a name of letters, digits and _.-")
        if self.json is not None and msgspec.json.encode(self.json).count(b"{image}") != 1:
            raise ValueError("json has the text {image} once, where the image goes")
        if self.top is not None and (self.answer == "logits" or self.temperature != 1):
            raise ValueError("of the best classes alone, log_probs or probabilities at temperature 1 can be kept")

    def _needed(self) -> dict[str, Any]:
        """See `RemoteCard`."""
        names = ("answer", "scores_at", "labels_at", "send", "field", "json")
        return {name: getattr(self, name) for name in names}


_Card = TypeVar("_Card", bound=RemoteCard)


def read_card(path: Path, kind: type[_Card]) -> _Card:
    """The card in a file.

    Raises:
        InvalidInput: it cannot be read, says what cannot be or is not known, or holds a key.
    """
    try:
        document = read_object(path, MOST_BYTES)
        refuse_secrets(document, f"the card {path}", document.get("key"))
        given = {key for key in document if key in kind.__dataclass_fields__}
        if unknown := sorted(set(document) - given):
            raise Malformed(f"it has the key {unknown[0][:80]!a}, which nothing is known of")
        return typed(document, kind)
    except Malformed as error:
        raise unreadable(path, error, _ADVICE) from error


def _decimal(text: str) -> Decimal:
    if not _AMOUNT.fullmatch(text):
        raise ValueError(f"a price is {text[:40]!a}, which is no amount of money; give a decimal, as 0.25")
    return Decimal(text)


def _images(card: RemoteCard) -> NetworkCard:
    names = ("size", "resize", "crop", "interpolation", "mean", "std")
    return NetworkCard(**{name: getattr(card, name) for name in names})
