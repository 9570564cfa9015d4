"""What the student is asked to match: one function an objective, of (student output, teacher output). No labels anywhere.

A token target must be anchored to fixed places of the photo. Sampled at the student's own moving boxes it collapses within
hundreds of steps: boxes grow to ten times the photo, where the repeated border makes all tokens alike and the loss
looks perfect. Where boxes are chosen among the teacher's patches, without a gradient, each token is held to its patch.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoder.roi import even_cells
from ..encoder.sparseformer import SparseFormerOutput
from ..hosts.reader import HostReader, Texts
from ..util.choices import Anchor
from .objective import Objective


@dataclass(frozen=True)
class Target:
    """What the teacher said of a batch, and what a host said of that; each only where an objective asks for it."""

    pooled: Tensor  # (B, E)
    tokens: Tensor | None = None  # (B, patches, D) at the layer asked for, without the class token
    projected: Tensor | None = None  # (B, patches, W) of the host's projector
    texts: Texts | None = None  # what the host was asked and answered
    logits: Tensor | None = None  # (M, V) at each of its words
    saliency: Tensor | None = None  # (B, patches) shares of what counts
    dense: Tensor | None = None  # (B, D, h, w) the map behind its last norm, in the units of a guide


def for_host(asked: Objective, layer: int) -> Objective:
    """What is matched for a host, where nothing is asked of it: its tokens in front of the projector and behind it, and its
    answers; and a pooled vector if asked for.

    Args:
        asked: What was asked for besides.
        layer: The deepest that the host reads, counted from the end.
    """
    pooled = 0.0 if asked.pooled == Objective().pooled else asked.pooled
    tokens = {} if asked.tokens else {"tokens": 1.0, "layer": layer}
    return replace(asked, pooled=pooled, projected=1.0, answers=1.0, **tokens)


def pooled_cosine(student: SparseFormerOutput, target: Target) -> Tensor:
    """One minus the cosine of the pooled vectors, the paper's final token representation: -> scalar in 0 ... 2."""
    assert student.pooler_output is not None
    return (1 - F.cosine_similarity(student.pooler_output.float(), target.pooled.float(), dim=-1)).mean()


def anchored_tokens(student: SparseFormerOutput, target: Target, layer: int, anchor: Anchor = "average") -> Tensor:
    """Mean squared error of normalised tokens against the teacher's in each token's starting cell: -> scalar.

    Tokens are standardised over their features first, so that the handful of features with huge values which vision
    transformers carry does not drown the rest. The cells tile the photo and never move, whatever the boxes do.
    """
    assert student.hidden_states is not None and target.tokens is not None
    count = target_count(student)
    tokens = student.hidden_states[layer][:, -count:]
    anchors = anchor_targets(target.tokens, count, anchor, student.cells)
    width = tokens.shape[-1:]
    return F.mse_loss(F.layer_norm(tokens.float(), width), F.layer_norm(anchors.float(), width))


def anchor_targets(
    teacher_tokens: Tensor, count: int, anchor: Anchor = "average", cells: Tensor | None = None
) -> Tensor:
    """The teacher's patch tokens on a fixed square grid of cells: (B, patches, D) -> (B, count, D).

    Args:
        teacher_tokens: Row by row.
        count: How many are wanted.
        anchor: What stands for a cell of several patches.
        cells: (B, count) the patches themselves, where they are chosen; no grid then.

    Raises:
        ValueError: The budget is not a square number, so that there is no grid of cells.
    """
    if cells is not None:
        return teacher_tokens.gather(1, cells[..., None].expand(-1, -1, teacher_tokens.shape[-1]))
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"Token targets need a square budget; {count} is none: try {side**2} or {(side + 1) ** 2}.")
    grid = math.isqrt(teacher_tokens.shape[1])
    if anchor == "nearest":
        return teacher_tokens[:, even_cells(side, grid, grid, teacher_tokens.device)]
    table = teacher_tokens.transpose(1, 2).unflatten(2, (grid, grid))
    return F.adaptive_avg_pool2d(table, side).flatten(2).transpose(1, 2)


