"""What an optimizer step changes, and by how much: rates over a run, parameter groups, LoRA, averaged weights."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from ..encoder.sparseformer import SparseFormerModel
from ..teachers.inherit import is_fresh
from .objective import Objective
from .options import BootstrapOptions


class Schedule(Protocol):
    """How long a run is, and over which share of it rates rise."""

    @property
    def steps(self) -> int: ...

    @property
    def warmup(self) -> float: ...


def rate_at(step: int, options: Schedule) -> float:
    """The factor on all peak rates at a step (counted from 0): linear warm-up, then a half cosine to zero."""
    warm = max(1, round(options.warmup * options.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, options.steps - warm)))


def parameter_groups(model: nn.Module, focusing: str, options: BootstrapOptions) -> list[dict[str, Any]]:
    """Four rates (boxes, proportional attention, fresh, inherited), each with and without weight decay; empty groups left out."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = name.removeprefix("base_model.model.")
        if name.endswith("token_roi.weight"):
            rate, decay = options.box_learning_rate, 0.0
        elif name.startswith("proportional."):
            rate, decay = options.proportion_learning_rate, 0.0
        else:
            rate = options.fresh_learning_rate if is_fresh(name, focusing) or "lora_" in name else options.learning_rate
            decay = options.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]


def freeze_unread(student: SparseFormerModel, objective: Objective, layers: Sequence[int]) -> set[str]:
    """Freezes, in place, what no part of the loss depends on, and returns its names.

    Several processes wait for the gradients of all that is trained, and would wait for these in vain.

    Args:
        student: What is trained of it requires gradients.
        objective: What is matched.
        layers: The hidden states that are matched or that a host reads, counted from the end.
    """
    config = student.config
    unread: list[str] = []
    if not objective.pooled:
        first_look = 0 if config.focusing == "fresh" else config.coarse_blocks
        deepest = max([first_look, *(config.num_hidden_layers + 1 + layer for layer in layers)])
        unread += ["head.", *(f"blocks.{number}." for number in range(deepest, config.num_hidden_layers))]
    if not objective.saliency:
        unread.append("focusing.saliency")
    frozen = set()
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and name.startswith(tuple(unread)):
            parameter.requires_grad_(False)
            frozen.add(name)
    return frozen


def with_lora(student: SparseFormerModel, options: BootstrapOptions) -> nn.Module:
    """Wraps the tuned blocks' matrices in LoRA; the focusing stage and the class token stay fully trained."""
    from peft import LoraConfig, get_peft_model

    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    numbers = sorted({name.split(".")[1] for name in trained if name.startswith("blocks.")}, key=int)
    if not numbers:
        raise ValueError("tune is 'lora', but no block is tuned: tuned_blocks must be at least 1.")
    targets = rf"blocks\.({'|'.join(numbers)})\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"
    config = LoraConfig(r=options.lora_rank, lora_alpha=options.lora_rank, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        wrapped = get_peft_model(student, config)  # type: ignore[arg-type]
    for name, parameter in wrapped.named_parameters():
        plain = name.removeprefix("base_model.model.")
        if plain in trained and not plain.startswith("blocks."):
            parameter.requires_grad_(True)
    return wrapped


def without_lora(model: Any) -> SparseFormerModel:
    """A plain model with the updates of `with_lora` merged in; what is given stays as it is."""
    return copy.deepcopy(model).merge_and_unload()


def running_average(model: nn.Module, options: BootstrapOptions) -> Any:
    """A copy of the model whose weights follow it, slowly; timm's, so that `.module` is the copy."""
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(model, decay=options.ema_decay, use_warmup=True)
