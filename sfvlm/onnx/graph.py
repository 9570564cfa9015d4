"""A model as an ONNX program: what becomes of its outputs, how it is traced, and what the file says of itself."""

import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..encoder.configuration import SparseFormerConfig
from ..encoder.folder import image_processor
from ..encoder.sparseformer import SparseFormerModel


class Graph(nn.Module):
    """What becomes the file: pixels (B, 3, S, S) -> tensors in the order of `names`."""

    def __init__(self, model: SparseFormerModel, num_tokens: int, layers: Sequence[int]) -> None:
        super().__init__()
        self.model, self.num_tokens = model, num_tokens
        depth = model.config.num_hidden_layers
        self.indices = tuple(sorted({depth + 1 + layer for layer in layers if layer != -1}))
        self.names = ["pooler_output", "last_hidden_state", *map(_layer_name, self.indices), "token_rois"]
        if model.config.num_classes:
            self.names.append("logits")

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        output = self.model(pixel_values, num_tokens=self.num_tokens, output_hidden_states=bool(self.indices))
        found = [output.pooler_output, output.last_hidden_state]
        found += [output.hidden_states[index] for index in self.indices]
        found.append(output.token_rois[-1])
        return tuple(found) if output.logits is None else (*found, output.logits)


def _layer_name(index: int) -> str:
    """As optimum names them: counted from the front, 0 the input of the first block."""
    return f"hidden_states.{index}"


def trace(graph: Graph, photos: Tensor, opset: int) -> Any:
    """Pixels and weights to an ONNX program; the number of photos stays free."""
    shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
    program = torch.export.export(graph, (photos,), dynamic_shapes=shapes)
    _settle_bounds(program.graph)
    onnx_program = torch.onnx.export(
        program,
        input_names=["pixel_values"],
        output_names=graph.names,
        opset_version=opset,
        dynamic_shapes={"pixel_values": {0: "batch"}},
        verbose=False,
    )
    assert onnx_program is not None
    written = onnx_program.model.opset_imports[""]
    if written != opset:
        raise ValueError(f"The graph cannot be converted to opset {opset} and stayed at {written}: ask for {written}.")
    # Each node carries the lines of source it came from, with the paths of this machine.
    for node in onnx_program.model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    return onnx_program


def _settle_bounds(graph: torch.fx.Graph) -> None:
    """Makes both bounds of a clamp real numbers: torch's exporter fails on clamp(0.01, 1), a real one and a whole one."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.clamp.default):
        if node.args[0].meta["val"].is_floating_point():
            node.args = (node.args[0], *(float(bound) if isinstance(bound, int) else bound for bound in node.args[1:]))


def metadata(graph: Graph, image_size: int, layers: Sequence[int]) -> dict[str, str]:
    """What a consumer must know beside the tensors. Lists and dicts are JSON."""

    config = graph.model.config
    sized: dict[str, Any] = config.to_dict() | {"image_size": image_size}
    depth = config.num_hidden_layers
    names = {layer: "last_hidden_state" if layer == -1 else _layer_name(depth + 1 + layer) for layer in sorted(layers)}
    return {
        "model_type": config.model_type,
        "sfvlm_version": importlib.metadata.version("sfvlm"),
        "focusing": config.focusing,
        "pooling": config.pooling,
        "class_tokens": str(int(config.has_cls_token)),
        "num_tokens": str(graph.num_tokens),
        "image_size": str(image_size),
        "image_mean": json.dumps(list(config.image_mean)),
        "image_std": json.dumps(list(config.image_std)),
        "layers": json.dumps(names),
        "preprocessor": json.dumps(image_processor(SparseFormerConfig(**sized)).to_dict()),
    }
