"""v2:URL: the Open Inference Protocol over HTTP, as KServe, Triton and MLServer speak it.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md; the binary
extension is Triton's, protocol/extension_binary_data.md.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from ground.documents import Malformed, typed
from ground.errors import InvalidInput
from ground.geometry import MAX_INPUT_SIZE, Normalisation
from models.names import identity_name
from models.origins import Preprocessing
from models.remote_names import InferenceAddress, inference_address
from storage.answers import AnswerForm, Kind
from storage.price import Price
from teacher_cache.teachers.attempts import Answer, Failure
from teacher_cache.teachers.contract import Card
from teacher_cache.teachers.elsewhere import RemoteAsked, RemoteOptions
from teacher_cache.teachers.remote import faults
from teacher_cache.teachers.remote.cards import InferenceCard, read_card
from teacher_cache.teachers.remote.exchange import Exchange, Outgoing, Reply, read_metadata
from teacher_cache.teachers.remote.identity import declared_card, settled_map
from teacher_cache.teachers.remote.keys import KEY_VARIABLE, Key, identifier
from teacher_cache.teachers.remote.pictures import png_base64
from teacher_cache.teachers.remote.saying import Saying, Unfit, numbers_of, places_of

_BINARY = "binary_tensor_data"
_USUAL_BATCH = 16
# Of an answer in JSON: a number, its digits, sign, exponent and comma.
_BYTES_A_NUMBER = 32
_FREE_BYTES = 1 << 20
_FLOATS = ("FP16", "FP32", "FP64", "BF16")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """What metadata say of an input or output."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metadata:
    """Of a model; all of it may be missing."""

    versions: tuple[str, ...] | None = None
    inputs: tuple[_Tensor, ...] | None = None
    outputs: tuple[_Tensor, ...] | None = None


