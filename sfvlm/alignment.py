"""What the student is asked to match: one function an objective, of (student output, teacher output). No labels anywhere.

A token target must be anchored to fixed places of the photo. Sampled at the student's own moving boxes it collapses within
hundreds of steps: boxes grow to ten times the photo, where the repeated border makes all tokens alike and the loss
looks perfect.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .sparseformer import SparseFormerOutput


@dataclass(frozen=True)
class Target:
    """What the teacher said of a batch; `tokens` only where an objective asks for them."""

    pooled: Tensor  # (B, E)
    tokens: Tensor | None = None  # (B, patches, D) at the layer asked for, without the class token


@dataclass(frozen=True)
class Objective:
    """Weights of the parts of the loss.

    Attributes:
        pooled: Weight of `pooled_cosine`.
        tokens: Weight of `anchored_tokens`, for hosts that read tokens; 0 leaves them free.
        layer: The teacher's layer whose tokens are matched, as LLaVA counts (-2: the last block but one).
    """

    pooled: float = 1.0
    tokens: float = 0.0
    layer: int = -2


def pooled_cosine(student: SparseFormerOutput, target: Target) -> Tensor:
    """One minus the cosine of the pooled vectors, the paper's final token representation: -> scalar in 0 ... 2."""
    assert student.pooler_output is not None
    return (1 - F.cosine_similarity(student.pooler_output.float(), target.pooled.float(), dim=-1)).mean()


def anchored_tokens(student: SparseFormerOutput, target: Target, layer: int) -> Tensor:
    """Mean squared error of normalised tokens against the teacher's mean token in each token's starting cell: -> scalar.

    Tokens are standardised over their features first, so that the handful of features with huge values which vision
    transformers carry does not drown the rest. The cells tile the photo and never move, whatever the boxes do.
    """
    assert student.hidden_states is not None and target.tokens is not None
    count = target_count(student)
    tokens = student.hidden_states[layer][:, -count:]
    anchors = anchor_targets(target.tokens, count)
    width = tokens.shape[-1:]
    return F.mse_loss(F.layer_norm(tokens.float(), width), F.layer_norm(anchors.float(), width))


def anchor_targets(teacher_tokens: Tensor, count: int) -> Tensor:
    """The teacher's patch tokens averaged over a fixed square grid of cells: (B, patches, D) -> (B, count, D).

    Raises:
        ValueError: The budget is not a square number, so that there is no grid of cells.
    """
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"Token targets need a square budget; {count} is none: try {side**2} or {(side + 1) ** 2}.")
    grid = math.isqrt(teacher_tokens.shape[1])
    table = teacher_tokens.transpose(1, 2).unflatten(2, (grid, grid))
    return F.adaptive_avg_pool2d(table, side).flatten(2).transpose(1, 2)


def align(student: SparseFormerOutput, target: Target, objective: Objective) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the objectives asked for, and its parts by name, unweighted and detached."""
    parts: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    if objective.pooled:
        parts["pooled"], weights["pooled"] = pooled_cosine(student, target), objective.pooled
    if objective.tokens:
        parts["tokens"], weights["tokens"] = anchored_tokens(student, target, objective.layer), objective.tokens
    if not parts:
        raise ValueError("All objectives have weight 0: there is nothing to match.")
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return total, {name: part.detach() for name, part in parts.items()}


def target_count(student: SparseFormerOutput) -> int:
    """The number of image tokens of an output."""
    assert student.token_rois is not None
    return student.token_rois[-1].shape[1]
