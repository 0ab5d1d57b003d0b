"""`ckd-cache teacher`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ground.geometry import MAX_INPUT_SIZE
from ground.options import json_option
from ground.terminal import print_json, print_table, say
from ground.user_code import UserCode
from models import canonical_name
from models.compute import Compute
from models.remote_names import is_remote
from teacher_cache.commands.options import compute_options, origin_options, remote_options
from teacher_cache.rendering import RenderingOverrides
from teacher_cache.teachers.description import describe_remote, describe_teacher
from teacher_cache.teachers.elsewhere import RemoteOptions
from teacher_cache.teachers.zoo import TeacherSource


@click.command()
@click.argument("name")
@click.option("--input-size", type=click.IntRange(1, MAX_INPUT_SIZE), help="Pixels of its input.")
@click.option("--modules", is_flag=True, help="List every module that --features may name, and not only its stages.")
@origin_options
@remote_options
@compute_options("fp32")
@json_option
def teacher(
    name: str,
    input_size: int | None,
    prompts: Path | None,
    modules: bool,
    allow_code: bool,
    device: str,
    precision: str,
    as_json: bool,
    **remote: Any,
) -> None:
    """Say what the network of this NAME would be as a teacher: its layers, classes, images, size and speed.

    No call is made, and no weights are fetched but those of hf:OWNER/NAME; the speed is that of black images, on this
    machine as it is now. Of one behind a network, what its server and its card say.

    \b
    ckd-cache teacher timm:tf_efficientnet_lite0
    ckd-cache teacher timm:vit_small_patch14_dinov2 --modules
    """
    source = TeacherSource(
        name=canonical_name(name),
        rendering=RenderingOverrides(input_size=input_size),
        code=UserCode.of(allowed=allow_code),
        prompts=prompts,
        remote=RemoteOptions(**remote),
    )
    if is_remote(source.name):
        said = describe_remote(source)
        print_json(said) if as_json else _print_remote(said)
        return
    compute = Compute.choose(device, "fp32" if precision == "auto" else precision)
    found = describe_teacher(source, compute)
    print_json(found) if as_json else _print(found, modules=modules)


def _print(found: Mapping[str, Any], *, modules: bool) -> None:
    prepared, names = found["preparation"], found["class_names"]
    lines = {
        "teacher": found["name"] + ("" if found["parameters"] is None else f", {found['parameters']:,} parameters"),
        "classes": f"{found['classes']} ({', '.join(names)}, ...)" if names else "as many as its weights have",
        "shown": "as its data set says" if prepared is None else _shown(prepared),
        "input": f"{found['input_size']} pixels; mean {_numbers(found['mean'])}, std {_numbers(found['std'])}",
        "speed": f"about {found['calls_per_second']:g} calls a second in {found['precision']} on {found['device']}",
    }
    for what, text in lines.items():
        say(f"{what:<9} {text}")
    say("")
    print_table(("layer", "shape", "KB a row", "kept by"), map(_row, found["layers"]))
    if modules:
        say("")
        print_table(("module", "shape", "KB a row", "kept by"), map(_row, found["further_layers"]))
    elif found["further_layers"]:
        say(f"\n{len(found['further_layers'])} more modules can be named; --modules lists them")


def _print_remote(found: Mapping[str, Any]) -> None:
    prepared = found["preparation"]
    tokens = f", at most {found['max_tokens_in']:,} tokens in and {found['max_tokens_out']:,} out"
    lines = {
        "teacher": f"{found['name']}, known by what is declared of it",
        "answers": found["answer"],
        "classes": found["classes"] or "those of the data set",
        "shown": "as its data set says" if prepared is None else _shown(prepared),
        "requests": f"of {found['max_batch']} at most{tokens if found['max_tokens_in'] else ''}",
    }
    for what, text in lines.items():
        say(f"{what:<9} {text}")


def _shown(prepared: Mapping[str, Any]) -> str:
    return (
        f"{'both sides' if prepared['squashed'] else 'shorter side'} {prepared['resize']}, "
        f"centre {prepared['crop']} ({prepared['interpolation']})"
    )


def _row(layer: Mapping[str, Any]) -> tuple[str, str, str, str]:
    kept = {"logits": "every build"}.get(layer["name"], "all" if layer.get("in_all") else "its name")
    return layer["name"], str(tuple(layer["shape"])), f"{layer['bytes'] / 1e3:.1f}", kept


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
