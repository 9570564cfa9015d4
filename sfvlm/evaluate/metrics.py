"""Metrics of classification and retrieval, and how near a model stays to its teacher: tensors to numbers by name.

Names are those of CLIP_benchmark; all metrics are shares from 0 to 1.
Shapes: N photos, T texts, K classes, E width of the shared space.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..util.results import RECALLS

Numbers = dict[str, float]


@dataclass(frozen=True)
class Encoded:
    """What a model says of the photos that can be read, in their order."""

    pooled: Tensor  # (N, E) float32, not normalised
    logits: Tensor | None  # (N, K) of the model's own classifier
    index: Tensor  # (N,) of each photo among all
    labels: tuple[int | None, ...]
    captions: tuple[tuple[str, ...], ...]
    skipped: tuple[dict[str, str], ...]  # {"key", "reason"} of each broken photo
    unread: tuple[
        dict[str, str], ...
    ] = ()  # {"key", "label" or "captions": reason} of each whose label or captions are damaged


def classification_metrics(scores: Tensor, labels: Tensor) -> Numbers:
    """Scores (N, K), labels (N,) -> `acc1`, `acc5` (from 5 classes), `mean_per_class_recall` over classes present."""
    hits = scores.argmax(dim=-1) == labels
    numbers = {"acc1": hits.double().mean().item()}
    if scores.shape[-1] >= 5:
        numbers["acc5"] = topk_accuracy(scores, labels, 5)
    size = int(labels.max()) + 1
    count, right = torch.bincount(labels, minlength=size), torch.bincount(labels[hits], minlength=size)
    return numbers | {"mean_per_class_recall": (right[count > 0].double() / count[count > 0]).mean().item()}


def topk_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of photos whose label is among the k best classes: (N, K), (N,)."""
    return (scores.topk(k, dim=-1).indices == labels[:, None]).any(-1).double().mean().item()


def confidence_interval(hits: Tensor, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of N yes-or-no outcomes."""
    count, mean = len(hits), hits.double().mean().item()
    # Drawing N of N outcomes with replacement and counting the yeses is drawing from this distribution.
    means = np.random.default_rng(seed).binomial(count, mean, size=resamples) / count
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def retrieval_metrics(
    images: Tensor, texts: Tensor, owner: Tensor, ks: Iterable[int] = RECALLS, chunk: int = 1024
) -> Numbers:
    """Share of queries with one of their own among the k nearest; a k larger than the candidates is left out.

    Args:
        images: (N, E); one without a text of its own counts as a miss.
        texts: (T, E).
        owner: (T,) the image each text belongs to.
        ks: The k of `image_retrieval_recall@k` (texts ask for images) and `text_retrieval_recall@k` (images for texts).
        chunk: Queries scored at once.
    """
    ks = tuple(ks)
    asked = {
        "image": (texts, images, lambda found, start: found == owner[start : start + len(found), None]),
        "text": (images, texts, lambda found, start: owner[found] == torch.arange(start, start + len(found))[:, None]),
    }
    numbers: Numbers = {}
    for what, (queries, candidates, is_own) in asked.items():
        fitting = [k for k in ks if k <= len(candidates)]
        hits = [
            is_own(found, number * chunk)  # (chunk, k)
            for number, found in enumerate(nearest(queries, candidates, max(fitting, default=1), chunk))
        ]
        own = torch.cat(hits)
        numbers |= {f"{what}_retrieval_recall@{k}": own[:, :k].any(-1).double().mean().item() for k in fitting}
    return numbers


def nearest(queries: Tensor, candidates: Tensor, k: int, chunk: int = 1024) -> list[Tensor]:
    """The k candidates of highest cosine, a chunk of queries at a time: (Q, E), (C, E) -> several (chunk, k)."""
    unit = F.normalize(candidates, dim=-1).T
    return [(F.normalize(part, dim=-1) @ unit).topk(k, dim=-1).indices for part in queries.split(chunk)]


def fidelity(student: Encoded, teacher: Encoded, choices: tuple[Tensor, Tensor] | None) -> Numbers:
    """Mean `cosine` of the pooled vectors, and `agreement`: the share of equal first choices (N,), if there are any.

    Raises:
        ValueError: The two were not made from the same photos, or live in spaces of different widths.
    """
    if not torch.equal(student.index, teacher.index):
        raise ValueError(
            f"A model read {len(student.index)} photos, its teacher {len(teacher.index)}: did they change meanwhile?"
        )
    if student.pooled.shape != teacher.pooled.shape:
        raise ValueError(
            f"The model's pooled vectors have {student.pooled.shape[1]} features, its teacher's "
            f"{teacher.pooled.shape[1]}: it was made from another teacher."
        )
    numbers = {"cosine": F.cosine_similarity(student.pooled, teacher.pooled, dim=-1).mean().item()}
    if choices is not None:
        numbers["agreement"] = (choices[0] == choices[1]).double().mean().item()
    return numbers
