"""Folders of transformers networks, with a few random weights, as `save_pretrained` writes them; nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

CLASSES = ("cat", "dog", "owl")
SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
_TEXTS = "a photo of cat dog owl drawing"


def save_vit(folder: Path, classes: Sequence[str] = CLASSES, **changes: Any) -> Path:
    """A ViT that classifies, at 32 pixels, whose processor squashes photographs."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(**SMALL | {"image_size": 32, "patch_size": 8, "id2label": dict(enumerate(classes))} | changes)
    save(folder, ViTForImageClassification, config)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIP at 28 pixels with patches of 14, and a tokenizer of single letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    vocabulary = save_tokenizer(folder)
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 24, "eos_token_id": vocabulary["<|endoftext|>"]}
    vision = {"image_size": 28, "patch_size": 14}
    save(folder, CLIPModel, CLIPConfig(text_config=SMALL | text, vision_config=SMALL | vision, projection_dim=16))
    CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_siglip(folder: Path) -> Path:
    """A SigLIP at 32 pixels, which has a bias and pads its texts."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    vocabulary = save_tokenizer(folder)
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 24, "projection_size": 32}
    config = SiglipConfig(text_config=SMALL | text, vision_config=SMALL | {"image_size": 32, "patch_size": 8})
    save(folder, SiglipModel, config)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    """A DINOv2 with registers: a body with patches of 14."""
    from transformers import BitImageProcessor, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(**SMALL, image_size=42, patch_size=14, num_register_tokens=4)
    save(folder, Dinov2WithRegistersModel, config)
    BitImageProcessor(
        size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42}
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_tokenizer(folder: Path) -> dict[str, int]:
    """CLIP's, of single letters; returns its vocabulary."""
    from transformers import CLIPTokenizer

    letters = sorted(set(_TEXTS) - {" "})
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return vocabulary


def save(folder: Path, kind: Any, config: Any) -> None:
    """A network of a configuration, whose weights are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        kind(config).save_pretrained(folder)
