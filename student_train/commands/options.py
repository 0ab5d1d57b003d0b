"""What `ckd-train` is told; nothing here needs torch, so that its help comes at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ground.options import RunFolderPath, StorePlace, allow_code_option, device_option, precision_option, setting_option
from models.names import CALL_PRECISIONS, PRECISIONS
from student_train.names import COMBINATIONS, NAMED_METHODS
from student_train.protocol import ProtocolConfig
from student_train.train_config import TrainConfig

_Command = TypeVar("_Command", bound=Callable[..., Any])

_METHODS = ", ".join(NAMED_METHODS)
_OPTIONS = (
    click.option(
        "--store",
        multiple=True,
        type=StorePlace(),
        help="Store that stage one built, as a folder or a URL; needed. Several, of one sample, with --combine.",
    ),
    click.option(
        "--combine",
        type=click.Choice(COMBINATIONS),
        help="How the answers of several stores become one: mean, the best of each row, or weighted by their labels.",
    ),
    click.option("--student", default="wrn16_2", show_default=True, help="Network to train, perhaps ORIGIN:NAME."),
    click.option("--student-size", type=int, help="Pixels of its input.  [default: those of the teacher's views]"),
    click.option("--init", type=click.Path(path_type=Path), help="Weights to begin with, as FILE or FILE#key."),
    click.option(
        "--method",
        help=f"Recipe with settings, as ckd:pairs=all: {_METHODS}, or the name of a loss.  [default: ckd]",
    ),
    click.option("--loss", "losses", multiple=True, help="Own sum of losses, repeatable: kd:temperature=4,weight=0.9."),
    click.option(
        "--comparison",
        help="How losses with compared=true pair samples: sampled:positives=2,negatives=1 or all.  [default: sampled]",
    ),
    click.option(
        "--rest",
        "rests",
        multiple=True,
        help="Learn from rows beyond the n too, repeatable: ce, pseudo, mean_teacher, proxy:RUN, with settings.",
    ),
    allow_code_option,
    click.option("--n", type=int, help="Learn the answers of the first n rows; 0: of none.  [default: all]"),
    click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True),
    setting_option(TrainConfig, "lr"),
    setting_option(TrainConfig, "batch_size"),
    setting_option(ProtocolConfig, "patience", help="Evaluations without progress to a plateau."),
    click.option("--max-evals", type=int, help="Stop after this many evaluations."),
    click.option("--steps-per-eval", type=int, help="Steps between evaluations.  [default: once through the rows]"),
    click.option("--test-every", type=int, help="Measure test images at every so many evaluations too, for curves."),
    setting_option(
        ProtocolConfig, "schedule", help="Of the learning rate: plateau, or cosine, which falls to 0 at --max-evals."
    ),
    setting_option(
        TrainConfig,
        "student_view",
        help="fresh crops, resized boxes, trivial for TrivialAugment, or teacher to replay what it saw; auto: teacher "
        "where feature maps are learned from, and else fresh.",
    ),
    setting_option(
        TrainConfig, "average", help="Measure and keep an average of the weights over steps, of this decay; 0: none."
    ),
    click.option("--stream", is_flag=True, help="Read blocks while training, also where memory holds all rows."),
    click.option("--stream-rows", type=int, help="Rows that a stream draws batches from.  [default: by their size]"),
    device_option,
    precision_option(PRECISIONS, refused=CALL_PRECISIONS),
    click.option("--out", type=RunFolderPath(), help="Run folder.  [default: below runs/]"),
    click.option("--resume", is_flag=True, help="Go on with an interrupted run."),
    click.option("--json", "as_json", is_flag=True, help="Print run.json."),
)


def train_options(command: _Command) -> _Command:
    """Everything that a training is told."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
