"""The order in which training sees photos with masks: batches that depend on (seed, step) alone."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..dense.masks import MaskedPhotos, Misfit
from ..photos.batches import EpochSampler
from .options import SegmentationOptions
from .views import MaskedView, training_view


class Batch(NamedTuple):
    """Views of a step.

    Attributes:
        pixels: (B, 3, S, S) uint8.
        labels: (B, L, L) int64.
        names: Which photo and which of its views each is: within a run, they name the pixels.
        skipped: {"key", "reason"} of photos in whose place others came.
    """

    pixels: Tensor
    labels: Tensor
    names: list[tuple[int, int]]
    skipped: list[dict[str, str]]


class MaskedViews(Dataset[tuple[MaskedView, tuple[int, int], list[dict[str, str]]]]):
    """Views of photos with masks by (epoch, index). In place of a photo that cannot be read comes the next one that can."""

    def __init__(self, photos: MaskedPhotos, config: Any, options: SegmentationOptions) -> None:
        self.photos, self.config, self.options = photos, config, options

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, item: tuple[int, int]) -> tuple[MaskedView, tuple[int, int], list[dict[str, str]]]:
        (epoch, index), options = item, self.options
        view = epoch % options.cached_views if options.caches else epoch
        skipped: list[dict[str, str]] = []
        for step in range(len(self.photos)):
            used = (index + step) % len(self.photos)
            try:
                photo = self.photos[used]
            except Misfit as misfit:
                skipped.append({"key": misfit.key, "reason": f"{misfit.kind}: {misfit.why}"})
                continue
            generator = random.Random(f"{options.seed} {view} {used}")
            seen = training_view(
                photo.image,
                photo.mask,
                self.config,
                generator,
                label_side=options.label_side,
                scale=(options.smallest_crop, 1.0),
                flip=options.flip,
                colour=options.colour,
                whole=options.whole,
            )
            return seen, (used, view), skipped
        raise ValueError(
            f"None of the {len(self.photos)} photos can be read; {skipped[-1]['key']}: {skipped[-1]['reason']}."
        )


def batches(photos: MaskedPhotos, config: Any, options: SegmentationOptions, start: int) -> Iterator[Batch]:
    """Batches without end, from the step `start` on."""
    sampler = EpochSampler(len(photos), options.batch_size, options.seed, start_step=start)
    loader = DataLoader(
        MaskedViews(photos, config, options),
        batch_sampler=sampler,  # type: ignore[arg-type]
        collate_fn=_joined,
        num_workers=options.workers,
    )
    return iter(loader)


def _joined(items: Sequence[tuple[MaskedView, tuple[int, int], list[dict[str, str]]]]) -> Batch:
    return Batch(
        torch.stack([view.pixels for view, _, _ in items]),
        torch.stack([view.labels for view, _, _ in items]),
        [name for _, name, _ in items],
        [skip for _, _, skips in items for skip in skips],
    )
