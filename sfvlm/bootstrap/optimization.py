"""What an optimizer step changes, and by how much: rates over a run, parameter groups, and what gets no gradient."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from ..encoder.configuration import SparseFormerConfig
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
            fresh = is_fresh(name, focusing) or "lora_" in name or name.startswith("guide.")
            rate = options.fresh_learning_rate if fresh else options.learning_rate
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
        if objective.dense:  # a map is made of what comes after the last block and the last norm
            layers = [*layers, -1]
        first_look = 0 if config.focusing == "fresh" else config.coarse_blocks
        deepest = max([first_look, *(config.num_hidden_layers + 1 + layer for layer in layers)])
        parts = ("projection", "classifier", "attention_pool") if objective.dense else ("",)
        unread += [
            *(f"head.{part}" for part in parts),
            *(f"blocks.{number}." for number in range(deepest, config.num_hidden_layers)),
        ]
    if not objective.saliency:
        unread.append("focusing.saliency")
    frozen = set()
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and name.startswith(tuple(unread)):
            parameter.requires_grad_(False)
            frozen.add(name)
    return frozen


def sees_all_patches(config: SparseFormerConfig, options: BootstrapOptions) -> bool:
    """Whether all blocks do at some budget: proportional attention then has nothing to add, and gets no gradient."""
    if config.focusing != "chosen" or not config.proportional_attention:
        return False
    keeps_context = config.context_blocks == config.num_hidden_layers
    budgets = options.budgets or (config.budget,)
    seen = max(budget + keeps_context * config.context_size(budget) for budget in budgets)
    return seen == config.teacher_grid**2
