"""A teacher that is elsewhere, in this process: it answers by a formula over the pixels, and fails as it is told to.

It keeps the books that a provider would: what it billed, by input. So a test can compare the ledger with what really
happened.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import numpy as np

from ground.geometry import Rendering
from storage.bill import Billed, FailureKind
from storage.identity import TeacherIdentity
from storage.price import Price
from teacher_cache.datasets import ImageDataset
from teacher_cache.teachers import Card
from teacher_cache.teachers.attempts import Answer, Failure, Usage

CLASSES = 10
TOKENS_IN, TOKENS_OUT = 85, 5
PRICE = Price(call=Decimal("0.001"), input_tokens=Decimal(2), output_tokens=Decimal(8))

NOT_SENT = Failure(kind=FailureKind.NOT_SENT, billed=Billed.NO, why="the connection was refused")
RATE_LIMITED = Failure(kind=FailureKind.RATE_LIMITED, billed=Billed.NO, why="429 Too Many Requests")
REJECTED = Failure(kind=FailureKind.REJECTED, billed=Billed.NO, why="503 Service Unavailable")
CUT = Failure(kind=FailureKind.UNKNOWN, billed=Billed.UNKNOWN, why="the connection was cut")
UNREADABLE = Failure(kind=FailureKind.UNKNOWN, billed=Billed.YES, why="its answer is no JSON")
FINAL = Failure(kind=FailureKind.REJECTED, billed=Billed.NO, why="401 Unauthorized", is_final=True)
REFUSAL = Answer(values={}, usage=Usage(tokens_in=TOKENS_IN, tokens_out=TOKENS_OUT), model="scripted-1")
EVERY_FAULT = (NOT_SENT, RATE_LIMITED, REJECTED, CUT, UNREADABLE)


def logits_of(images: np.ndarray) -> np.ndarray:
    """What it says of images: (C, 3, h, w) uint8 -> (C, 10) float32, the same for the same pixels."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    weights = np.random.default_rng(0).normal(size=(flat.shape[1], CLASSES))
    logits: np.ndarray = (flat / 255 - 0.5) @ weights / 8
    return logits.astype(np.float32)


def scripted_card(rendering: Rendering, name: str = "openai:scripted") -> Card:
    """Of a teacher that is known by its name."""
    identity = TeacherIdentity(
        name=name,
        fingerprint=hashlib.sha256(name.encode()).hexdigest(),
        num_classes=CLASSES,
        normalisation=rendering.normalisation,
        precision="fp32",
        layers=(),
    )
    return Card(
        identity=identity, rendering=rendering, outputs={"logits": (CLASSES,)}, parameters={}, device="elsewhere"
    )


@dataclass(eq=False)
class ScriptedTeacher:
    """See `RemoteTeacher`.

    Args:
        faults: what comes of the attempts in the order in which they arrive, None for an answer; its end is answers.
        latency: seconds of each request.
        model: that answers; may be changed at any time.
        shift: added to all logits; may be changed likewise.
        on_attempt: told how many attempts there were, before the newest is worked on.
        books: a file that each attempt is written to as it is billed, or not, for processes that are killed.

    Attributes:
        attempts: of each input.
        billed, maybe_billed: attempts of each input that the provider charges for, and those among them whose caller
            cannot know it.
        most_at_once: requests that were ever under way together.
    """

    card: Card
    faults: Iterator[Answer | Failure | None] = field(default_factory=lambda: iter(()))
    latency: float = 0.0
    max_batch: int = 1
    price: Price | None = PRICE
    model: str | None = "scripted-1"
    shift: float = 0.0
    tolerance: float = 1e-6
    max_tokens_in: int = 2 * TOKENS_IN
    max_tokens_out: int = 2 * TOKENS_OUT
    on_attempt: Callable[[int], None] = lambda count: None
    books: Path | None = None
    attempts: Counter[bytes] = field(default_factory=Counter)
    billed: Counter[bytes] = field(default_factory=Counter)
    maybe_billed: Counter[bytes] = field(default_factory=Counter)
    most_at_once: int = 0
    is_closed: bool = False
    _at_once: int = 0

    @classmethod
    def of(cls, dataset: ImageDataset, **settings: object) -> ScriptedTeacher:
        """For a data set."""
        return cls(scripted_card(dataset.rendering), **settings)  # type: ignore[arg-type]

    async def ask(self, images: np.ndarray, deadline: float) -> Sequence[Answer | Failure]:
        """See `RemoteTeacher.ask`."""
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            said = [self._outcome(image) for image in images]
            await asyncio.sleep(self.latency)
            return said
        finally:
            self._at_once -= 1

    def _outcome(self, image: np.ndarray) -> Answer | Failure:
        digest = hashlib.sha256(image.tobytes()).digest()
        self.attempts[digest] += 1
        self.on_attempt(self.attempts.total())
        fault = next(self.faults, None)
        if isinstance(fault, Failure):
            # Every second request that was cut off was worked on all the same.
            is_billed = fault.billed is Billed.YES or (fault is CUT and self.attempts.total() % 2 == 1)
            self._write(digest, is_billed=is_billed, is_unknown=fault.billed is not Billed.NO)
            return fault
        self._write(digest, is_billed=True, is_unknown=False)
        if fault is not None:
            return fault
        usage = Usage(tokens_in=TOKENS_IN, tokens_out=TOKENS_OUT)
        values = {"logits": logits_of(image[None])[0] + np.float32(self.shift)}
        number = f"request-{self.attempts.total()}"
        return Answer(values=values, usage=usage, model=self.model, request_id=number, seconds=self.latency)

    def _write(self, digest: bytes, *, is_billed: bool, is_unknown: bool) -> None:
        self.billed[digest] += is_billed
        self.maybe_billed[digest] += is_unknown
        if self.books is not None:
            line = f"{digest.hex()} {int(is_billed)} {int(is_unknown)}\n".encode()
            # One write each, so that processes can share the file.
            descriptor = os.open(self.books, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, line)
            os.close(descriptor)

    async def close(self) -> None:
        """See `RemoteTeacher.close`."""
        self.is_closed = True


def some_faults(
    share: float, seed: int, kinds: Sequence[Answer | Failure] = EVERY_FAULT
) -> Iterator[Answer | Failure | None]:
    """Faults at random, without end; never two of one kind that may be billed one after the other."""
    random = np.random.default_rng(seed)
    while True:
        yield kinds[random.integers(len(kinds))] if random.random() < share else None


def cost_of(billed: Mapping[bytes, int], price: Price = PRICE) -> int:
    """Micros that a provider charges for attempts of the usual size."""
    return sum(billed.values()) * price.cost(TOKENS_IN, TOKENS_OUT)
