"""A file of `sfvlm.onnx.export` as an encoder: onnxruntime on the CPU.

    outputs = OnnxEncoder("sf49.onnx", threads=1)(pixels)  # {"pooler_output": ..., ...}, numpy

What it must know beside the tensors, the file says of itself (`graph.metadata`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..encoder.configuration import SparseFormerConfig
from ..util.errors import reason


class OnnxEncoder:
    """A file of `export_onnx`, run by onnxruntime on the CPU: pixels (B, 3, S, S) -> arrays by name.

    Attributes:
        image_size: Side S of the photos, in pixels.
        num_tokens: The budget, without the class token.
        image_mean, image_std: Normalisation, each three numbers.
        layers: Layer, counted from the end -> name of the output that holds its hidden states.
        metadata: All that the file says of itself.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        """Opens the file.

        Args:
            path: The .onnx file.
            threads: CPU threads, all cores by default.

        Raises:
            ValueError: onnxruntime is not installed, or the file is none that `export_onnx` wrote.
        """
        if not Path(path).is_file():
            raise ValueError(f"There is no file {path}.")
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}; it must be 1 at least.")
        self._session = _open_session(Path(path), threads)
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        if self.metadata.get("model_type") != SparseFormerConfig.model_type:
            raise ValueError(f"{path} was not written by sfvlm: its metadata name no {SparseFormerConfig.model_type}.")
        self.image_size, self.num_tokens = int(self.metadata["image_size"]), int(self.metadata["num_tokens"])
        self.image_mean: list[float] = json.loads(self.metadata["image_mean"])
        self.image_std: list[float] = json.loads(self.metadata["image_std"])
        self.layers = {int(layer): name for layer, name in json.loads(self.metadata["layers"]).items()}
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, pixels: Tensor | np.ndarray) -> dict[str, np.ndarray]:
        """Encodes photos.

        Args:
            pixels: (B, 3, S, S), normalised.

        Raises:
            ValueError: They have another shape.
        """
        array = pixels.detach().float().cpu().numpy() if isinstance(pixels, Tensor) else pixels
        side = self.image_size
        if array.ndim != 4 or array.shape[1:] != (3, side, side):
            raise ValueError(f"pixels have shape {tuple(array.shape)}; this file reads (batch, 3, {side}, {side}).")
        outputs = self._session.run(None, {"pixel_values": np.ascontiguousarray(array, dtype=np.float32)})
        return dict(zip(self._names, outputs, strict=True))


def _open_session(path: Path, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("ONNX files need the package onnxruntime: pip install 'sfvlm[onnx]'.") from error
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each kind of damage has its own
        raise ValueError(f"{path} cannot be opened by onnxruntime: {reason(error)}") from error
