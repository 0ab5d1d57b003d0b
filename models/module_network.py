"""A network of any library as a `Network`: its layers are its modules, in its own names, read by hooks.

What a module says is turned into what losses know: a map (B, C, H, W), whatever order the library keeps its axes in;
tokens (B, N, D) become a map without their prefix (class and register tokens), where the rest is a square.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ground.errors import InvalidInput, UnknownName
from ground.layers import LAST, POOLED, is_layer_name
from models.body_answer import Answer, square_of
from models.network import Network, require_extras
from models.representation import Representation

# Stages that are kept where nothing else is asked for: as many as residual networks have.
NUM_STAGES = 4
_PROBES = 2
_MODULE = "module."


@dataclass(frozen=True, slots=True)
class Layer:
    """What a module says of one image.

    Args:
        name: of the module, dotted.
        shape: (C, h, w) or (D,), after `as_feature`.
        is_channels_last: the module keeps its maps as (h, w, C).
        prefix: tokens before those of the image.
        is_overwritten: a later module changes it in place.
    """

    name: str
    shape: tuple[int, ...]
    is_channels_last: bool = False
    prefix: int = 0
    is_overwritten: bool = False


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is to read in a module, found by one pass of noise.

    Args:
        num_classes: width of its answer; 0 of a body, whose answer is no logits.
        layers: in the order in which they are computed.
        head: the linear layer that makes the logits of a vector; None for a module that ends in another way.
        last: the layer whose mean over positions that vector, or a body's, is.
        body: reads the vector in a body's answer; None for a classifier, and a body that answers with none.
    """

    num_classes: int
    layers: tuple[Layer, ...]
    head: str | None
    last: str | None
    body: Answer | None = None

    @property
    def has_vector(self) -> bool:
        """Whether there is one for each image."""
        return self.head is not None or self.body is not None

    @property
    def maps(self) -> tuple[Layer, ...]:
        """Layers that are maps."""
        return tuple(layer for layer in self.layers if len(layer.shape) == 3)


