"""The views of photos that a model sees, and the order it sees them in.

`ViewDataset`, `EpochSampler` and `collate_views` make training batches that depend on (seed, step)
alone, whatever the number of workers, ranks or restarts.
"""

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from .decode import Photo, UnreadablePhoto, to_rgb
from .sources import SomePhotos


def training_view(
    image: Image.Image,
    image_size: int,
    generator: random.Random,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
    interpolation: Image.Resampling = Image.Resampling.BICUBIC,
) -> torch.Tensor:  # (3, S, S) uint8
    """A random crop of `scale` of the area, resized, and flipped half of the time."""
    image = to_rgb(image)
    box = _random_box(image.width, image.height, generator, scale, ratio)
    # Crop and resize in one: no copy of the crop, and large photos are first reduced by a whole
    # factor, which stays within a level of the exact filter at this gap.
    view = image.resize((image_size, image_size), interpolation, box=box, reducing_gap=3.0)
    if flip and generator.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _to_tensor(view)


def _random_box(
    width: int,
    height: int,
    generator: random.Random,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """The sampling rule of torchvision's RandomResizedCrop: ten tries, then the centre."""
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = generator.randint(0, width - box_width)
            top = generator.randint(0, height - box_height)
            return left, top, left + box_width, top + box_height
    box_width = min(width, max(1, round(height * ratio[1])))
    box_height = min(height, max(1, round(width / ratio[0])))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def evaluation_view(
    image: Image.Image,
    image_size: int,
    crop_pct: float = 1.0,
    interpolation: Image.Resampling = Image.Resampling.BICUBIC,
    *,
    squash: bool = False,
    rounding: str = "even",
) -> torch.Tensor:  # (3, S, S) uint8
    """Shortest side, or with `squash` both sides, to `image_size / crop_pct`, then the centre.

    An odd number of pixels left over puts the centre half a pixel off: `rounding` is `"even"` as in torchvision, or `"down"` as in
    transformers.
    """
    check_crop(crop_pct)
    image = to_rgb(image)
    longest = 16 * min(image.size)
    if max(image.size) > longest and not squash:
        # The middle of a strip is enough; resized whole, a hair line is a picture of gigabytes.
        width, height = min(image.width, longest), min(image.height, longest)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    shortest, side = min(image.size), round(image_size / crop_pct)
    # Truncated, because both libraries do so.
    width, height = (side, side) if squash else (int(side * length / shortest) for length in image.size)
    rounded = {"even": round, "down": int}[rounding]
    left, top = rounded((width - image_size) / 2), rounded((height - image_size) / 2)
    image = image.resize((width, height), interpolation)
    return _to_tensor(image.crop((left, top, left + image_size, top + image_size)))


def check_crop(crop_pct: float) -> None:
    """Raises ValueError if there is no such crop."""
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct is {crop_pct}, but a crop is more than 0 and at most 1.")


def _to_tensor(image: Image.Image) -> torch.Tensor:
    # Transposed by numpy: torch would start threads for it, which on a busy machine takes longer
    # than the decoding.
    return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))


def normalize(
    pixels: torch.Tensor,  # (B, 3, H, W) uint8
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:  # (B, 3, H, W) float32
    """Bytes to what the model reads, on the device the pixels are on."""
    channels = (3, 1, 1)
    offset = torch.tensor(mean, dtype=torch.float32, device=pixels.device).view(channels)
    divisor = torch.tensor(std, dtype=torch.float32, device=pixels.device).view(channels)
    return pixels.float().div_(255).sub_(offset).div_(divisor)


def tower_view(image: Image.Image, config: Any) -> torch.Tensor:  # (3, S, S) uint8
    """A photo as a tower of this configuration sees it, and as the preprocessor beside its weights makes it."""
    return evaluation_view(image, config.image_size, **view_settings(config))


def view_settings(config: Any) -> dict[str, Any]:
    """What `evaluation_view` takes beside the size, for a tower of this configuration; one of no SparseFormer may say no more than
    whether it squashes."""
    return {
        "squash": config.squashes,
        "crop_pct": getattr(config, "crop_pct", 1.0),
        "interpolation": Image.Resampling[getattr(config, "resample", "bicubic").upper()],
        "rounding": getattr(config, "crop_rounding", "down"),
    }


def tower_pixels(images: Sequence[Image.Image], config: Any, like: torch.Tensor) -> torch.Tensor:
    """The same of several, normalised, in type and place like a tensor: -> (B, 3, S, S)."""
    pixels = torch.stack([tower_view(image, config) for image in images]).to(like.device)
    return normalize(pixels, config.image_mean, config.image_std).to(like.dtype)


def padded(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """A photo in the middle of a square of the mean colour, as LLaVA-1.5 pads it (`expand2square`)."""
    image, side = to_rgb(image), max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * each) for each in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


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
        photos: SomePhotos,
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
