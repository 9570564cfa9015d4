"""What every teacher is described by, whichever library it is of."""

import importlib
from dataclasses import asdict
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
