"""transformers' image networks: a FOLDER with config.json, or the id of one on the hub, as google/vit-base-patch16-224.

Three kinds. A classifier has a head of its own. CLIP and SigLIP compare images with texts: the classes are the user's,
by prompts. Of any other network of images only the body is there, which answers with features alone.

Code that lies beside weights is never run, and weights are read from safetensors, or by this program's own reader.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from torch import nn

from ground.errors import InvalidInput
from models.origins.contract import Asked, Preprocessing
from models.origins.huggingface_processor import preprocessing_from
from models.origins.huggingface_weights import CONFIG, load, made, read
from models.origins.image_text import PromptedClassifier

_COMPARING = ("clip", "siglip")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_UNNAMED = re.compile(r"LABEL_\d+")


class Kind(Enum):
    """What the weights that a configuration lies beside are of."""

    CLASSIFIER = "classifier"
    COMPARING = "comparing"  # images with texts
    BODY = "body"


class HuggingFace:
    """See `models.origins.contract.Origin`."""

    package, extra = "transformers", "huggingface"

    def check(self, name: str) -> None:
        """See `Origin.check`; whether the hub has it is known when it is asked."""
        path = Path(name).expanduser()
        if path.is_dir() and not (path / CONFIG).is_file():
            raise InvalidInput(
                f"{path} has no {CONFIG}, so it is no folder of a transformers network; give one that is"
            )
        if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") != 1 or path.exists()):
            raise InvalidInput(f"there is no folder {name}; give hf:FOLDER, or hf:OWNER/NAME as on the hub")
        if path.is_dir() and not path.name.strip("."):
            raise InvalidInput(f"the folder of hf:{name} has no name in this; give it as hf:PATH/NAME")

    def preprocessing(self, asked: Asked) -> Preprocessing:
        """See `Origin.preprocessing`: what its processor does, which is held to it."""
        from transformers import AutoImageProcessor

        folder = Path(asked.name).expanduser()
        if folder.is_dir() and not any((folder / file).is_file() for file in _PROCESSORS):
            raise InvalidInput(
                f"hf:{asked.name} has no {_PROCESSORS[0]}, which says how it is shown images; add the one that it was "
                "published with"
            )
        processor = read(asked.name, AutoImageProcessor.from_pretrained, backend="pil")
        return preprocessing_from(processor, f"hf:{asked.name}")

    def class_names(self, asked: Asked) -> tuple[str, ...] | None:
        """See `Origin.class_names`."""
        config = _config(asked.name)
        kind = _kind(asked.name, config)
        if kind is Kind.COMPARING:
            return None if asked.prompts is None else tuple(dict.fromkeys(label for label, _ in asked.prompts))
        labels = [str(config.id2label[label]) for label in sorted(config.id2label)]
        return None if kind is Kind.BODY or all(map(_UNNAMED.fullmatch, labels)) else tuple(labels)

    def untrained(self, asked: Asked, num_classes: int) -> nn.Module:
        """See `Origin.untrained`: with a new head, for any network that transformers makes classifiers of."""
        from transformers import AutoModelForImageClassification

        config = _config(asked.name)
        if _kind(asked.name, config) is Kind.COMPARING:
            raise InvalidInput(
                f"hf:{asked.name} compares images with texts, by the weights beside its configuration; give --prompts "
                "FILE, and no --weights"
            )
        if not _classifiers(config.model_type):
            raise InvalidInput(
                f"hf:{asked.name} is a {config.model_type}, of which transformers makes no image classifier; give "
                "another network"
            )
        config.num_labels = num_classes
        if isinstance(getattr(config, "image_size", None), int) and asked.image_size:
            config.image_size = asked.image_size
        return _known_prefix(made(asked.name, AutoModelForImageClassification, config))

    def trained(self, asked: Asked) -> nn.Module:
        """See `Origin.trained`."""
        import transformers

        config = _config(asked.name)
        kind = _kind(asked.name, config)
        if kind is Kind.COMPARING:
            if asked.prompts is None:
                raise InvalidInput(
                    f"hf:{asked.name} compares images with texts, and has no classes of its own; give --prompts FILE, "
                    "a CSV of class,prompt"
                )
            model = load(asked.name, transformers.AutoModel, config)
            tokenizer = read(asked.name, transformers.AutoTokenizer.from_pretrained)
            return _known_prefix(PromptedClassifier(f"hf:{asked.name}", model, tokenizer, asked.prompts))
        if asked.prompts is not None:
            raise InvalidInput(f"hf:{asked.name} does not compare images with texts; leave out --prompts")
        if kind is Kind.CLASSIFIER:
            # Of some networks there are several; another one than that of the weights would lack a part of them.
            own = (config.architectures or ["AutoModelForImageClassification"])[0]
            return _known_prefix(load(asked.name, getattr(transformers, own), config))
        body = _known_prefix(load(asked.name, transformers.AutoModel, config))
        # Its answer is no logits.
        body.classifies = False  # type: ignore[assignment]
        return body


def _config(name: str) -> Any:
    from transformers import AutoConfig

    return read(name, AutoConfig.from_pretrained)


def _kind(name: str, config: Any) -> Kind:
    from transformers import AutoModel

    own = (config.architectures or [None])[0]
    known = _classifiers(config.model_type)
    if own in known or (own is None and known):
        return Kind.CLASSIFIER
    if config.model_type in _COMPARING:
        return Kind.COMPARING
    body = AutoModel._model_mapping.get(type(config), None)
    if getattr(body, "main_input_name", None) == "pixel_values":
        return Kind.BODY
    raise InvalidInput(
        f"hf:{name} is a {config.model_type}{'' if own is None else f' ({own})'}, which does not classify images; give "
        "an image classifier, a CLIP or SigLIP, or a network of images without a head"
    )


def _classifiers(model_type: str) -> Sequence[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    found = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(model_type, ())
    return (found,) if isinstance(found, str) else tuple(found)


def _known_prefix(module: nn.Module) -> nn.Module:
    """The same module, which says how many tokens come before those of the image, as timm's do."""
    count = 0
    for name, tensor in module.named_parameters():
        own = name.rpartition(".")[2]
        if own in ("cls_token", "class_embedding", "distillation_token"):
            count += 1
        elif own == "register_tokens":
            count += tensor.shape[-2]
    module.num_prefix_tokens = count  # type: ignore[assignment]
    return module


ORIGIN = HuggingFace()
