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

What enters the second layer of an MLP has a few features that are far larger than the others, and one scale for all would
leave the others no bits: those few are multiplied in float32 (LLM.int8(), arXiv 2208.07339, section 3.2). On
sparseformer-tiny-49 and photos, pooled vectors with and without 8 bits have a cosine of 0.99 then, and 0.91 otherwise.

It works for any vision model that is called on pixels, so that a dense one can be compared with the same means.
"""

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from ..photos.scenes import render_scene
from ..photos.views import evaluation_view, normalize
from .configuration import SparseFormerConfig
from .fast_layers import FastLinear, Int8Linear, PackedLinear, int8_engines, packings

TOLERANCES = {"packed": 1e-4, "int8": 0.2, "bfloat16": 0.05, "compile": 1e-3, "graph": 1e-3}
HOWS = tuple(TOLERANCES)
ROUNDING = {torch.bfloat16: 0.1, torch.float16: 0.02}  # that two ways to compute in so few bits may differ by
QUICK_GELU = 1.702  # x * sigmoid(1.702 x)
# They decide where to look: little work, and a small error there sends a token elsewhere.
EXACT = ("refiner", "saliency", "offset")
SMALLEST_INT8 = 64  # features in and out of a layer that 8 bits make faster
LARGE_FEATURES = 8  # of what enters an MLP's second layer
FORMS = 64  # that a compiled module may take: one for each size, batch and budget it is called with
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


def _packed(model: nn.Module, call: Call) -> Any:
    if not _pack(model, call):
        raise ValueError(_nothing_to_replace(model))
    return model


def _pack(model: nn.Module, call: Call) -> int:
    """Packs the float32 layers that are not fast yet for the call at hand; returns their number."""
    count = _replace_linears(model, PackedLinear, lambda name, linear: linear.weight.dtype == torch.float32)
    call(model)
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.packing = False  # memory for packs is spent on the sizes asked for, and on no others
    return count


def _int8(model: nn.Module, call: Call) -> Any:
    def wanted(name: str, linear: nn.Linear) -> bool:
        is_large = min(linear.weight.shape) >= SMALLEST_INT8 and linear.weight.dtype == torch.float32
        return is_large and not any(part.startswith(EXACT) for part in name.split("."))

    large, engine = _large_features(model, call), int8_engines()[0]
    if not _replace_linears(
        model, lambda linear, **gains: Int8Linear(linear, engine, large.get(linear), **gains), wanted
    ):
        raise ValueError(_nothing_to_replace(model, SMALLEST_INT8))
    if packings():
        _pack(model, call)
    return model


def _nothing_to_replace(model: nn.Module, features: int = 1) -> str:
    """Why none of a model's layers was replaced."""
    dtypes = {layer.weight.dtype for layer in model.modules() if isinstance(layer, nn.Linear)} - {torch.float32}
    name = type(model).__name__
    if dtypes:
        found = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return f"The {name} holds {found} weights; call model.float() first."
    return f"The {name} has no linear layer of {features} features or more in and out: there is nothing to make faster."


def _large_features(model: nn.Module, call: Call) -> dict[nn.Module, Tensor]:
    """The numbers of the features that are largest in what enters each MLP's second layer, behind its activation."""
    largest: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found = inputs[0].abs().flatten(0, -2).amax(dim=0)
        largest[layer] = torch.maximum(found, largest.get(layer, found))

    layers = [module.get_submodule("fc2") for module in model.modules() if _is_mlp(module)]
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


def compile_forms(model: nn.Module, **options: Any) -> Any:
    """`torch.compile` with room for many sizes, batches and budgets: torch's own limit is 8, for all models of a class together.

    Args:
        model: What is compiled, when it is called.
        options: Of `torch.compile`.
    """
    if {"recompile_limit", "isolate_recompiles"} <= inspect.signature(torch.compile).parameters.keys():
        options |= {"recompile_limit": FORMS, "isolate_recompiles": True}
    else:  # older releases have one limit for the whole process
        settings: Any = torch._dynamo.config
        settings.recompile_limit = max(settings.recompile_limit, FORMS)
    return torch.compile(model, **options)


