"""What transformers reads for us: from a folder, from the hub, or from where it has put what it fetched before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ground.errors import CKDError, InvalidInput
from ground.terminal import plain
from models.origins.published import published

CONFIG = "config.json"
_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = "pytorch_model.bin"
_MOST_LISTED = 3
# The plain implementation, on every device; which one the default is depends on what there is.
_ATTENTION = "eager"
_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


def read(name: str, from_pretrained: Callable[..., _Result], **options: Any) -> _Result:
    """What a `from_pretrained` of transformers reads; code that lies there is not run.

    Args:
        name: folder, or id on the hub.
        options: of that `from_pretrained`.

    Raises:
        InvalidInput: it is not there, is damaged, or cannot be had here.
    """
    path = Path(name).expanduser()
    options |= {"trust_remote_code": False}
    with _quiet(), _with_what_it_needs(name):
        if not path.is_dir():
            return published(f"hf:{name}", lambda: from_pretrained(name, **options))
        try:
            return from_pretrained(str(path), **options)
        except (ImportError, CKDError):
            raise
        except Exception as error:
            # A folder may be damaged, or be another library's, in too many ways to list.
            raise InvalidInput(
                f"hf:{name} cannot be read ({_reason(error)}); mend the folder, or get it again"
            ) from error


def load(name: str, loader: Any, config: Any) -> nn.Module:
    """A network with all its weights, as float32, in evaluation mode.

    Args:
        loader: class with a `from_pretrained`.
        config: of the network.

    Raises:
        InvalidInput: they cannot be read safely, or are not all there.
    """
    model, lacking = _loaded(name, loader, config)
    # Bodies that were trained without it have no weights of the layer that classification would read.
    if lacking and all(key.startswith("pooler.") for key in lacking):
        model, lacking = _loaded(name, loader, config, add_pooling_layer=False)
    if lacking:
        more = f" and {len(lacking) - _MOST_LISTED} more" if len(lacking) > _MOST_LISTED else ""
        raise InvalidInput(
            f"hf:{name} lacks weights of its own network ({', '.join(map(plain, lacking[:_MOST_LISTED]))}{more}); "
            "get it again, or give another"
        )
    kept_as = str(getattr(config, "dtype", None)).removeprefix("torch.")
    if kept_as in ("float16", "bfloat16"):
        log.info("%s", plain(f"hf:{name} keeps its weights as {kept_as}; they are used as float32"))
    return _with_saved_names(model)


def made(name: str, loader: Any, config: Any) -> nn.Module:
    """A new network of a configuration; raises `InvalidInput` where it is of none that there could be."""
    with _quiet(), _with_what_it_needs(name):
        try:
            config.dtype = torch.float32
            model = loader.from_config(config, attn_implementation=_ATTENTION, trust_remote_code=False)
        except (ImportError, CKDError):
            raise
        except Exception as error:
            raise InvalidInput(
                f"hf:{name} has a configuration that no network can be made of ({_reason(error)}); mend its {CONFIG}"
            ) from error
    return _with_saved_names(model)


def _loaded(name: str, loader: Any, config: Any, **options: Any) -> tuple[nn.Module, list[str]]:
    """A network, and which of its weights were not there."""
    options |= {
        "config": config,
        "dtype": torch.float32,
        "attn_implementation": _ATTENTION,
        "output_loading_info": True,
    }
    model, info = read(name, partial(_from, loader), **options)
    return model, sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})


def _from(loader: Any, place: str, **options: Any) -> Any:
    pickled = Path(place) / _PICKLED
    if not pickled.is_file() or any((pickled.parent / safe).is_file() for safe in _SAFE):
        return loader.from_pretrained(place, use_safetensors=True, **options)
    from models.checkpoint import read_weights

    # None of it is run: our reader takes tensors alone.
    return loader.from_pretrained(None, state_dict=read_weights(pickled).state_dict, **options)


def _with_saved_names(model: nn.Module) -> nn.Module:
    """The same network, whose weights have the names that transformers gives them in files.

    In memory they have others, which its releases change; so a file fits the network as it is, and the network's
    digest is the same with another release.
    """
    saved = _saved_names(model)
    if all(own == other for own, other in saved.items()):
        return model

    def rename(state: dict[str, Tensor], prefix: str, names: Mapping[str, str]) -> None:
        renamed = {f"{prefix}{names[own]}": state.pop(f"{prefix}{own}") for own in names if f"{prefix}{own}" in state}
        state.update(renamed)

    def to_saved(_: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
        rename(state, prefix, saved)

    def to_own(_: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        rename(state, prefix, {other: own for own, other in saved.items()})

    model.register_state_dict_post_hook(to_saved)
    model.register_load_state_dict_pre_hook(to_own)
    return model


def _saved_names(model: nn.Module) -> dict[str, str]:
    """Name in memory -> name in a file, of weights that are the same tensors in both."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return {}
    own = model.state_dict()
    names = {id(tensor): name for name, tensor in own.items()}
    reverted = revert_weight_conversion(model, dict(own))
    saved = {names[id(tensor)]: name for name, tensor in reverted.items() if id(tensor) in names}
    return saved if saved.keys() == own.keys() and len({*saved.values()}) == len(saved) else {}


@contextmanager
def _with_what_it_needs(name: str) -> Iterator[None]:
    """Say what is not installed, other than transformers itself, of which the caller says so."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "transformers":
            raise
        raise InvalidInput(f"hf:{name} needs more than is installed ({_reason(error)}); install that") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own messages and progress bars: what matters of them is said in our words."""
    import huggingface_hub.utils.logging as of_hub
    import transformers.utils.logging as of_library

    kept = of_library.get_verbosity(), of_hub.get_verbosity(), of_library.is_progress_bar_enabled()
    of_library.set_verbosity(logging.CRITICAL)
    of_hub.set_verbosity(logging.CRITICAL)
    of_library.disable_progress_bar()
    try:
        yield
    finally:
        of_library.set_verbosity(kept[0])
        of_hub.set_verbosity(kept[1])
        if kept[2]:
            of_library.enable_progress_bar()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return plain((lines[0] if lines else type(error).__name__)[:200])
