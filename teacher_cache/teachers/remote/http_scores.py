"""http:URL: anything that takes an image and answers with scores in JSON, described by a card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from ground.errors import InvalidInput
from models.names import identity_name
from models.origins import Preprocessing
from models.remote_names import server_url
from storage.answers import AnswerForm, Kind
from storage.price import Price
from teacher_cache.teachers.attempts import Answer, Failure, Usage
from teacher_cache.teachers.contract import Card
from teacher_cache.teachers.elsewhere import RemoteAsked, RemoteOptions
from teacher_cache.teachers.remote import faults
from teacher_cache.teachers.remote.cards import ScoresCard, read_card
from teacher_cache.teachers.remote.exchange import Exchange, Outgoing, Reply
from teacher_cache.teachers.remote.identity import declared_card, settled_map
from teacher_cache.teachers.remote.json_places import found_at
from teacher_cache.teachers.remote.keys import KEY_VARIABLE, identifier
from teacher_cache.teachers.remote.pictures import png, png_base64
from teacher_cache.teachers.remote.saying import Saying, Unfit, best_form, numbers_of, places_of

_IMAGE = b"{image}"
_MOST_BYTES = 16 << 20
_BOUNDARY = "teacher-cache-9c1f0d7ab35e4f22b0c8"


def preprocessing(name: str, options: RemoteOptions, input_size: int | None) -> Preprocessing | None:
    """See `teacher_cache.teachers.elsewhere.preprocessing`."""
    return _card(name, options).preprocessing(identity_name(name), None, input_size)


def open_remote(asked: RemoteAsked) -> HttpScoresTeacher:
    """See `teacher_cache.teachers.elsewhere.open_remote`; nothing is asked of the server."""
    options, said = asked.options, _card(asked.name, asked.options)
    for option in ("base_url", "prompt", "image_detail"):
        if getattr(options, option) is not None:
            raise InvalidInput(f"--{option.replace('_', '-')} is for openai:MODEL; leave it out")
    url = asked.name.partition(":")[2]
    server_url(url, "the teacher http:", "http:https://HOST/PATH")
    # What names classes without a list of its own can only mean the data's.
    names = said.classes or (asked.dataset.classes if said.labels_at is not None else None)
    count = len(names or asked.dataset.classes)
    class_map = settled_map(asked, count, names)
    form = AnswerForm(kind=Kind(said.answer)) if said.top is None else best_form(said.top)
    saying = Saying(form, count, class_map)
    declared = {"protocol": "http", "endpoint": url, "card": said.part_of_identity, "classes": names}
    made = declared_card(asked, asked.rendering, saying, declared, sees_numbers=False)
    return HttpScoresTeacher(made, url, said, saying, names or asked.dataset.classes)


class HttpScoresTeacher:
    """See `RemoteTeacher`: one image a request.

    Args:
        names: of the teacher's classes.
    """

    max_batch = 1

    def __init__(self, card: Card, url: str, said: ScoresCard, saying: Saying, names: Sequence[str]) -> None:
        self._card, self._url, self._said, self._saying = card, url, said, saying
        self._known = {name: place for place, name in enumerate(names)}
        self._content = _content(said)
        self.max_tokens_in, self.max_tokens_out = said.max_tokens_in, said.max_tokens_out
        self._exchange = Exchange(url, said.read_key(KEY_VARIABLE), _MOST_BYTES)

    @property
    def card(self) -> Card:
        """See `RemoteTeacher.card`."""
        return self._card

    @property
    def price(self) -> Price | None:
        """See `RemoteTeacher.price`."""
        return self._said.own_price

    @property
    def tolerance(self) -> float:
        """See `RemoteTeacher.tolerance`."""
        return self._said.tolerance

    async def ask(self, images: np.ndarray, deadline: float) -> Sequence[Answer | Failure]:
        """See `RemoteTeacher.ask`."""
        assert len(images) == 1, "max_batch"
        before, after, kind = self._content
        image = png_base64(images[0]) if self._said.send == "json" else png(images[0])
        outgoing = Outgoing(
            self._said.method, self._url, before + image + after, {"content-type": kind}, self._said.query
        )
        reply = await self._exchange.send(outgoing, deadline)
        if isinstance(reply, Failure):
            return [reply]
        if reply.status == 200:
            return [self._answer(reply)]
        own, costs = self._request_id(reply, None), self._said.errors_cost
        return [faults.of_status(reply.status, reply.headers, reply.seconds, request_id=own, errors_cost=costs)]

    async def close(self) -> None:
        """See `RemoteTeacher.close`."""
        await self._exchange.close()

    def _answer(self, reply: Reply) -> Answer | Failure:
        try:
            document = msgspec.json.decode(reply.body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            own = self._request_id(reply, None)
            return faults.unreadable("the answer is no JSON", reply.seconds, request_id=own)
        said, own = self._said, self._request_id(reply, document)
        model = identifier(_text_at(document, said.model_at), self._exchange.key)
        usage = Usage(
            tokens_in=_count_at(document, said.tokens_in_at), tokens_out=_count_at(document, said.tokens_out_at)
        )
        try:
            values = self._values(document)
        except Unfit as error:
            return faults.unreadable(str(error), reply.seconds, usage=usage, model=model, request_id=own)
        return Answer(values=values, usage=usage, model=model, request_id=own, seconds=reply.seconds)

    def _values(self, document: Any) -> dict[str, np.ndarray]:
        said = self._said
        if said.scores_at is None:
            assert said.labels_at is not None, "the card was checked"
            return self._saying.of_label(places_of([found_at(document, said.labels_at)], self._known)[0])
        scores = found_at(document, said.scores_at)
        labels = None if said.labels_at is None else found_at(document, said.labels_at)
        if isinstance(scores, dict) and labels is None:
            labels, scores = list(scores), list(scores.values())
        numbers = numbers_of(scores)
        if labels is None:
            places: Sequence[int] = range(len(numbers))
        else:
            places = places_of(labels if isinstance(labels, list) else [labels], self._known)
        if len(places) != len(numbers):
            raise Unfit(f"{len(places)} labels came with {len(numbers)} scores")
        if said.top is not None:
            return self._saying.of_best(places, numbers, Kind(said.answer))
        return self._saying.of_scores(_in_order(places, numbers), Kind(said.answer), said.temperature)

    def _request_id(self, reply: Reply, document: Any) -> str | None:
        in_headers = self._exchange.request_id(reply.headers, self._said.request_id_header)
        return in_headers or identifier(_text_at(document, self._said.request_id_at), self._exchange.key)


def _in_order(places: Sequence[int], numbers: np.ndarray) -> np.ndarray:
    """Scores in the order of the classes; as many as there are, if each came once."""
    if len(set(places)) < len(places):
        raise Unfit("a class came twice")
    return numbers[np.argsort(np.asarray(places, dtype=np.int64), kind="stable")]


def _text_at(document: Any, place: str | None) -> Any:
    """None where it is not said, or is not there: it is only for the record."""
    if place is None or document is None:
        return None
    try:
        return found_at(document, place)
    except Unfit:
        return None


def _count_at(document: Any, place: str | None) -> int | None:
    found = _text_at(document, place)
    is_count = isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 1 << 40
    return found if is_count else None


def _content(said: ScoresCard) -> tuple[bytes, bytes, str]:
    """What stands before the image in a request's body, what after, and its type."""
    if said.send == "json":
        before, after = msgspec.json.encode(said.json).split(_IMAGE)
        return before, after, "application/json"
    if said.send == "multipart":
        head = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{said.field}"; filename="image.png"\r\n'
            "Content-Type: image/png\r\n\r\n"
        )
        return head.encode(), f"\r\n--{_BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={_BOUNDARY}"
    return b"", b"", "image/png"


def _card(name: str, options: RemoteOptions) -> ScoresCard:
    if options.card is None:
        raise InvalidInput(f"{identity_name(name)} needs a description of what it takes and gives; give --card FILE")
    return read_card(options.card, ScoresCard)
