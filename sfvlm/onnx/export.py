"""A SparseFormer as one .onnx file that needs nothing beside it, and such a file as an encoder.

    model = open_student("runs/sf49")
    export_onnx(model, "sf49.onnx", layers=(-2,))
    outputs = OnnxEncoder("sf49.onnx", threads=1)(pixels)  # {"pooler_output": ..., ...}, numpy

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
import importlib.metadata
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..encoder.configuration import SparseFormerConfig, layer_from_end
from ..encoder.focusing import ChosenFocusing
from ..encoder.folder import image_processor
from ..encoder.sparseformer import SparseFormerModel
from ..util.errors import reason
from ..util.files import check_writable, replacing

TOLERANCE = 1e-4  # largest difference from the model, in an output's largest value
CHECKED_BATCHES = (1, 3)
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


class _Graph(nn.Module):
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
    graph = _Graph(model, config.budget if num_tokens is None else num_tokens, from_end).eval()
    photos = _clear_photos(graph, size)  # fails on a budget that the model has not, before anything is traced

    program = _trace(graph, photos[:2], opset)
    program.model.metadata_props.update(_metadata(graph, size, from_end))
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    with replacing(path) as temporary:
        program.save(temporary, external_data=weights > LARGEST_FILE)
        differences = _compare(temporary, graph, photos)
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


def _trace(graph: _Graph, photos: Tensor, opset: int) -> Any:
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


def _metadata(graph: _Graph, image_size: int, layers: Sequence[int]) -> dict[str, str]:
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


def _clear_photos(graph: _Graph, size: int) -> Tensor:
    """Random pixels, (4, 3, size, size), of which the model and its copy must say the same.

    Where patches are chosen, rounding decides between two that are nearly equally worth a look, and either is right. So these
    are the photos, of some more, whose choice changes the least when the guesses are shaken.
    """
    count, focusing = sum(CHECKED_BATCHES), graph.model.focusing
    chooses = isinstance(focusing, ChosenFocusing)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3 * count if chooses else count, 3, size, size, generator=generator)
    saliency = graph.model(pixels, num_tokens=graph.num_tokens).saliency
    if not chooses or saliency is None:
        return pixels
    plain, firm = _choice(focusing, saliency, graph.num_tokens), torch.zeros(len(pixels))
    for size_of_shake in (1e-5, 1e-4, 1e-3, 1e-2):
        for _ in range(4):
            shaken = saliency + size_of_shake * torch.randn(saliency.shape, generator=generator)
            firm += (_choice(focusing, shaken, graph.num_tokens) == plain).all(dim=1)
    return pixels[firm.topk(count).indices]


def _choice(focusing: ChosenFocusing, saliency: Tensor, num_tokens: int) -> Tensor:
    cells = focusing.choose(saliency, num_tokens)
    return torch.cat([cells, focusing.choose_context(saliency, cells)], dim=1)


def _compare(file: Path, graph: _Graph, photos: Tensor) -> dict[str, float]:
    """Output -> the largest difference between file and model over all batches, in the output's largest value."""
    encoder, worst = OnnxEncoder(file), dict.fromkeys(graph.names, 0.0)
    for batch in photos.split(CHECKED_BATCHES):
        found = encoder(batch)
        for name, expected in zip(graph.names, graph(batch), strict=True):
            scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            difference = ((torch.from_numpy(found[name]) - expected).abs().max() / scale).item()
            # A number that is none must not pass for a small one.
            worst[name] = max(worst[name], torch.inf if difference != difference else difference)
    return worst


def _weights_file(path: Path) -> Path:
    """Where the weights lie that are too many for the file itself."""
    return path.with_name(f"{path.name}.data")


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
