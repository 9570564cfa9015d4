"""Fast layers in the place of a model's linear ones: which of them, and what they must know of the inputs.

What enters the second layer of an MLP has a few features that are far larger than the others, and one scale for all would
leave the others no bits: those few are multiplied in float32 (LLM.int8(), arXiv 2208.07339, section 3.2). On
sparseformer-tiny-49 and photos, pooled vectors with and without 8 bits have a cosine of 0.99 then, and 0.91 otherwise.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from .compiling import Call
from .fast_layers import FastLinear, Int8Linear, PackedLinear, int8_engines, packings

QUICK_GELU = 1.702  # x * sigmoid(1.702 x)
# They decide where to look: little work, and a small error there sends a token elsewhere.
EXACT = ("refiner", "saliency", "offset")
SMALLEST_INT8 = 64  # features in and out of a layer that 8 bits make faster
LARGE_FEATURES = 8  # of what enters an MLP's second layer


def to_packed(model: nn.Module, call: Call) -> Any:
    """The model with its float32 layers packed for the call at hand; ValueError if it has none."""
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


def to_int8(model: nn.Module, call: Call) -> Any:
    """The model with its large layers in 8 bits and the others packed; ValueError if it has no large one."""

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
