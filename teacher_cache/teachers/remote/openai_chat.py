"""openai:MODEL: chat completions with an image, for any server that speaks them.

Source: OpenAI's API reference, "Create chat completion": messages with `image_url` parts, `logprobs`, `top_logprobs`,
`refusal`, `system_fingerprint`, `usage`. Its client library, which repeats twice by itself, is not used.
"""

from __future__ import annotations

import logging
import math
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
from teacher_cache.teachers.elsewhere import IMAGE_DETAILS, RemoteAsked, RemoteOptions
from teacher_cache.teachers.remote import faults
from teacher_cache.teachers.remote.cards import ChatCard, read_card
from teacher_cache.teachers.remote.class_prompt import Codes, read_template, written
from teacher_cache.teachers.remote.exchange import Exchange, Outgoing, Reply
from teacher_cache.teachers.remote.identity import declared_card
from teacher_cache.teachers.remote.keys import KEY_VARIABLE, OPENAI_VARIABLE, identifier, refuse_secrets
from teacher_cache.teachers.remote.pictures import png_base64
from teacher_cache.teachers.remote.saying import Saying, Unfit, best_form
from teacher_cache.teachers.remote.token_masses import Masses, Position, masses

log = logging.getLogger(__name__)

_MOST_BYTES = 4 << 20
_EXAMPLE = "--base-url http://HOST:PORT/v1"
_IMAGE = "{image}"
# Of a message, around its text and image.
_TOKENS_AROUND = 64
# What a refused image, or a refused prompt, is called in errors.
_REFUSALS = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")
_NO_QUOTA = "insufficient_quota"


class _Token(msgspec.Struct):
    token: str
    logprob: float


class _Position(msgspec.Struct):
    token: str
    logprob: float
    top_logprobs: list[_Token] = []


class _Logprobs(msgspec.Struct):
    content: list[_Position] | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    system_fingerprint: str | None = None
    id: str | None = None
    usage: _Usage | None = None


class _Error(msgspec.Struct):
    code: str | int | None = None


class _Errors(msgspec.Struct):
    error: _Error


def preprocessing(name: str, options: RemoteOptions, input_size: int | None) -> Preprocessing | None:
    """See `teacher_cache.teachers.elsewhere.preprocessing`."""
    return _card(options).preprocessing(identity_name(name), None, input_size)


def open_remote(asked: RemoteAsked) -> OpenAIChatTeacher:
    """See `teacher_cache.teachers.elsewhere.open_remote`; nothing is asked of the server."""
    options, card = asked.options, _card(asked.options)
    if options.base_url is None:
        raise InvalidInput(f"{asked.name} is asked of a server; say which, with {_EXAMPLE}")
    server = server_url(options.base_url, "--base-url", _EXAMPLE)
    if asked.classes.class_map is not None and not _is_as_it_is(asked):
        raise InvalidInput(f"{asked.name} is asked for the classes of {asked.dataset.name}; leave out --class-map")
    template = read_template(options.prompt)
    refuse_secrets(template, "the prompt")
    prompt, codes = written(template, asked.dataset.classes)
    saying = Saying(_form(card, len(codes.words)), len(codes.words))
    endpoint = f"{server.scheme}://{server.netloc}{server.path.rstrip('/')}/chat/completions"
    request = _request(asked.name.partition(":")[2], prompt, options.image_detail or IMAGE_DETAILS[0], card, saying)
    declared = {"protocol": "openai", "endpoint": endpoint, "request": request, "card": card.part_of_identity}
    made = declared_card(asked, asked.rendering, saying, declared, sees_numbers=False)
    return OpenAIChatTeacher(made, endpoint, request, prompt, codes, card, saying)