class _Said(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str = ""
    data: Any = None


class _Response(msgspec.Struct):
    outputs: list[_Said]
    model_name: str | None = None
    model_version: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What is settled of a model, by its metadata and its card.

    Args:
        size: of its input; None where it takes any.
        output: None where it has one alone.
        num_classes: None where nobody says.
    """

    input: str
    datatype: Literal["FP32", "UINT8", "BYTES"]
    is_channels_last: bool
    size: int | None
    output: str | None
    num_classes: int | None
    max_batch: int
    versions: tuple[str, ...] = ()
    takes_binary: bool = False


def preprocessing(name: str, options: RemoteOptions, input_size: int | None) -> Preprocessing | None:
    """See `teacher_cache.teachers.elsewhere.preprocessing`."""
    card = _card(options)
    own = None if card.size is not None else _settled(name, inference_address(name), card, _key(card)).size
    return card.preprocessing(identity_name(name), own, input_size)


def open_remote(asked: RemoteAsked) -> OpenInferenceTeacher:
    """See `teacher_cache.teachers.elsewhere.open_remote`."""
    _require_options(asked.options)
    address, card = inference_address(asked.name), _card(asked.options)
    key = _key(card)
    model = _settled(asked.name, address, card, key)
    rendering = asked.rendering
    if model.size is not None and rendering.size != model.size:
        raise InvalidInput(
            f"{identity_name(asked.name)} takes images of {model.size} pixels, and would be given {rendering.size}; "
            f"give --input-size {model.size}"
        )
    count = len(card.classes) if card.classes else model.num_classes or len(asked.dataset.classes)
    class_map = settled_map(asked, count, card.classes)
    saying = Saying(AnswerForm(kind=Kind(card.answer)), count, class_map)
    declared = {
        "protocol": "v2",
        "endpoint": _endpoint(address),
        "model": address.model,
        "versions": model.versions,
        "input": model.input,
        "datatype": model.datatype,
        "channels_last": model.is_channels_last,
        "output": model.output,
        "card": card.part_of_identity,
    }
    made = declared_card(asked, rendering, saying, declared, sees_numbers=model.datatype == "FP32")
    return OpenInferenceTeacher(made, _endpoint(address), model, card, saying, key)


class OpenInferenceTeacher:
    """See `RemoteTeacher`: one request holds several images."""

    max_tokens_in = max_tokens_out = 0

    def __init__(
        self, card: Card, endpoint: str, model: _Model, said: InferenceCard, saying: Saying, key: Key | None
    ) -> None:
        self._card, self._url, self._model, self._said, self._saying = card, f"{endpoint}/infer", model, said, saying
        most = _FREE_BYTES + model.max_batch * saying.num_classes * _BYTES_A_NUMBER
        self._exchange = Exchange(endpoint, key, most)
        self._known = {name: place for place, name in enumerate(said.classes or ())}

    @property
    def card(self) -> Card:
        """See `RemoteTeacher.card`."""
        return self._card

    @property
    def max_batch(self) -> int:
        """See `RemoteTeacher.max_batch`."""
        return self._model.max_batch

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
        reply = await self._exchange.send(self._outgoing(images), deadline)
        if isinstance(reply, Failure):
            return [reply] * len(images)
        if reply.status != 200:
            own = self._exchange.request_id(reply.headers)
            failure = faults.of_status(
                reply.status, reply.headers, reply.seconds, request_id=own, errors_cost=self._said.errors_cost
            )
            return [failure] * len(images)
        return self._answers(reply, len(images))

    async def close(self) -> None:
        """See `RemoteTeacher.close`."""
        await self._exchange.close()

    def _outgoing(self, images: np.ndarray) -> Outgoing:
        model = self._model
        tensor: dict[str, Any] = {"name": model.input, "datatype": model.datatype}
        document: dict[str, Any] = {"id": uuid.uuid4().hex, "inputs": [tensor]}
        if model.output is not None:
            document["outputs"] = [{"name": model.output}]
        if model.datatype == "BYTES":
            files = [png_base64(image).decode("ascii") for image in images]
            tensor |= {"shape": [len(images), 1], "parameters": {"content_type": "base64"}, "data": files}
            return self._posted(document, b"")
        pixels = self._pixels(images)
        tensor["shape"] = list(pixels.shape)
        if model.takes_binary:
            raw = pixels.tobytes()
            tensor["parameters"] = {"binary_data_size": len(raw)}
            return self._posted(document, raw)
        tensor["data"] = pixels.ravel().tolist()
        return self._posted(document, b"")

    def _posted(self, document: dict[str, Any], raw: bytes) -> Outgoing:
        head = msgspec.json.encode(document)
        if not raw:
            return Outgoing("POST", self._url, head, {"content-type": "application/json"})
        headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
        return Outgoing("POST", self._url, head + raw, headers)

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        """What the model is shown, as its input says; the same numbers as a network here is shown."""
        if self._model.datatype == "FP32":
            images = normalised(images, self._card.rendering.normalisation)
        if self._model.is_channels_last:
            images = images.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images)

    def _answers(self, reply: Reply, count: int) -> list[Answer | Failure]:
        key = self._exchange.key
        own = self._exchange.request_id(reply.headers)
        try:
            said = msgspec.json.decode(reply.body, type=_Response)
            own = identifier(said.id, key) or own
            rows = self._rows(said, count)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return [faults.unreadable("the answer is no such JSON", reply.seconds, request_id=own)] * count
        except Unfit as error:
            return [faults.unreadable(str(error), reply.seconds, request_id=own)] * count
        name, version = identifier(said.model_name, key), identifier(said.model_version, key)
        model = " ".join(part for part in (name, version) if part) or None
        found: list[Answer | Failure] = []
        for row in rows:
            try:
                values = self._kept(row)
                found.append(Answer(values=values, model=model, request_id=own, seconds=reply.seconds))
            except Unfit as error:
                found.append(faults.unreadable(str(error), reply.seconds, model=model, request_id=own))
        return found

    def _rows(self, said: _Response, count: int) -> list[Any]:
        """What is said of each image, as it came."""
        wanted = self._model.output
        outputs = [output for output in said.outputs if wanted is None or output.name == wanted]
        if len(outputs) != 1:
            raise Unfit(f"{len(outputs)} outputs came that could be the answer")
        output, width = outputs[0], 1 if self._said.answer == "label" else self._saying.num_classes
        fits = output.shape in ([count, width], [count], [width]) and int(np.prod(output.shape)) == count * width
        if not fits:
            raise Unfit("the answer has another shape than images by classes")
        if not isinstance(output.data, list):
            raise Unfit("the answer holds no data in JSON")
        values = _flat(output.data)
        if len(values) != count * width:
            raise Unfit(f"{len(values)} values came for {count} images and {width} classes")
        return [values[place * width : (place + 1) * width] for place in range(count)]

    def _kept(self, row: list[Any]) -> dict[str, np.ndarray]:
        if self._said.answer == "label":
            return self._saying.of_label(self._place(row[0]))
        return self._saying.of_scores(numbers_of(row), Kind(self._said.answer))

    def _place(self, label: Any) -> int:
        if isinstance(label, int) and not isinstance(label, bool):
            return label
        return places_of([label], self._known)[0]


def normalised(images: np.ndarray, how: Normalisation) -> np.ndarray:
    """(C, 3, h, w) uint8 as float32, by the operations of `Normalisation.apply`, so to the same bits."""
    mean, std = (np.asarray(values, dtype=np.float32).reshape(1, 3, 1, 1) for values in (how.mean, how.std))
    return ((images.astype(np.float32) / np.float32(255.0)) - mean) / std


def _flat(data: list[Any]) -> list[Any]:
    """The values of nested lists, as the protocol lets servers write a tensor, in order."""
    while data and all(isinstance(item, list) for item in data):
        data = [value for item in data for value in item]
    return data


def _endpoint(address: InferenceAddress) -> str:
    version = "" if address.version is None else f"/versions/{address.version}"
    return f"{address.server}/v2/models/{address.model}{version}"


def _key(card: InferenceCard) -> Key | None:
    return card.read_key(KEY_VARIABLE)


def _card(options: RemoteOptions) -> InferenceCard:
    return InferenceCard() if options.card is None else read_card(options.card, InferenceCard)


def _require_options(options: RemoteOptions) -> None:
    for option in ("base_url", "prompt", "image_detail"):
        if getattr(options, option) is not None:
            raise InvalidInput(f"--{option.replace('_', '-')} is for openai:MODEL; leave it out")


def _settled(name: str, address: InferenceAddress, card: InferenceCard, key: Key | None) -> _Model:
    """What a model takes and gives; raises `InvalidInput` where neither server nor card says it."""
    who = identity_name(name)
    document = read_metadata(_endpoint(address), key, who)
    try:
        metadata = _Metadata() if document is None else typed(document, _Metadata)
    except Malformed as error:
        raise InvalidInput(f"{who} says of itself what cannot be ({error}); give another server") from None
    given = _chosen(who, "input", metadata.inputs or (), card.input)
    output = _output(who, metadata, card)
    datatype = card.datatype or (None if given is None else given.datatype)
    if given is None and (card.input is None or datatype is None):
        raise InvalidInput(f"{who} does not say what it takes; say it with --card FILE, as input, datatype and size")
    if datatype not in ("FP32", "UINT8", "BYTES"):
        raise InvalidInput(
            f"{who} takes images as {datatype}; FP32, UINT8 and BYTES can be sent, so give a model of these"
        )
    is_last, size, most = _shape(who, () if given is None or datatype == "BYTES" else given.shape, card)
    # Which changes how images are sent, and nothing else.
    server = None if datatype == "BYTES" else read_metadata(f"{address.server}/v2", key, who, is_identity=False)
    extensions = server.get("extensions") if isinstance(server, dict) else None
    return _Model(
        input=card.input or (given.name if given else ""),
        datatype=datatype,  # type: ignore[arg-type]
        is_channels_last=is_last,
        size=size,
        output=None if output is None else output.name,
        num_classes=_num_classes(output, card),
        max_batch=card.max_batch or most or _USUAL_BATCH,
        versions=metadata.versions or (),
        takes_binary=isinstance(extensions, list) and _BINARY in extensions,
    )


def _chosen(who: str, what: str, tensors: Sequence[_Tensor], wanted: str | None) -> _Tensor | None:
    names = ", ".join(ascii(tensor.name) for tensor in tensors)
    if wanted is not None:
        if tensors and wanted not in [tensor.name for tensor in tensors]:
            raise InvalidInput(f"{who} has no {what} {wanted!a}; it has {names}")
        return next((tensor for tensor in tensors if tensor.name == wanted), None)
    if len(tensors) > 1:
        raise InvalidInput(f"{who} has {len(tensors)} {what}s ({names}); say which is meant, as {what} in --card FILE")
    return tensors[0] if tensors else None


def _output(who: str, metadata: _Metadata, card: InferenceCard) -> _Tensor | None:
    """The one that holds the answer: the only one, or the only one that is called `logits`."""
    outputs = metadata.outputs or ()
    named = [output for output in outputs if output.name == card.answer]
    if card.output is None and len(outputs) > 1 and len(named) == 1:
        return named[0]
    found = _chosen(who, "output", outputs, card.output)
    if found is None and card.output is not None:
        return _Tensor(card.output, "", ())
    if found is not None and card.answer != "label" and found.datatype not in _FLOATS:
        raise InvalidInput(
            f"{who} answers with {found.datatype}, which are no {card.answer}; say what they are in --card FILE"
        )
    return found


def _shape(who: str, shape: tuple[int, ...], card: InferenceCard) -> tuple[bool, int | None, int | None]:
    """Whether channels come last, the size of images, and how many at once, of an input's shape; -1 there is any."""
    if not shape:
        return card.layout == "NHWC", card.size, None
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise InvalidInput(f"{who} takes an input {list(shape)}; give a model of images (any, 3, height, width)")
    is_last = shape[1] != 3 if card.layout is None else card.layout == "NHWC"
    height, width = shape[1:3] if is_last else shape[2:4]
    if height != width or height > MAX_INPUT_SIZE:
        raise InvalidInput(f"{who} takes images of {height} by {width} pixels; give a model of square ones")
    size = height if height > 0 else None
    if shape[0] > 1:
        raise InvalidInput(f"{who} takes {shape[0]} images at once and no fewer; give a model of any number of images")
    if size is not None and card.size not in (None, size):
        raise InvalidInput(f"{who} takes images of {size} pixels, and its card says {card.size}; correct the card")
    return is_last, size or card.size, shape[0] if shape[0] > 0 else None


def _num_classes(output: _Tensor | None, card: InferenceCard) -> int | None:
    if card.classes is not None:
        return len(card.classes)
    is_known = output is not None and len(output.shape) == 2 and output.shape[1] > 0 and card.answer != "label"
    return output.shape[1] if output is not None and is_known else card.num_classes
