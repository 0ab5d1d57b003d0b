"""CLIP and SigLIP as classifiers: an image's embedding, and for each class the one of its prompts.

Source: Radford et al. 2021, arXiv:2103.00020, Sec. 3.1.4: of several prompts for a class, the embeddings are
normalised, averaged, and normalised again. Logits are those of the library: cosine times scale, plus SigLIP's bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ground.errors import InvalidInput
from ground.terminal import plain

_BATCH = 64
# Embeddings have length 1. They are computed with twice the digits and rounded to this, so that the same prompts make
# the same weights, and so the same teacher, on another machine.
_GRID = 2.0**22


class PromptedClassifier(nn.Module):
    """The image side of such a network, and a linear head that its text side makes once.

    Args:
        name: ORIGIN:NAME, for messages.
        model: transformers' CLIPModel or SiglipModel.
        tokenizer: of its texts.
        prompts: (class, prompt); classes are answered for in the order in which they come first.

    Raises:
        InvalidInput: a prompt is longer than its texts may be.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, prompts: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        embeddings = _class_embeddings(name, model, tokenizer, prompts)
        self.vision_model = model.vision_model
        self.visual_projection = getattr(model, "visual_projection", nn.Identity())
        self.head = nn.Linear(*embeddings.shape[::-1])
        bias = getattr(model, "logit_bias", None)
        with torch.no_grad():
            self.head.weight.copy_(embeddings * model.logit_scale.double().exp())
            self.head.bias.copy_(torch.zeros(()) if bias is None else bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        embedded = self.visual_projection(self.vision_model(pixel_values=images).pooler_output)
        logits: Tensor = self.head(F.normalize(embedded, dim=-1))
        return logits


def _class_embeddings(name: str, model: Any, tokenizer: Any, prompts: Sequence[tuple[str, str]]) -> Tensor:
    """(K, D) float64, of length 1."""
    classes = tuple(dict.fromkeys(label for label, _ in prompts))
    embedded = _text_embeddings(name, model, tokenizer, [prompt for _, prompt in prompts])
    places = torch.tensor([classes.index(label) for label, _ in prompts])
    summed = torch.zeros(len(classes), embedded.shape[1], dtype=embedded.dtype).index_add_(0, places, embedded)
    return (F.normalize(summed, dim=-1) * _GRID).round() / _GRID


def _text_embeddings(name: str, model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """(N, D) float64, of length 1."""
    most = model.config.text_config.max_position_embeddings
    for text in texts:
        length = len(tokenizer(text)["input_ids"])
        if length > most:
            raise InvalidInput(
                f"the prompt {plain(text[:60])!a} has {length} tokens, and {name} reads {most}; give a shorter one"
            )
    # SigLIP was trained on texts that are padded to the end.
    padded = {"padding": "max_length", "max_length": most} if model.config.model_type == "siglip" else {"padding": True}
    model.double().eval()
    parts = []
    with torch.no_grad():
        for first in range(0, len(texts), _BATCH):
            tokens = tokenizer(list(texts[first : first + _BATCH]), return_tensors="pt", **padded)
            said = model.get_text_features(**tokens)
            parts.append(F.normalize(getattr(said, "pooler_output", said), dim=-1))
    # Back to what they were: float32 values survive the way there.
    model.float()
    return torch.cat(parts)
