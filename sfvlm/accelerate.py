"""Makes an encoder faster where it runs, and checks what that does to its output before anybody uses it.

    accelerate(model, "int8", pixels)  ->  the same model, sharing weights, its layers in another form

| way | where | what it does | differs by at most |
|---|---|---|---|
| packed | x86 CPUs, float32 | lays weights out once for products of this size, instead of at every call | 1e-4 |
| int8 | x86 CPUs | weights in 8 bits with a scale an output; what enters them in 8 bits with a scale a call | 0.2 |
| bfloat16 | where there are units for it | weights and sums of 16 bits; boxes stay float32 | 0.05 |
| compile | everywhere | `torch.compile` at fixed shapes: fewer passes over memory | 1e-3 |
| graph | CUDA | the same, replayed as one CUDA graph: no launches | 1e-3 |

With few tokens a matrix product is small and its weights are large: torch rearranges a layer's weights at every call, which
takes as long as half of multiplying 64 tokens with them. That is why packing pays here, and not for a dense encoder.

What enters the second layer of an MLP has a few features that are far larger than the others, and one scale for all would
leave the others no bits: those few are multiplied in float32 (LLM.int8(), arXiv 2208.07339, section 3.2). On
sparseformer-tiny-49 and photos, pooled vectors with and without 8 bits have a cosine of 0.99 then, and 0.91 otherwise.

It works for any vision model that is called on pixels, so that a dense one can be compared with the same means.
"""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from .configuration import SparseFormerConfig
from .scenes import render_scene
from .views import evaluation_view, normalize

TOLERANCES = {"packed": 1e-4, "int8": 0.2, "bfloat16": 0.05, "compile": 1e-3, "graph": 1e-3}
HOWS = tuple(TOLERANCES)
QUICK_GELU = 1.702  # x * sigmoid(1.702 x)
# They decide where to look: little work, and a small error there sends a token elsewhere.
EXACT = ("refiner", "saliency", "offset")
LARGE_FEATURES = 8  # of what enters an MLP's second layer
Call = Callable[[nn.Module], Any]  # calls a model on the pixels at hand
COMPARED = ("pooler_output", "image_embeds", "pooled", "last_hidden_state")


class Acceleration(NamedTuple):
    """What was done to a model, kept in its attribute `acceleration`.

    Attributes:
        how: One of `HOWS`.
        difference: Length of the difference of outputs, by the length of the output; the largest of those compared.
        tolerance: What it may be.
    """

    how: str
    difference: float
    tolerance: float


def accelerate(model: nn.Module, how: str | None, pixels: Tensor, **arguments: Any) -> Any:
    """A faster version of a model for inputs like these.

    Args:
        model: Called on pixels alone; in eval mode. It stays as it is.
        how: One of `HOWS`; None for the fastest of those that lose no precision, on the device of the pixels.
        pixels: (B, 3, H, W), on the model's device: photos, since "int8" learns from them which features are large. Other
            sizes, batches and budgets work too, only not faster ("packed"), or after compiling again ("compile", "graph").
        arguments: Of the calls to come, such as `num_tokens`.

    Returns:
        Another module that shares the weights it could keep, frozen, with the attribute `acceleration`; of the same class, but
        for what torch.compile wraps.

    Raises:
        ValueError: This machine cannot do it, the model is training, or the output differs by more than it may.
    """
    how = how or fastest_exact(pixels.device)
    check_possible(how, pixels.device)
    if model.training:
        raise ValueError(
            "The model is in training mode; call model.eval() first: what is accelerated cannot be trained."
        )
    with torch.no_grad():
        expected = model(pixels, **arguments)
        faster = MAKERS[how](_sharing(model), lambda module: module(pixels, **arguments))
        found = faster(pixels, **arguments)
    difference = difference_of(found, expected)
    if not difference <= TOLERANCES[how]:
        raise ValueError(
            f"Accelerated by {how!r}, the output of {type(model).__name__} differs by {difference:.2g} of its length, and "
            f"{TOLERANCES[how]:.2g} is allowed: use another of {', '.join(HOWS)}."
        )
    faster.acceleration = Acceleration(how, difference, TOLERANCES[how])
    return faster


def example_pixels(config: SparseFormerConfig, count: int = 1, image_size: int | None = None) -> Tensor:
    """Rendered scenes as a model reads them, (count, 3, S, S): nearer to photos than noise is."""
    side = image_size or config.image_size
    views = [evaluation_view(render_scene(0, index, max(side, 32)).image, side) for index in range(count)]
    return normalize(torch.stack(views), config.image_mean, config.image_std)


def fastest_exact(device: torch.device) -> str:
    """The fastest way on a device that keeps the precision."""
    if device.type == "cuda":
        return "graph"
    return "packed" if device.type == "cpu" and _can_pack() else "compile"