def projected_tokens(seen: Tensor, target: Target, anchor: Anchor = "average", cells: Tensor | None = None) -> Tensor:
    """Mean squared error of what the language model sees, in units of its variance over the teacher's tokens: -> scalar.

    Args:
        seen: (B, [1 +] N, W) the student's tokens behind the host's projector.
        target: With `projected`, (B, [1 +] patches, W).
        anchor: What each token is held to; a class token to its own.
        cells: (B, N) the teacher's patch of each, where they are chosen.
    """
    assert target.projected is not None
    theirs, ours = target.projected.float(), seen.float()
    extra = theirs.shape[1] - math.isqrt(theirs.shape[1]) ** 2  # the class token, where the host reads it
    places = anchor_targets(theirs[:, extra:], ours.shape[1] - extra, anchor, cells)
    anchors = torch.cat([theirs[:, :extra], places], dim=1)
    spread = (theirs - theirs.mean(dim=(0, 1))).square().mean()
    return F.mse_loss(ours, anchors) / spread


def answer_divergence(logits: Tensor, target: Target) -> Tensor:
    """How far the host's words are from those it would say of the dense tokens: -> scalar, in nats a word.

    The Kullback-Leibler divergence of the next-token distribution at each word of its own answers, from the dense one,
    (M, V); averaged over an answer's words, then over answers.
    """
    assert target.logits is not None and target.texts is not None
    weight = target.texts.weight
    return (word_divergence(logits, target.logits) * weight).sum() / weight.sum()


def word_divergence(logits: Tensor, dense_logits: Tensor) -> Tensor:
    """The Kullback-Leibler divergence at each word, in nats: (M, V), (M, V) -> (M,)."""
    ours, theirs = F.log_softmax(logits.float(), dim=-1), F.log_softmax(dense_logits.float(), dim=-1)
    return (theirs.exp() * (theirs - ours)).sum(dim=-1)


def saliency_error(guess: Tensor, target: Target) -> Tensor:
    """Mean squared error of a guess of what counts, (B, patches), as logarithms but for a constant: -> scalar.

    What counts is which patches come first, not how far ahead: a divergence of the shares themselves would be spent on the
    few patches that have most of them. (On 160 photos and scenes, of the 49 patches with most attention a guess by this
    error had 62 %, one by the divergence 52 %.)
    """
    assert target.saliency is not None
    truth, ours = target.saliency.float().clamp(min=1e-9).log(), guess.float()
    return F.mse_loss(ours - ours.mean(dim=-1, keepdim=True), truth - truth.mean(dim=-1, keepdim=True))


def dense_error(student: SparseFormerOutput, target: Target) -> Tensor:
    """Mean squared error of a guide's map, in units of each feature's spread over photos: -> scalar, 1 for the same everywhere."""
    assert student.dense_map is not None and target.dense is not None
    return F.mse_loss(student.dense_map.float(), target.dense.float())


def align(
    student: SparseFormerOutput, target: Target, objective: Objective, host: HostReader | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the objectives asked for, and its parts by name, unweighted and detached.

    Raises:
        ValueError: All weights are 0, or there is no host for what needs one.
    """
    parts: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    if objective.pooled:
        parts["pooled"], weights["pooled"] = pooled_cosine(student, target), objective.pooled
    if objective.tokens:
        parts["tokens"] = anchored_tokens(student, target, objective.layer, objective.anchor)
        weights["tokens"] = objective.tokens
    if objective.needs_host:
        if host is None:
            raise ValueError("The objectives projected and answers need a host: give --host.")
        seen = host.project(selected(student, host))
        if objective.projected:
            parts["projected"] = projected_tokens(seen, target, objective.anchor, student.cells)
            weights["projected"] = objective.projected
        if objective.answers:
            assert target.texts is not None
            parts["answers"] = answer_divergence(host.next_token_logits(seen, target.texts), target)
            weights["answers"] = objective.answers
    if objective.saliency and student.saliency is not None:
        parts["saliency"] = saliency_error(student.saliency, target)
        weights["saliency"] = objective.saliency
    if objective.dense:
        parts["dense"], weights["dense"] = dense_error(student, target), objective.dense
    if not parts:
        raise ValueError("All objectives have weight 0: there is nothing to match.")
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return total, {name: part.detach() for name, part in parts.items()}


def selected(student: SparseFormerOutput, host: HostReader) -> Tensor:
    """The student's tokens that a host reads: -> (B, [1 +] N, D x layers)."""
    assert student.hidden_states is not None
    return host.select(student.hidden_states, student.hidden_states[0].shape[1] - target_count(student))


def target_count(student: SparseFormerOutput) -> int:
    """The number of image tokens of an output."""
    assert student.token_rois is not None
    return student.token_rois[-1].shape[1]