class OpenAIChatTeacher:
    """See `RemoteTeacher`: one image a request.

    Args:
        request: the body, with the image left out.
    """

    max_batch = 1

    def __init__(
        self,
        card: Card,
        endpoint: str,
        request: dict[str, Any],
        prompt: str,
        codes: Codes,
        said: ChatCard,
        saying: Saying,
    ) -> None:
        self._card, self._url, self._codes, self._said, self._saying = card, endpoint, codes, said, saying
        # All but the image is the same each time.
        self._before, self._after = msgspec.json.encode(request).split(_IMAGE.encode(), 1)
        # A token is at least a byte of text.
        self.max_tokens_in = len(prompt.encode()) + _TOKENS_AROUND + said.image_tokens
        self.max_tokens_out = said.max_tokens
        # Of each answer that was read by its tokens.
        self._num_read, self._missing = 0, 0.0
        self._exchange = Exchange(endpoint, said.read_key(KEY_VARIABLE, OPENAI_VARIABLE), _MOST_BYTES)

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
        content = self._before + png_base64(images[0]) + self._after
        outgoing = Outgoing("POST", self._url, content, {"content-type": "application/json"})
        reply = await self._exchange.send(outgoing, deadline)
        if isinstance(reply, Failure):
            return [reply]
        return [self._answer(reply) if reply.status == 200 else self._failure(reply)]

    async def close(self) -> None:
        """See `RemoteTeacher.close`; says how much of its answers was of no class that is known."""
        if self._num_read:
            share = 100 * self._missing / self._num_read
            what = f"{share:.2g} % of the probability is missing: of no class that is known"
            log.info("%s: of %d answers, %s", self._card.identity.name, self._num_read, what)
            self._num_read, self._missing = 0, 0.0
        await self._exchange.close()

    def _failure(self, reply: Reply) -> Answer | Failure:
        own = self._exchange.request_id(reply.headers)
        code = _error_code(reply.body)
        if code in _REFUSALS:
            return Answer(values={}, request_id=own, seconds=reply.seconds)
        return faults.of_status(
            reply.status,
            reply.headers,
            reply.seconds,
            request_id=own,
            errors_cost=self._said.errors_cost,
            is_final=code == _NO_QUOTA,
        )

    def _answer(self, reply: Reply) -> Answer | Failure:
        own = self._exchange.request_id(reply.headers)
        try:
            said = msgspec.json.decode(reply.body, type=_Completion)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return faults.unreadable("the answer is no such JSON", reply.seconds, request_id=own)
        key = self._exchange.key
        resolved = (identifier(said.model, key), identifier(said.system_fingerprint, key))
        model = " ".join(part for part in resolved if part) or None
        own = own or identifier(said.id, key)
        usage = _usage(said.usage)
        try:
            values = self._values(said)
        except Unfit as error:
            return faults.unreadable(str(error), reply.seconds, usage=usage, model=model, request_id=own)
        return Answer(values=values, usage=usage, model=model, request_id=own, seconds=reply.seconds)

    def _values(self, said: _Completion) -> dict[str, np.ndarray]:
        """Empty for a refusal, and for words that name no class: asked again, they would be the same."""
        if len(said.choices) != 1:
            raise Unfit(f"{len(said.choices)} answers came to one image")
        choice = said.choices[0]
        if choice.message.refusal or choice.finish_reason == "content_filter":
            return {}
        if self._saying.form.kind is Kind.LABEL:
            # A long name takes more tokens than an answer may have.
            place = self._codes.named(choice.message.content or "", is_cut=choice.finish_reason == "length")
            return {} if place is None else self._saying.of_label(place)
        seen = self._masses(choice)
        self._num_read, self._missing = self._num_read + 1, self._missing + seen.missing
        found = seen.distribution(self._saying.num_classes)
        if found is None:
            return {}
        if self._saying.form.kind is Kind.TOP_K:
            return self._saying.of_best(range(len(found)), found, Kind.PROBABILITIES)
        return self._saying.of_scores(np.log(found), Kind.LOG_PROBS)

    def _masses(self, choice: _Choice) -> Masses:
        given = (choice.logprobs.content or []) if choice.logprobs is not None else []
        if not given:
            raise Unfit("no log-probabilities came; where the server gives none, say so in --card FILE, answer: label")
        if len(given[0].top_logprobs) < self._said.top_logprobs:
            raise Unfit(f"{len(given[0].top_logprobs)} log-probabilities came of {self._said.top_logprobs}")
        return masses([_position(token) for token in given], self._codes)


def _position(token: _Position) -> Position:
    found: dict[str, float] = {token.token: token.logprob}
    for other in token.top_logprobs:
        # Tokens of different bytes may read the same.
        is_own = other.token == token.token
        found[other.token] = other.logprob if is_own else _added(found.get(other.token), other.logprob)
    if not all(math.isfinite(value) and value <= 1e-3 for value in found.values()):
        raise Unfit("log-probabilities came that are none")
    return Position(token.token, token.logprob, found)


def _added(first: float | None, second: float) -> float:
    return second if first is None else float(np.logaddexp(first, second))


def _request(model: str, prompt: str, detail: str, card: ChatCard, saying: Saying) -> dict[str, Any]:
    """The body; the parameters that make answers the same each time as far as the server can."""
    picture = {"url": f"data:image/png;base64,{_IMAGE}", "detail": detail}
    content = [{"type": "image_url", "image_url": picture}, {"type": "text", "text": prompt}]
    request: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "seed": card.seed,
        "n": 1,
        card.token_limit: card.max_tokens,
    }
    if saying.form.kind is not Kind.LABEL:
        request |= {"logprobs": True, "top_logprobs": card.top_logprobs}
    return request


def _form(card: ChatCard, num_classes: int) -> AnswerForm:
    """How it answers: about all classes where all can be listed, and else about the best."""
    kind = card.answer or ("log_probs" if num_classes <= card.top_logprobs else "top_k")
    return best_form(min(card.top_logprobs, num_classes)) if kind == "top_k" else AnswerForm(kind=Kind(kind))


def _usage(said: _Usage | None) -> Usage:
    if said is None:
        return Usage()
    counts = (said.prompt_tokens, said.completion_tokens)
    tokens_in, tokens_out = (None if count is None or not 0 <= count < 1 << 40 else count for count in counts)
    return Usage(tokens_in=tokens_in, tokens_out=tokens_out)


def _error_code(body: bytes) -> str | None:
    try:
        code = msgspec.json.decode(body, type=_Errors).error.code
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return code if isinstance(code, str) else None


def _is_as_it_is(asked: RemoteAsked) -> bool:
    """Whether a class map changes nothing, as that of a store which is gone on with."""
    return asked.classes.class_map == tuple((place,) for place in range(len(asked.dataset.classes)))


def _card(options: RemoteOptions) -> ChatCard:
    return ChatCard() if options.card is None else read_card(options.card, ChatCard)
