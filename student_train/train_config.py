"""How a student is trained, beside what it learns from and by which method."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from ground.errors import InvalidInput, UnknownName
from ground.geometry import MAX_INPUT_SIZE
from ground.user_code import UserCode
from student_train.protocol import ProtocolConfig

STUDENT_VIEWS = ("auto", "fresh", "resized", "trivial", "teacher")
STUDENT_PREPROCESSING = ("own", "teacher")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a student is trained; the defaults are those of the paper's released code.

    Args:
        student_size: height and width of the student's input, to which views are resized; None takes them as they are.
        code: what is done with a student that is code from outside this program.
        student_preprocessing: "own" shows the student pixels as its library does, with that one's mean, deviation and
            filter, where it is another library's network; "teacher" as the teacher was shown them, which runs of
            earlier releases mean. For the zoo both are the same.
        init: weights that it begins with, as FILE or FILE#key; None initialises them by the seed.
        student_view: "fresh" draws a crop and flip in every step, or a box where the store's views are boxes; "resized"
            draws a box in any case, "trivial" changes what is drawn by TrivialAugment; "teacher" replays the stored
            one; "auto" is "teacher" where feature maps are learned from, and else "fresh".
        average: decay of the weights' average over steps, which is then what is measured and kept; 0 for none, see
            `student_train.averaging`.
        stream: draw batches from a stream of blocks also where memory holds all rows.
        stream_rows: that they are drawn from at a time, which implies `stream`; None follows from the size of a row.
        test_every: measure the test images at every so many evaluations too, for curves; it decides nothing, so that a
            run is the same run whatever it is.
    """

    student: str
    student_size: int | None = None
    code: UserCode = UserCode.REFUSED
    student_preprocessing: str = "own"
    init: Path | None = None
    seed: int = 0
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    student_view: str = "auto"
    average: float = 0.0
    stream: bool = False
    stream_rows: int | None = None
    test_every: int | None = None
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)

    def __post_init__(self) -> None:
        if self.student_view not in STUDENT_VIEWS:
            raise UnknownName("student view", self.student_view, STUDENT_VIEWS)
        if self.student_preprocessing not in STUDENT_PREPROCESSING:
            raise UnknownName("student preprocessing", self.student_preprocessing, STUDENT_PREPROCESSING)
        if self.student_size is not None and not 1 <= self.student_size <= MAX_INPUT_SIZE:
            raise InvalidInput(f"--student-size must be 1 to {MAX_INPUT_SIZE} pixels, got {self.student_size}")
        if self.batch_size < 4:
            raise InvalidInput(f"--batch-size must be at least 4, got {self.batch_size}")
        if self.stream_rows is not None and self.stream_rows < 2:
            raise InvalidInput(f"--stream-rows must be at least 2, got {self.stream_rows}")
        if self.test_every is not None and self.test_every < 1:
            raise InvalidInput(f"--test-every must be at least 1, got {self.test_every}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InvalidInput(f"--lr must be a finite number above 0, got {self.lr}")
        if not 0 <= self.average < 1:
            raise InvalidInput(f"--average must be at least 0, which is none, and below 1, got {self.average}")
        for name in ("momentum", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInput(f"{name} must be a finite number of at least 0, got {value}")