class ModuleNetwork(Network):
    """A network of another library.

    Args:
        module: takes (B, 3, H, W) normalised images and answers with logits, as a tensor, as the first of a tuple, or
            as the attribute `logits`.
        size: H and W of its input.
        further: layers to be read beside those of `choose_stages`, where they are asked for.
        classifies: whether its answer is logits; that of a body is a vector, tokens or a map, see `models.body_answer`.

    Raises:
        InvalidInput: it does not take such images, or does not answer with logits.
        UnknownName: it has no such layer.
    """

    def __init__(self, module: nn.Module, size: int, further: Sequence[str] = (), *, classifies: bool = True) -> None:
        super().__init__()
        self.module = module
        self.survey = survey(module, size, classifies=classifies)
        self.num_classes = self.survey.num_classes
        self._layers = {layer.name: layer for layer in self.survey.layers}
        # Weights are kept under the library's own names, so that it can load them without us.
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)
        self._stages = choose_stages(self.survey)
        self._further: tuple[str, ...] = ()
        for name in further:
            if name not in {*self._layers, *self.layers}:
                raise UnknownName("layer of the network", name, {*self._layers, *self.layers})
        # In the order in which they are computed.
        self._further = tuple(name for name in self._layers if name in {*further} - {*self._stages})

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The stages, then the pooled vector."""
        return (*self._stages, *((POOLED,) if self.survey.has_vector else ()))

    @property
    def extra_names(self) -> tuple[str, ...]:
        """The map that is pooled, where there is one, and further layers that were asked for."""
        return (*((LAST,) if self.survey.last is not None else ()), *self._further)

    @property
    def head(self) -> nn.Linear | None:
        """See `Network.head`."""
        if self.survey.head is None:
            return None
        head = self.module.get_submodule(self.survey.head)
        assert isinstance(head, nn.Linear)
        return head

    def represent(self, images: Tensor, extras: Collection[str] = ()) -> Representation:
        """See `Network.represent`."""
        require_extras(self, extras)
        wanted = [*self._stages, *(name for name in self.extra_names if name in extras)]
        sources = {name: self.survey.last if name == LAST else name for name in wanted}
        said: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name in {source for source in sources.values() if source is not None}:
                hooks.enter_context(_outputs_of(self.module, self._layers[name], said))
            if self.survey.head is not None:
                hooks.enter_context(_vector_before(self.module, self.survey.head, said))
            answer = self.module(images)
        if self.survey.body is not None:
            said[POOLED] = self.survey.body.vector_in(answer)
        logits = logits_of(answer) if self.num_classes else images.new_empty(len(images), 0)
        features = {name: as_feature(said[source], self._layers[source]) for name, source in sources.items() if source}
        pooled = {POOLED: said[POOLED]} if self.survey.has_vector else {}
        stages = {name: features.pop(name) for name in self._stages}
        return Representation(logits=logits, features={**stages, **pooled, **features})


def _without_prefix(network: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}{_MODULE}")]:
        state[prefix + key.removeprefix(f"{prefix}{_MODULE}")] = state.pop(key)


def _with_prefix(network: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}{_MODULE}{key.removeprefix(prefix)}"] = state.pop(key)


def survey(module: nn.Module, size: int, *, classifies: bool = True) -> Survey:
    """Pass noise through a module, and note what each part of it says.

    Args:
        classifies: whether it answers with logits.

    Raises:
        InvalidInput: it does not take such images, or does not answer with logits.
    """
    seen: dict[str, Tensor] = {}
    versions: dict[str, int] = {}
    twice: set[str] = set()
    inputs: dict[str, Tensor] = {}
    was_training = module.training
    with ExitStack() as stack:
        for name, part in module.named_modules():
            if name:
                stack.enter_context(_removed(part.register_forward_hook(_noting(name, seen, versions, twice, inputs))))
        module.eval()
        try:
            # Not inference mode: there, tensors do not count how often they were changed.
            with torch.no_grad():
                answer = module(_noise(module, size))
        except Exception as error:  # code of others fails in any way
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidInput(
                f"the network does not take {size}-pixel images ({reason}); give another size"
            ) from error
        finally:
            module.train(was_training)
    layers = tuple(
        replace(layer, is_overwritten=seen[layer.name]._version != versions[layer.name])
        for layer in _layers(module, seen, twice)
    )
    if not classifies:
        body = Answer.of(answer, getattr(module, "num_prefix_tokens", None))
        last = None if body is None else _pooled_map(seen, layers, body.vector_in(answer))
        return Survey(0, layers, None, last, body)
    logits = logits_of(answer)
    head = next((name for name in reversed(seen) if seen[name] is logits and _is_head(module, name, inputs)), None)
    # What is added to, or divided by, in place is more than the linear layer says.
    head = None if head is None or logits._version != versions[head] else head
    return Survey(logits.shape[1], layers, head, head and _pooled_map(seen, layers, inputs[head]))


def choose_stages(found: Survey) -> tuple[str, ...]:
    """A short list of layers for a deep network: the last of each size, or evenly many where all are of one size.

    The last of a size is looked for among the outermost modules: deeper in, a block begins at the size of the one
    before it.
    """
    last_of_size: dict[int, Layer] = {}
    for layer in found.maps:
        side = layer.shape[1]
        if side > 1 and (side not in last_of_size or _depth(layer) <= _depth(last_of_size[side])):
            last_of_size[side] = layer
    stages: list[Layer] = []
    for layer in sorted(last_of_size.values(), key=found.maps.index):
        if not stages or layer.shape[1] < stages[-1].shape[1]:
            stages.append(layer)
    if len(stages) > 1:
        return tuple(layer.name for layer in stages[-NUM_STAGES:])
    blocks = _largest_family(found.maps)
    step = max(1, len(blocks) // NUM_STAGES)
    return tuple(name for name in blocks[::-1][::step][:NUM_STAGES])[::-1]


def as_feature(said: Tensor, layer: Layer) -> Tensor:
    """What a module said, as a map (B, C, h, w) or a vector (B, D)."""
    if said.ndim == 4 and layer.is_channels_last:
        return said.permute(0, 3, 1, 2)
    if said.ndim == 3 and len(layer.shape) == 3:
        return said[:, layer.prefix :].transpose(1, 2).reshape(len(said), *layer.shape)
    return said


def logits_of(answer: Any) -> Tensor:
    """The logits (B, K) in what a module answers with; raises `InvalidInput` if there are none."""
    first = answer[0] if isinstance(answer, (tuple, list)) and answer else answer
    found: object = getattr(answer, "logits", first)
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise InvalidInput(
            "the network does not answer with logits (samples, classes); give one that classifies, or "
            "set its attribute classifies to False, and keep features only"
        )
    return found


def _noise(module: nn.Module, size: int) -> Tensor:
    weight = next(iter(module.parameters()), torch.empty(0))
    noise = torch.randn(_PROBES, 3, size, size, generator=torch.Generator().manual_seed(0))
    return noise.to(weight.device, weight.dtype if weight.is_floating_point() else torch.float32)


def _noting(
    name: str, seen: dict[str, Tensor], versions: dict[str, int], twice: set[str], inputs: dict[str, Tensor]
) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def note(_: nn.Module, given: tuple[Any, ...], said: Any) -> None:
        said = said[0] if isinstance(said, (tuple, list)) and said else said
        if name in seen:
            twice.add(name)
        if isinstance(said, Tensor) and said.is_floating_point():
            seen.pop(name, None)
            seen[name], versions[name] = said, said._version
        if given and isinstance(given[0], Tensor):
            inputs[name] = given[0]

    return note


def _layers(module: nn.Module, seen: Mapping[str, Tensor], twice: Collection[str]) -> Iterator[Layer]:
    """Layers in order; images are square, and so are maps of them: all else is of windows, heads or positions."""
    prefix = getattr(module, "num_prefix_tokens", None)
    for name, said in seen.items():
        if name in twice or said.shape[0] != _PROBES or not is_layer_name(name):
            continue
        if (layer := layer_of_shape(name, said.shape, prefix)) is not None:
            yield layer


def layer_of_shape(name: str, shape: Sequence[int], prefix: int | None) -> Layer | None:
    """A layer that says tensors of this shape, images first; None for what is neither map, tokens nor vector.

    Args:
        prefix: tokens before those of the image; None where that is not known.
    """
    if len(shape) == 2 or (len(shape) == 4 and shape[2] == shape[3]):
        return Layer(name, tuple(shape[1:]))
    if len(shape) == 4 and shape[1] == shape[2]:
        return Layer(name, (shape[3], *shape[1:3]), is_channels_last=True)
    if len(shape) == 3 and (square := square_of(shape[1], prefix)) is not None:
        before, side = square
        return Layer(name, (shape[2], side, side), prefix=before)
    return None


def _depth(layer: Layer) -> int:
    return layer.name.count(".")


def _is_head(module: nn.Module, name: str, inputs: Mapping[str, Tensor]) -> bool:
    return isinstance(module.get_submodule(name), nn.Linear) and name in inputs and inputs[name].ndim == 2


def _pooled_map(seen: Mapping[str, Tensor], layers: Sequence[Layer], pooled: Tensor) -> str | None:
    """The last layer that is a map with this mean over positions (B, D), as it says it itself."""
    for layer in reversed([layer for layer in layers if not layer.is_overwritten]):
        if len(layer.shape) == 3 and layer.shape[0] == pooled.shape[1] and layer.shape[1] > 1:
            mean = as_feature(seen[layer.name], layer).float().mean(dim=(2, 3))
            if torch.allclose(mean, pooled.float(), rtol=1e-3, atol=1e-4):
                return layer.name
    return None


def _largest_family(maps: Sequence[Layer]) -> list[str]:
    """Names of the most modules that are numbered in one place, such as the blocks of a transformer."""
    families: dict[str, list[str]] = {}
    for layer in maps:
        parent, _, own = layer.name.rpartition(".")
        if own.lstrip("abcdefghijklmnopqrstuvwxyz_").isdigit():
            families.setdefault(parent, []).append(layer.name)
    if not families:
        return [layer.name for layer in maps[-1:]]
    return max(families.items(), key=lambda family: (len(family[1]), -family[0].count(".")))[1]


@contextmanager
def _removed(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _outputs_of(module: nn.Module, layer: Layer, said: dict[str, Tensor]) -> Iterator[None]:
    def note(_: nn.Module, given: object, output: Any) -> None:
        found = output[0] if isinstance(output, (tuple, list)) else output
        said[layer.name] = found.clone() if layer.is_overwritten else found

    with _removed(module.get_submodule(layer.name).register_forward_hook(note)):
        yield


@contextmanager
def _vector_before(module: nn.Module, name: str, said: dict[str, Tensor]) -> Iterator[None]:
    def note(_: nn.Module, given: tuple[Any, ...]) -> None:
        said[POOLED] = given[0]

    with _removed(module.get_submodule(name).register_forward_pre_hook(note)):
        yield
