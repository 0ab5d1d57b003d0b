"""A classifier of four filters as an ONNX file, made without a network to export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE, CLASSES = 16, 5


def weights(classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Of the convolution, (4, 3, 3, 3), and of the linear layer, (4, classes)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 3, 3, generator=generator), torch.randn(4, classes, generator=generator)


def classifier(
    batch: int | str = "batch",
    size: int | str = SIZE,
    outputs: Sequence[str] = ("logits", "/stage/Relu_output_0", "pooled"),
    kind: str = "FLOAT",
    channels_last: bool = False,
    softmax: bool = False,
    domain: str = "",
    classes: int = CLASSES,
) -> onnx.ModelProto:
    """A convolution, the mean of its map, and a linear layer."""
    number = getattr(onnx.TensorProto, kind)
    of_numpy = np.float16 if kind == "FLOAT16" else np.float32
    values = [onnx.numpy_helper.from_array(value.numpy().astype(of_numpy), name) for value, name in zip(
        weights(classes), ("conv.weight", "fc.weight"), strict=True)]  # fmt: skip
    node = onnx.helper.make_node
    nodes = [node("Transpose", ["images"], ["turned"], perm=[0, 3, 1, 2])] if channels_last else []
    nodes += [
        node("Conv", ["turned" if channels_last else "images", "conv.weight"], ["conv"], pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["conv"], ["/stage/Relu_output_0"], domain=domain),
        node("GlobalAveragePool", ["/stage/Relu_output_0"], ["mean"]),
        node("Flatten", ["mean"], ["pooled"]),
        node("MatMul", ["pooled", "fc.weight"], ["matmul"]),
        node("Softmax", ["matmul"], ["logits"], axis=1) if softmax else node("Identity", ["matmul"], ["logits"]),
        node("Identity", ["pooled"], ["vector"]),
        node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    shape = [batch, size, size, 3] if channels_last else [batch, 3, size, size]
    values_of = {
        name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64 if name == "label" else number, None)
        for name in outputs
    }
    given = onnx.helper.make_tensor_value_info("images", number, shape)
    graph = onnx.helper.make_graph(nodes, "tiny", [given], [*values_of.values()], values)
    opsets = [onnx.helper.make_opsetid("", 17)] + ([onnx.helper.make_opsetid(domain, 1)] if domain else [])
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


def written(path: Path, model: onnx.ModelProto | None = None) -> Path:
    """The path of a file that is now there."""
    path.write_bytes((classifier() if model is None else model).SerializeToString())
    return path
