"""Makes an encoder faster where it runs, and checks what that does to its output before anybody uses it.

    accelerate(model, "int8", pixels)  ->  the same model, sharing weights, its layers in another form

| way | where | what it does | differs by at most |
|---|---|---|---|
| packed | CPUs, float32 | lays weights out once for products of this size, instead of at every call | 1e-4 |
| int8 | x86 CPUs, float32 | weights in 8 bits with a scale an output; what enters them in 8 bits with a scale a call | 0.2 |
| bfloat16 | where there are units for it | weights and sums of 16 bits; boxes stay float32 | 0.05 |
| compile | everywhere | `torch.compile` at fixed shapes: fewer passes over memory | 1e-3 |
| graph | CUDA | the same, replayed as one CUDA graph: no launches; outputs are copied out of its memory | 1e-3 |

A model of 16 bits rounds at every step and its compiled form at fewer: they may differ by 0.1 in bfloat16, by 0.02 in float16.

With few tokens a matrix product is small and its weights are large: torch rearranges a layer's weights at every call, which
takes as long as half of multiplying 64 tokens with them. That is why packing pays here, and not for a dense encoder.

It works for any vision model that is called on pixels, so that a dense one can be compared with the same means.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..photos.scenes import render_scene
from ..photos.views import evaluation_view, normalize
from .compiling import Call, to_compiled, to_graph
from .configuration import SparseFormerConfig
from .fast_layers import FastLinear, int8_engines, packings
from .replacing import to_int8, to_packed

TOLERANCES = {"packed": 1e-4, "int8": 0.2, "bfloat16": 0.05, "compile": 1e-3, "graph": 1e-3}
HOWS = tuple(TOLERANCES)
ROUNDING = {torch.bfloat16: 0.1, torch.float16: 0.02}  # that two ways to compute in so few bits may differ by
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
        for what torch.compile wraps. That compiles anew under `torch.inference_mode()`, unless this function was called there,
        on photos that were made there.

    Raises:
        ValueError: This machine cannot do it, or torch's compiler cannot; the model is training, accelerated already or has no
            layer to replace; or the output differs by more than it may.
    """
    how = how or fastest_exact(pixels.device)
    check_possible(how, pixels.device)
    _check_plain(model)
    if model.training:
        raise ValueError(
            "The model is in training mode; call model.eval() first: what is accelerated cannot be trained."
        )
    with torch.no_grad():
        expected = model(pixels, **arguments)
        faster = MAKERS[how](_sharing(model), lambda module: module(pixels, **arguments))
        found = faster(pixels, **arguments)
    difference = difference_of(found, expected)
    tolerance = max([TOLERANCES[how], *(ROUNDING.get(parameter.dtype, 0.0) for parameter in model.parameters())])
    if not difference <= tolerance:
        raise ValueError(
            f"Accelerated by {how!r}, the output of {type(model).__name__} differs by {difference:.2g} of its length, and "
            f"{tolerance:.2g} is allowed: use another of {', '.join(HOWS)}."
        )
    faster.acceleration = Acceleration(how, difference, tolerance)
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
    return "packed" if device.type == "cpu" and packings() else "compile"


def check_possible(how: str, device: torch.device) -> None:
    """Raises ValueError where a device cannot be accelerated like that."""
    if how not in HOWS:
        raise ValueError(f"There is no acceleration {how!r}; there are {', '.join(HOWS)}.")
    lacks = {
        "packed": (device.type != "cpu" or not packings(), "a CPU and a torch with oneDNN or oneMKL"),
        "int8": (device.type != "cpu" or not int8_engines(), "a CPU and a torch with an x86 engine for 8 bits"),
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


def _check_plain(model: nn.Module) -> None:
    """Raises ValueError for what was accelerated, in whole or in part."""
    for module in model.modules():
        if isinstance(module, FastLinear) or isinstance(getattr(module, "acceleration", None), Acceleration):
            raise ValueError("The model is accelerated already: give the one that it was made from.")


def _sharing(model: nn.Module) -> Any:
    """A copy of the modules whose frozen parameters and buffers are the model's own memory."""
    memo: dict[int, Any] = {id(parameter): nn.Parameter(parameter.detach(), False) for parameter in model.parameters()}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


def _to_bfloat16(model: nn.Module, call: Call) -> Any:
    model = model.to(torch.bfloat16)  # its parameters are its own, only their memory was shared

    def cast(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0].bfloat16(), *args[1:]), kwargs
        return args, kwargs | {"pixel_values": kwargs["pixel_values"].bfloat16()}

    model.register_forward_pre_hook(cast, with_kwargs=True)
    return model


MAKERS: dict[str, Callable[[nn.Module, Call], Any]] = {
    "packed": to_packed,
    "int8": to_int8,
    "bfloat16": _to_bfloat16,
    "compile": to_compiled,
    "graph": to_graph,
}


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "mps" or torch.cpu._is_avx512_bf16_supported()