def check_possible(how: str, device: torch.device) -> None:
    """Raises ValueError where a device cannot be accelerated like that."""
    if how not in HOWS:
        raise ValueError(f"There is no acceleration {how!r}; there are {', '.join(HOWS)}.")
    lacks = {
        "packed": (device.type != "cpu" or not _can_pack(), "a CPU and a torch with oneMKL"),
        "int8": (device.type != "cpu" or not _int8_engines(), "a CPU and a torch with an x86 engine for 8 bits"),
        "bfloat16": (not _has_bfloat16(device), "units for bfloat16: without them it would be slower than float32"),
        "graph": (device.type != "cuda", "a CUDA device"),
    }
    missing, needed = lacks.get(how, (False, ""))
    if missing:
        raise ValueError(f"The acceleration {how!r} needs {needed}; this is {device}.")


def difference_of(found: Any, expected: Any) -> float:
    """How far two outputs are apart, relative to the second: the largest over pooled vectors and tokens.

    Where patches are chosen, tokens are compared in those photos whose choice is the same: a tie that falls the other way
    is no error.
    """
    if isinstance(expected, Tensor):
        return _relative(found, expected)
    largest, compared = 0.0, False
    for name in COMPARED:
        one, other = (getattr(each, name, None) for each in (found, expected))
        if one is None or other is None:
            continue
        compared = True
        if name == "last_hidden_state" and getattr(expected, "cells", None) is not None:
            same = (found.cells == expected.cells).all(dim=1)
            if expected.context_rois is not None:
                same &= (found.context_rois == expected.context_rois).flatten(1).all(dim=1)
            one, other = one[same], other[same]
        if len(other):
            largest = max(largest, _relative(one, other))
    if not compared:
        raise ValueError(f"An output of type {type(expected).__name__} has none of {', '.join(COMPARED)} to compare.")
    return largest


def _relative(one: Tensor, other: Tensor) -> float:
    """Infinite where a number is none: `max` would pass over it."""
    other = other.float()
    found = float((one.float() - other).norm() / other.norm().clamp(min=torch.finfo(torch.float32).tiny))
    return found if math.isfinite(found) else math.inf


def _sharing(model: nn.Module) -> Any:
    """A copy of the modules whose frozen parameters and buffers are the model's own memory."""
    memo: dict[int, Any] = {id(parameter): nn.Parameter(parameter.detach(), False) for parameter in model.parameters()}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


class FastLinear(nn.Linear):
    """A linear layer with weights in another form beside its own, which stay what is saved.

    `gain` and `bias_gain` multiply the product and the bias: what scales its input or output costs nothing here.
    """

    def __init__(self, linear: nn.Linear, gain: float = 1.0, bias_gain: float = 1.0) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.gain, self.bias_gain = gain, bias_gain

    def scaled(self) -> tuple[Tensor, Tensor | None]:
        """Weights and bias with the gains."""
        return self.weight * self.gain, None if self.bias is None else self.bias * self.bias_gain


class PackedLinear(FastLinear):
    """Float32 weights packed by oneMKL, once for every number of rows it meets first while `packing`."""

    def __init__(self, linear: nn.Linear, gain: float = 1.0, bias_gain: float = 1.0) -> None:
        super().__init__(linear, gain, bias_gain)
        self.packs: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.packing = True

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // self.in_features
        if self.packing and rows not in self.packs:
            weight, bias = self.scaled()
            self.packs[rows] = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows), bias
        if rows in self.packs:
            pack, bias = self.packs[rows]
            return torch.ops.mkl._mkl_linear(input, pack, self.weight, bias, rows)
        if self.gain == self.bias_gain == 1:
            return F.linear(input, self.weight, self.bias)
        product = F.linear(input, self.weight).mul_(self.gain)
        return product if self.bias is None else product.add_(self.bias * self.bias_gain)


class Int8Linear(FastLinear):
    """Weights as 8-bit numbers with a scale an output; its input becomes 8 bits with one scale a call.

    Args:
        linear: In float32.
        engine: Of torch's quantised layers.
        large: Features of the input that are multiplied in float32, by number.
        gain, bias_gain: As in `FastLinear`.
    """

    def __init__(
        self, linear: nn.Linear, engine: str, large: Tensor | None = None, gain: float = 1.0, bias_gain: float = 1.0
    ) -> None:
        super().__init__(linear, gain, bias_gain)
        weight, bias = self.scaled()
        self.large = large
        if large is not None:
            self.large_weight = weight[:, large].T.contiguous()
            weight = weight.index_fill(1, large, 0)
        self.packed = _packed_int8(weight, bias, engine)
        self.reduce_range = not _has_vnni()  # without it 8 bits by 8 bits can overflow the 16 they are added in

    def forward(self, input: Tensor) -> Tensor:
        if self.large is None:
            return torch.ops.quantized.linear_dynamic(input, self.packed, self.reduce_range)
        small = torch.ops.quantized.linear_dynamic(input.index_fill(-1, self.large, 0), self.packed, self.reduce_range)
        return small + input[..., self.large] @ self.large_weight


