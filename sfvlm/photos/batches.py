"""The order that a model sees photos in: training batches that depend on (seed, step) alone.

    photos -> Selection -> ViewDataset: a view by (epoch, index) --+
                           EpochSampler: which of them, by step ---+-> view_loader -> ViewBatch

Whatever the number of workers, ranks or restarts, they are the same.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from .decode import Photo, UnreadablePhoto
from .sources import Photos, SomePhotos
from .views import evaluation_view, padded, training_view


class Selection(Dataset[Photo]):
    """Some of the photos, by index: training ones without the held-back ones."""

    def __init__(self, photos: SomePhotos, indices: Sequence[int]) -> None:
        self.photos = photos
        self.indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        return self.photos.key(int(self.indices[index]))

    def __getitem__(self, index: int) -> Photo:
        return self.photos[int(self.indices[index])]


class View(TypedDict):
    """What `ViewDataset` gives. Within one dataset, (index, view) names the pixels, as for a cache."""

    pixels: torch.Tensor  # (3, S, S) uint8
    index: int  # of the photo used
    view: int  # which of its views: the epoch, or epoch % num_views
    skipped: list[dict[str, str]]  # {"key", "reason"} of each photo passed over on the way to it


class ViewBatch(TypedDict):
    pixels: torch.Tensor  # (B, 3, S, S) uint8
    index: torch.Tensor  # (B,) int64
    view: torch.Tensor  # (B,) int64
    skipped: list[dict[str, str]]


class ViewDataset(Dataset[View]):
    """Views of photos by (epoch, index), as `EpochSampler` asks for them.

    The augmentation depends on (seed, epoch, index of the photo used) alone. With `num_views` the
    epoch counts modulo that, so that the views repeat and what a teacher says of them can be cached.
    In place of a photo that cannot be read comes the next one that can; `index` says which.
    """

    def __init__(
        self,
        photos: Photos | Selection,
        image_size: int,
        *,
        training: bool,
        seed: int,
        num_views: int | None = None,
        scale: tuple[float, float] = (0.5, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
        crop_pct: float = 1.0,
        interpolation: Image.Resampling = Image.Resampling.BICUBIC,
        squash: bool = False,
        rounding: str = "even",
        pad: Sequence[float] | None = None,  # the mean colour, 0 to 1, that makes a photo square first
    ) -> None:
        if num_views is not None and num_views < 1:
            raise ValueError(f"num_views is {num_views}, but a photo has at least 1 view.")
        self.photos = photos
        self.image_size = image_size
        self.training = training
        self.seed = seed
        self.num_views = num_views
        self.scale = scale
        self.ratio = ratio
        self.flip = flip
        self.crop_pct = crop_pct
        self.interpolation = interpolation
        self.squash = squash
        self.rounding = rounding
        self.pad = pad

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, item: tuple[int, int]) -> View:
        epoch, index = item
        view = epoch if self.num_views is None else epoch % self.num_views
        skipped: list[dict[str, str]] = []
        for step in range(len(self.photos)):
            used = (index + step) % len(self.photos)
            try:
                image = self.photos[used].image
            except UnreadablePhoto as error:
                skipped.append({"key": error.key, "reason": error.reason})
                continue
            # Seeded by the photo used, not the one asked for: a cache may keep this view as its own.
            pixels = self._view(image, random.Random(f"{self.seed} {view} {used}"))
            return {"pixels": pixels, "index": used, "view": view, "skipped": skipped}
        last = skipped[-1]
        raise ValueError(f"None of the {len(self.photos)} photos is readable; {last['key']}: {last['reason']}.")

    def _view(self, image: Image.Image, generator: random.Random) -> torch.Tensor:
        if self.pad is not None:
            image = padded(image, self.pad)
        if not self.training:
            return evaluation_view(
                image, self.image_size, self.crop_pct, self.interpolation, squash=self.squash, rounding=self.rounding
            )
        return training_view(
            image,
            self.image_size,
            generator,
            scale=self.scale,
            ratio=self.ratio,
            flip=self.flip,
            interpolation=self.interpolation,
        )


def collate_views(views: Sequence[View]) -> ViewBatch:
    return {
        "pixels": torch.stack([view["pixels"] for view in views]),
        "index": torch.tensor([view["index"] for view in views]),
        "view": torch.tensor([view["view"] for view in views]),
        "skipped": [skip for view in views for skip in view["skipped"]],
    }


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (epoch, index), for `DataLoader(batch_sampler=...)`.

    The permutations of all epochs stand one after the other, and step s takes the s-th slice of
    `batch_size * world_size`; rank r takes its r-th part. So no photo is dropped, every step is
    known without the steps before it, and the number of ranks changes nothing but who does what.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> None:
        if length < 1 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"There are no batches for length={length}, batch_size={batch_size}, "
                f"rank={rank}, world_size={world_size}: photos and batch size start at 1, "
                "and ranks count from 0 to world_size - 1."
            )
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_step = start_step
        self._permutations: dict[int, np.ndarray] = {}  # the epoch in use

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.batch, itertools.count(self.start_step))

    def batch(self, step: int) -> list[tuple[int, int]]:
        """This rank's part of the global batch of a step."""
        start = (step * self.world_size + self.rank) * self.batch_size
        positions = (divmod(start + place, self.length) for place in range(self.batch_size))
        return [(epoch, int(self._permutation(epoch)[place])) for epoch, place in positions]

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            # Hashed, so that neither neighbouring seeds nor neighbouring epochs share an order.
            digest = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
            order = torch.randperm(self.length, generator=generator)
            self._permutations = {epoch: order.numpy()}
        return self._permutations[epoch]


def view_loader(
    views: ViewDataset, sampler: EpochSampler, workers: int, *, pin_memory: bool = False
) -> DataLoader[ViewBatch]:
    """Training batches without end, made by so many processes beside this one, or by this one."""
    return DataLoader(
        views,  # type: ignore[arg-type]
        batch_sampler=sampler,
        collate_fn=collate_views,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )


def shard_indices(length: int, rank: int, world_size: int) -> range:
    """The indices that are this rank's in an evaluation: every one once, none padded."""
    return range(rank, length, world_size)


class SkipLog:
    """Unreadable photos, each once, in a file of JSON lines that a resumed run continues.

    One process writes it: with several ranks, gather the skips first.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._keys: set[str] = set()
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8")
        for line in text.splitlines():
            try:
                self._keys.add(json.loads(line)["key"])
            except json.JSONDecodeError:  # the line an interrupted run left unfinished
                continue
        if text and not text.endswith("\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")

    @property
    def count(self) -> int:
        return len(self._keys)

    def add(self, skipped: Iterable[Mapping[str, str]]) -> int:
        """Appends what is new, and returns how many that were."""
        new = {skip["key"]: skip["reason"] for skip in skipped if skip["key"] not in self._keys}
        if new:
            with self.path.open("a", encoding="utf-8") as file:
                for key, reason in new.items():
                    file.write(json.dumps({"key": key, "reason": reason}) + "\n")
        self._keys.update(new)
        return len(new)
