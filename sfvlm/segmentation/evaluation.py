"""How well models tell what each pixel shows: all of them on the same photos, beside what they cost.

    photos with masks -> views -> each candidate's scores (B, K, h, w) -> at the mask's own size -> Tally -> rows

A candidate is compared with the first one, the dense tower, or with the one it names. Every score is of the whole mask, at its own size.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..alternatives.costs import macs
from ..dense.maps import resized
from ..dense.masks import MaskedPhoto, MaskedPhotos, Misfit
from ..dense.metrics import Scores, Tally, kept, scores
from ..dense.windows import slide
from ..photos.folders import PassedOver
from ..util.results import Row
from .views import large_view, normalized, whole_view

Numbers = dict[str, float]
ROUNDS = 5


@dataclass(frozen=True)
class Candidate:
    """A model to be measured.

    Attributes:
        name: For people.
        pretrained: Where its weights come from.
        run: Pixels (B, 3, H, W) -> scores of the classes, or of their names, (B, T, h, w).
        config: Of its tower: `image_size`, `image_mean`, `image_std`, `resample`.
        decide: Scores at the mask's size (1, T, H, W) -> classes (1, H, W).
        cost: tokens, gmacs, milliseconds, and what else is known of it.
        against: The name of the candidate of whose mIoU its own is a share; None for the first one.
    """

    name: str
    pretrained: str
    run: Callable[[Tensor], Tensor]
    config: Any
    decide: Callable[[Tensor], Tensor] = field(default=lambda enlarged: enlarged.argmax(dim=1))
    cost: Numbers = field(default_factory=dict)
    against: str | None = None


class Windows(NamedTuple):
    """Photos seen in windows: their shorter side in pixels, and how far windows of the model's own size are apart."""

    shortest: int
    stride: int


class Evaluation(NamedTuple):
    """What was measured.

    Attributes:
        rows: One a candidate, as result files have them.
        tallies: Pixels of each candidate.
        skipped: {"key", "reason"} of each photo that could not be used.
        averaged: Which classes the mIoU averages.
    """

    rows: list[Row]
    tallies: dict[str, Tally]
    skipped: list[dict[str, str]]
    averaged: tuple[int, ...]


@torch.inference_mode()
def evaluate(
    candidates: Sequence[Candidate],
    photos: MaskedPhotos,
    class_names: Sequence[str],
    *,
    dataset: str = "photos",
    task: str = "segmentation",
    windows: Windows | None = None,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
    show: bool = True,
) -> Evaluation:
    """Measures all candidates on the same photos.

    Raises:
        ValueError: No photo can be used, or the masks have an index beyond the classes.
    """
    tallies = {candidate.name: Tally(len(class_names)) for candidate in candidates}
    passed, skipped = PassedOver(), []
    bar = tqdm(total=len(photos), desc=dataset, unit="photo", disable=not show)
    at_once = 1 if windows else batch_size
    for start in range(0, len(photos), at_once):
        indices = range(start, min(start + at_once, len(photos)))
        read = []
        for index in indices:
            try:
                read.append(photos[index])
            except Misfit as misfit:
                passed.add(misfit.kind, misfit.example)
                skipped.append({"key": misfit.key, "reason": f"{misfit.kind}: {misfit.why}"})
        seen: dict[tuple[Any, ...], Tensor] = {}  # several models see the same pixels
        for candidate in candidates if read else ():
            for found, one in zip(_scores(candidate, read, windows, seen, device), read, strict=True):
                classes = candidate.decide(resized(found[None].float(), one.mask.shape))
                tallies[candidate.name].add(classes[0].cpu().numpy(), one.mask)
        bar.update(len(indices))
    bar.close()
    if not len(tallies[candidates[0].name]):
        raise ValueError(f"No photo of {', '.join(photos.origins)} can be used. {passed.sentence('photos with masks')}")
    first = tallies[candidates[0].name]
    rows = [
        _row(each, tallies[each.name], tallies.get(each.against or "", first), class_names, dataset, task, len(skipped))
        for each in candidates
    ]
    return Evaluation(rows, tallies, skipped, scores(first, resamples=1).averaged)


def _scores(
    candidate: Candidate,
    photos: Sequence[MaskedPhoto],
    windows: Windows | None,
    seen: dict[tuple[Any, ...], Tensor],
    device: str | torch.device,
) -> Tensor:
    """(B, T, h, w) of a batch of photos; of one photo where there are windows."""
    config = candidate.config
    key = (config.image_size, tuple(config.image_mean), tuple(config.image_std), config.resample)
    if key not in seen:
        if windows is None:
            views = [whole_view(photo.image, config) for photo in photos]
        else:
            views = [large_view(photo.image, config, max(windows.shortest, config.image_size)) for photo in photos]
        seen[key] = normalized(torch.stack(views).to(device), config)
    if windows is None:
        return candidate.run(seen[key])
    return slide(candidate.run, seen[key], config.image_size, windows.stride)


def _row(
    candidate: Candidate, tally: Tally, first: Tally, class_names: Sequence[str], dataset: str, task: str, skipped: int
) -> Row:
    found, against = scores(tally), kept(tally, first)
    metrics: dict[str, Any] = {**found.miou.metrics("miou"), "miou_of_named": found.miou_of_named}
    metrics |= {"mean_accuracy": found.mean_accuracy, "accuracy": found.accuracy}
    if against.ratio is not None:
        metrics |= against.ratio.metrics("kept")
    metrics |= {**candidate.cost, "photos": len(tally), "skipped": skipped, "classes_averaged": len(found.averaged)}
    metrics |= {"iou": of_classes(found, class_names)}
    return {
        "dataset": dataset,
        "model": candidate.name,
        "pretrained": candidate.pretrained,
        "task": task,
        "metrics": metrics,
        "language": "en",
    }


def of_classes(found: Scores, class_names: Sequence[str]) -> dict[str, float | None]:
    """The IoU of each class by name; null of one that occurs neither in masks nor in maps."""
    named = zip(class_names, found.iou.tolist(), strict=True)
    return {f"{number} {name}": None if iou != iou else iou for number, (name, iou) in enumerate(named)}


def ahead(evaluation: Evaluation, ours: str, theirs: str) -> tuple[float, float, float]:
    """By how much mIoU one candidate is ahead of another, and the 95 % interval of that over photos."""
    difference = kept(evaluation.tallies[ours], evaluation.tallies[theirs]).difference
    return difference.value, difference.low, difference.high


def costs(models: Mapping[str, nn.Module], image_size: int, rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Of each model, a photo of that side: `gmacs`, and `milliseconds` at batch 1, the median of some rounds.

    The models take turns, so that what else the machine does meets all of them. Enlarging to pixels is not in it: it is the same for all.
    """
    found = {name: {"gmacs": macs(model, image_size) / 1e9} for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, model in models.items():
                parameter = next(model.parameters())
                pixels = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
                before = time.perf_counter()
                model(pixels)
                if parameter.device.type == "cuda":
                    torch.cuda.synchronize(parameter.device)
                if number:  # the first one warms up
                    seconds[name].append(time.perf_counter() - before)
    for name, each in seconds.items():
        found[name]["milliseconds"] = 1000 * statistics.median(each)
    return found