def _packed(model: nn.Module, call: Call) -> Any:
    _replace_linears(model, PackedLinear, lambda name, linear: linear.weight.dtype == torch.float32)
    call(model)
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.packing = False  # memory for packs is spent on the sizes asked for, and on no others
    return model


def _int8(model: nn.Module, call: Call) -> Any:
    def wanted(name: str, linear: nn.Linear) -> bool:
        is_large = min(linear.weight.shape) >= 64 and linear.weight.dtype == torch.float32
        return is_large and not any(part.startswith(EXACT) for part in name.split("."))

    large, engine = _large_features(model, call), _int8_engines()[0]
    _replace_linears(model, lambda linear, **gains: Int8Linear(linear, engine, large.get(linear), **gains), wanted)
    return model


def _large_features(model: nn.Module, call: Call) -> dict[nn.Module, Tensor]:
    """The numbers of the features that are largest in what enters each MLP's second layer."""
    largest: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found = inputs[0].abs().flatten(0, -2).amax(dim=0)
        largest[layer] = torch.maximum(found, largest.get(layer, found))

    layers = [layer for name, layer in model.named_modules() if name.endswith(".fc2") and type(layer) is nn.Linear]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    call(model)
    for hook in hooks:
        hook.remove()
    return {layer: found.topk(min(LARGE_FEATURES, len(found))).indices for layer, found in largest.items()}


def _bfloat16(model: nn.Module, call: Call) -> Any:
    model = model.to(torch.bfloat16)  # its parameters are its own, only their memory was shared

    def cast(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0].bfloat16(), *args[1:]), kwargs
        return args, kwargs | {"pixel_values": kwargs["pixel_values"].bfloat16()}

    model.register_forward_pre_hook(cast, with_kwargs=True)
    return model


def _compile(model: nn.Module, call: Call) -> Any:
    return torch.compile(model, fullgraph=True, dynamic=False)


def _graph(model: nn.Module, call: Call) -> Any:
    return torch.compile(model, fullgraph=True, dynamic=False, mode="reduce-overhead")


MAKERS: dict[str, Callable[[nn.Module, Call], Any]] = {
    "packed": _packed,
    "int8": _int8,
    "bfloat16": _bfloat16,
    "compile": _compile,
    "graph": _graph,
}


def _replace_linears(
    model: nn.Module, make: Callable[..., FastLinear], wanted: Callable[[str, nn.Linear], bool]
) -> None:
    """Puts fast layers in the place of the wanted linear ones, and spares quick-GELU its two products."""
    for name, module in list(model.named_modules()):
        gains = _quick_gelu_gains(module)
        for child_name, child in list(module.named_children()):
            if not isinstance(child, nn.Linear) or isinstance(child, FastLinear):
                continue
            if wanted(f"{name}.{child_name}".lstrip("."), child):
                setattr(module, child_name, make(child, **gains.get(child_name, {})))
        replaced = [isinstance(getattr(module, child_name), FastLinear) for child_name in gains]
        if replaced and all(replaced):
            for child_name, child in list(module.named_children()):
                if isinstance(child, QuickGELUActivation):
                    setattr(module, child_name, nn.SiLU(inplace=True))


def _quick_gelu_gains(module: nn.Module) -> dict[str, dict[str, float]]:
    """x * sigmoid(1.702 x) is SiLU(1.702 x) / 1.702: the factors go into the layers before and after it."""
    children = dict(module.named_children())
    is_mlp = all(isinstance(children.get(name), nn.Linear) for name in ("fc1", "fc2"))
    if not is_mlp or not any(isinstance(child, QuickGELUActivation) for child in children.values()):
        return {}
    return {"fc1": {"gain": QUICK_GELU, "bias_gain": QUICK_GELU}, "fc2": {"gain": 1 / QUICK_GELU}}


def _packed_int8(weight: Tensor, bias: Tensor | None, engine: str) -> Any:
    scales = weight.float().abs().amax(dim=1).clamp(min=1e-12) / 127
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch wants quantised tensors to go some day; there is no other such layer yet
        rounded = torch.quantize_per_channel(
            weight.float(), scales.double(), torch.zeros(len(weight), dtype=torch.long), 0, torch.qint8
        )
        torch.backends.quantized.engine = engine
        try:
            return torch.ops.quantized.linear_prepack(rounded, None if bias is None else bias.float())
        finally:
            torch.backends.quantized.engine = before


def _can_pack() -> bool:
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def _int8_engines() -> list[str]:
    """Of this torch build, the fastest first."""
    return [name for name in ("onednn", "x86", "fbgemm") if name in torch.backends.quantized.supported_engines]


def _has_vnni() -> bool:
    return torch.cpu._is_vnni_supported()


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "mps" or torch.cpu._is_avx512_bf16_supported()
