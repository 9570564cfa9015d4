"""Which photos a run learns from, which it is measured on, and which stay out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..photos.batches import Selection
from ..photos.decode import UnreadablePhoto
from ..photos.sources import Photos, named, names_hash
from ..photos.views import ShowablePhotos
from ..util.subsets import spread
from ..vqa.photos import COMPARED, photo_fingerprint
from .options import BootstrapOptions


@dataclass(frozen=True)
class RunPhotos:
    """The photos of one run, by purpose."""

    origins: tuple[str, ...]
    training: Selection
    held_back: Selection
    left_out: int
    passed_over: Mapping[str, int]  # files of the sources that are no photos, by kind
    trained: Mapping[str, Any]  # by what the training photos are known
    fingerprint: Mapping[str, Any]  # by what all are known: a resumed run must have the same ones
    remarks: tuple[str, ...] = ()  # what a person should be told, a sentence each

    def counts(self) -> dict[str, Any]:
        """What a finished model says of them."""
        training, held_back = {*self.training.indices.tolist()}, {*self.held_back.indices.tolist()}
        return {
            "photos": list(self.origins),
            "photos_read": len(training | held_back),
            "photos_left_out": self.left_out,
            "files_passed_over": dict(self.passed_over),
            "photos_held_back": len(held_back - training),
        }


def split_photos(photos: Photos, options: BootstrapOptions, *, for_host: bool = False) -> RunPhotos:
    """Training photos and held-back ones, without those left out, by a permutation of the seed.

    With `for_host`, those that no host can be shown count as unreadable.

    Raises:
        ValueError: No photo is left, or none of one part can be read.
    """
    remarks: list[str] = []
    left_out = named(photos, options.leave_out, remarks) if options.leave_out else set()
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(options.seed)).tolist()
    order = [index for index in order if index not in left_out]
    if options.most_photos:
        order = order[: options.most_photos]
    if not order:
        raise ValueError(f"{options.leave_out} names all {len(photos)} photos: none is left to train on.")
    count = min(options.held_back, len(order) // 10)
    held_back = order[:count] or order[:1]  # with fewer than ten photos, the evaluation looks at a trained one
    usable = ShowablePhotos(photos) if for_host else photos
    training, measured = Selection(usable, sorted(order[count:])), Selection(usable, sorted(held_back))
    _check_readable(training, "to train on")
    _check_readable(measured, "to evaluate on")
    trained = {"photos": len(training), "photo_names": names_hash(training), "photo_samples": _samples(training)}
    fingerprint = trained | {"held_back_names": names_hash(measured)}
    passed_over = photos.passed_over.counts
    return RunPhotos(
        photos.origins, training, measured, len(left_out), passed_over, trained, fingerprint, tuple(remarks)
    )


def _check_readable(photos: Selection, purpose: str) -> None:
    """Reads photos until one can be read; ValueError if none can, with the reason of the first."""
    first: UnreadablePhoto | None = None
    for index in range(len(photos)):
        try:
            _ = photos[index]
            return
        except UnreadablePhoto as error:
            first = first or error
    assert first is not None
    raise ValueError(
        f"Of the {len(photos)} photos {purpose} none can be read, {first.key} among them ({first.reason}): repair or "
        "remove them."
    )


def _samples(photos: Selection) -> str:
    """The fingerprints of a few photos, spread evenly: names alone do not tell other photos of the same names apart."""
    fingerprints = []
    for index in spread(len(photos), COMPARED):
        try:
            fingerprints.append(photo_fingerprint(photos[index].image))
        except UnreadablePhoto:
            fingerprints.append("unreadable")
    return " ".join(fingerprints)
