"""The flags of `sfvlm onnx`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OnnxCommand:
    """Write an encoder as one .onnx file, and check what onnxruntime computes from it."""

    model: str
    """A SparseFormer: folder, hub id, or name of `sfvlm zoo`."""
    out: Path
    """The file to write."""
    num_tokens: int | None = None
    """Budget of the file; default the model's."""
    image_size: int | None = None
    """Side of its photos in pixels; default the model's."""
    layers: tuple[int, ...] = ()
    """Layers whose hidden states are outputs too: -2 for what a LLaVA reads."""
    opset: int = 18
    """Version of the ONNX operators, 18 to 23."""
