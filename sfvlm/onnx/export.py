"""A SparseFormer as one .onnx file that needs nothing beside it.

    export_onnx(open_student("runs/sf49"), "sf49.onnx", layers=(-2,))

    model -> request checked -> `graph`: traced -> written beside its place -> `comparison` with the model -> in its place

| name | shape | what |
|---|---|---|
| pixel_values | batch x 3 x S x S | the photo, normalised by the mean and std of the file's metadata |
| pooler_output | batch x D or projection | the photo as one vector |
| last_hidden_state | batch x [1 +] N x D | tokens after the last block |
| hidden_states.I | batch x [1 +] N x D | tokens after block I, one output for each layer that was asked for |
| token_rois | batch x N x 4 | where each token looked last, in fractions of the photo |
| logits | batch x classes | only of a model with a classifier |

The number of photos is free; the image size S and the budget N are fixed when the file is written.
"""

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..encoder.configuration import layer_from_end
from ..encoder.sparseformer import SparseFormerModel
from ..util.files import check_writable, replacing
from .comparison import clear_photos, compare
from .graph import Graph, metadata, trace

TOLERANCE = 1e-4  # largest difference from the model, in an output's largest value
OPSETS = range(18, 24)  # what torch's exporter writes: 18, or converted from it
LARGEST_FILE = 1536 * 2**20  # bytes of weights in one file: protobuf cannot hold 2 GB
SMALLEST_PHOTO = 16  # pixels


@dataclass(frozen=True)
class OnnxReport:
    """What was written.

    Attributes:
        path: The file.
        size: Its bytes, with those of its weights.
        differences: Output -> largest difference from the model, in the output's largest value.
    """

    path: Path
    size: int
    differences: dict[str, float]

    @property
    def difference(self) -> float:
        """The largest of them."""
        return max(self.differences.values())


@torch.no_grad()
def export_onnx(
    model: SparseFormerModel,
    path: str | Path,
    *,
    num_tokens: int | None = None,
    image_size: int | None = None,
    layers: Sequence[int] = (),
    opset: int = 18,
) -> OnnxReport:
    """Writes a model as an .onnx file, and keeps it only if onnxruntime computes from it what the model computes.

    Args:
        model: In float32, on the CPU, in evaluation.
        path: The file; the folder must exist. More than 1.5 GB of weights go into a second file beside it, `path` + `.data`;
            where there are fewer, such a file of an earlier export is removed.
        num_tokens: The budget, the model's own by default.
        image_size: Side of the square photos in pixels, the configuration's by default.
        layers: Whose hidden states are outputs too, as `hidden_states` is indexed: -2 for what a LLaVA reads.
        opset: Of ONNX, 18 to 23.

    Raises:
        ValueError: A package is missing, an argument is none that the model or the exporter can do, or the outputs differ.
    """
    check_packages()
    path = Path(path)
    _check_request(model, path, opset)
    config = model.config
    size = config.image_size if image_size is None else image_size
    if size < SMALLEST_PHOTO:
        raise ValueError(f"image_size is {size}; a photo needs at least {SMALLEST_PHOTO} pixels a side.")
    from_end = [_from_end(layer, config.num_hidden_layers) for layer in layers]
    graph = Graph(model, config.budget if num_tokens is None else num_tokens, from_end).eval()
    photos = clear_photos(graph, size)  # fails on a budget that the model has not, before anything is traced

    program = trace(graph, photos[:2], opset)
    program.model.metadata_props.update(metadata(graph, size, from_end))
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    with replacing(path) as temporary:
        program.save(temporary, external_data=weights > LARGEST_FILE)
        differences = compare(temporary, graph, photos)
        name, worst = max(differences.items(), key=lambda item: item[1])
        if not worst <= TOLERANCE:
            raise ValueError(
                f"onnxruntime's {name} differs from the model's by {worst:.2g} of its largest value, and {TOLERANCE:.0e} is "
                f"allowed: {path} was not written."
            )
        written = [file.stat().st_size for file in temporary.parent.iterdir()]
        beside = _weights_file(temporary)
        has_two = beside.exists()
        if has_two:
            path.unlink(missing_ok=True)  # for a moment there is no file, rather than one with the weights of another
            os.replace(beside, _weights_file(path))
    if not has_two:
        _weights_file(path).unlink(missing_ok=True)
    return OnnxReport(path, sum(written), differences)


def check_packages() -> None:
    """Raises ValueError if what writes and runs the files is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"ONNX files need the package {name}: pip install 'sfvlm[onnx]'.") from error


def _check_request(model: object, path: Path, opset: int) -> None:
    if not isinstance(model, SparseFormerModel):
        raise ValueError(f"A {type(model).__name__} is no SparseFormerModel, and only those are exported.")
    if model.dtype != torch.float32 or model.device.type != "cpu" or model.training:
        raise ValueError(
            f"The model is {model.dtype}, on {model.device}, in {'training' if model.training else 'evaluation'}; it must be "
            "float32, on cpu, in evaluation: model.float().cpu().eval()."
        )
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{path} must be a file in a folder that exists.")
    check_writable(path.parent)
    if opset not in OPSETS:
        raise ValueError(f"opset is {opset}; it is one of {OPSETS[0]} to {OPSETS[-1]}.")


def _from_end(layer: int, depth: int) -> int:
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"There is no layer {layer}: {depth} blocks have hidden states {-depth - 1} to {depth}.")
    return layer_from_end(layer, depth)


def _weights_file(path: Path) -> Path:
    """Where the weights lie that are too many for the file itself."""
    return path.with_name(f"{path.name}.data")