def _compile(model: nn.Module, call: Call) -> Any:
    return _compiled(model, call)


def _graph(model: nn.Module, call: Call) -> Any:
    counters = torch._dynamo.utils.counters
    skips = counters["inductor"]["cudagraph_skips"]
    # The first call of a graph warms up and the second one records: what is compared afterwards is a replay.
    graph = _compiled(model, call, calls=2, mode="reduce-overhead")
    if counters["inductor"]["cudagraph_skips"] > skips:  # compiled it is, with its kernels started one by one
        raise ValueError(
            f"torch can record no CUDA graph of the {type(model).__name__}, and TORCH_LOGS=cudagraphs says why: use 'compile'."
        )
    # A graph writes its outputs to the same memory at every call. A hook of the wrapper runs outside of what was compiled.
    graph.register_forward_hook(lambda module, inputs, output: _copied(output))
    return graph


def _compiled(model: nn.Module, call: Call, calls: int = 1, **options: Any) -> Any:
    """Compiles a model and calls it, since torch compiles no sooner."""
    compiled = compile_forms(model, fullgraph=True, dynamic=False, **options)
    try:
        for _ in range(calls):
            call(compiled)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each compiler raises its own kinds; the model as it is has just run
        reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"torch.compile cannot take the {type(model).__name__}: {reason}") from error
    return compiled


def _copied(output: Any) -> Any:
    """An output with tensors of its own."""
    if isinstance(output, Tensor):
        return output.clone()
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        found = {field.name: _copied(getattr(output, field.name)) for field in dataclasses.fields(output)}
        return dataclasses.replace(output, **found)
    if isinstance(output, dict):
        return {name: _copied(value) for name, value in output.items()}
    if isinstance(output, tuple | list):
        return type(output)(*map(_copied, output)) if hasattr(output, "_fields") else type(output)(map(_copied, output))
    return output


MAKERS: dict[str, Callable[[nn.Module, Call], Any]] = {
    "packed": _packed,
    "int8": _int8,
    "bfloat16": _bfloat16,
    "compile": _compile,
    "graph": _graph,
}


def _replace_linears(
    model: nn.Module, make: Callable[..., FastLinear], wanted: Callable[[str, nn.Linear], bool]
) -> int:
    """Puts fast layers in the place of the wanted linear ones, and spares quick-GELU its two products; returns their number."""
    count = 0
    for name, module in list(model.named_modules()):
        gains = _quick_gelu_gains(module)
        for child_name, child in list(module.named_children()):
            if not isinstance(child, nn.Linear) or isinstance(child, FastLinear):
                continue
            if wanted(f"{name}.{child_name}".lstrip("."), child):
                setattr(module, child_name, make(child, **gains.get(child_name, {})))
                count += 1
        replaced = [isinstance(getattr(module, child_name), FastLinear) for child_name in gains]
        if replaced and all(replaced):
            for child_name, child in list(module.named_children()):
                if isinstance(child, QuickGELUActivation):
                    setattr(module, child_name, nn.SiLU(inplace=True))
    return count


def _is_mlp(module: nn.Module) -> bool:
    """Whether it is two plain linear layers, one behind the other, as transformers, timm and we name them."""
    first, second = (dict(module.named_children()).get(name) for name in ("fc1", "fc2"))
    if not isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
        return False
    return type(first) is type(second) is nn.Linear and first.out_features == second.in_features


def _quick_gelu_gains(module: nn.Module) -> dict[str, dict[str, float]]:
    """x * sigmoid(1.702 x) is SiLU(1.702 x) / 1.702: the factors go into the layers before and after it."""
    if not _is_mlp(module) or not any(isinstance(child, QuickGELUActivation) for child in module.children()):
        return {}
    return {"fc1": {"gain": QUICK_GELU, "bias_gain": QUICK_GELU}, "fc2": {"gain": 1 / QUICK_GELU}}


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "mps" or torch.cpu._is_avx512_bf16_supported()
