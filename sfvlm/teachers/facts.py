"""What every teacher is described by, whichever library it is of."""

import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..encoder.configuration import SparseFormerConfig
from .preprocessors import Preprocessing


def library(name: str, source: str) -> Any:
    """A package that this form of a teacher needs; ValueError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"Teacher {source!r} needs the package {name}: pip install 'sfvlm[train]'.") from error


def check_no_adapter(folder: Path) -> None:
    """Raises ValueError if there is an adapter in a model's folder, which its library would put on it."""
    names = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
    if any((folder / name).is_file() for name in names):
        raise ValueError(
            f"{folder} holds an adapter, which would be left out: merge it into its model (PEFT's merge_and_unload), and "
            "open what that saves, or move it away where it is another model's."
        )


def tell_assumed(source: str, fields: Sequence[str], published: Mapping[str, Mapping[str, Any]], instead: str) -> None:
    """Warns if nothing but a model's name says how photos are made, and its published weights were not all trained alike.

    Args:
        source: Of a bare file of weights.
        fields: What differs between trainings.
        published: What each of them has, by tag.
        instead: What says it.
    """
    differ = [name for name in fields if len({str(each.get(name)) for each in published.values()}) > 1]
    if differ:
        warnings.warn(
            f"{source!r} is a file of weights, which does not say how it was trained: {', '.join(differ)} of its model's name are "
            f"assumed, and weights published under it differ in them ({', '.join(list(published)[:6])}). To say which, name "
            f"{instead}.",
            stacklevel=2,
        )


def teacher_config(
    *,
    image_size: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    mlp: int,
    activation: str,
    eps: float,
    photo: Preprocessing,
    pooling: str,
    tensors: dict[str, Tensor],
) -> SparseFormerConfig:
    """The configuration of a dense teacher: every patch a token. `tensors`, in canonical names, say which parts it has."""
    projection = tensors.get("head.projection.weight")
    classifier = tensors.get("head.classifier.weight")
    return SparseFormerConfig(
        image_size=image_size,
        **asdict(photo),
        num_tokens=(image_size // patch) ** 2,
        glimpse_size=patch,
        teacher_patch_size=patch,
        teacher_grid=image_size // patch,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=mlp,
        hidden_act=activation,
        layer_norm_eps=eps,
        pre_norm="pre_norm.weight" in tensors,
        pooling=pooling,
        projection_dim=0 if projection is None else len(projection),
        projection_bias="head.projection.bias" in tensors,
        num_classes=0 if classifier is None else len(classifier),
    )


def activation_name(module: nn.Module) -> str:
    """transformers' name of an activation module, found by what it computes: class names differ between libraries."""
    from transformers.activations import ACT2FN

    probe = torch.linspace(-4, 4, 33)
    for name in ("gelu", "quick_gelu", "gelu_pytorch_tanh", "relu"):
        if torch.allclose(module(probe.clone()), ACT2FN[name](probe.clone()), atol=1e-6):
            return name
    raise ValueError(f"The activation {type(module).__name__} is none of gelu, quick_gelu, gelu_pytorch_tanh, relu.")


def only_epsilon(module: nn.Module, source: str) -> float:
    """The epsilon of all norms in a tower; ValueError if they have several."""
    found = {each.eps for each in module.modules() if isinstance(each, nn.LayerNorm)}
    if len(found) != 1:
        raise ValueError(
            f"The norms of {source!r} have the epsilons {sorted(found)}, and one is needed for all of them."
        )
    return found.pop()
