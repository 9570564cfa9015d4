"""The views of photos that a model sees: for training crops by chance, else what its preprocessor makes; and photos of none.

photo -> training_view | evaluation_view -> (3, S, S) uint8 -> normalize -> what the model reads
      -> tower_view, as a tower of a configuration sees it; padded, as LLaVA-1.5 does first
      -> shown, or unreadable where it is next to a line
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .decode import Photo, UnreadablePhoto, to_rgb
from .sources import SomePhotos

# Of what hosts are shown: they make the shorter side as long as their views, or pad to a square, and of a hair line that is a
# picture of gigabytes. So what counts is not how thin a photo is, but how many pixels it has by then.
MAX_SIDE = 20_000
VIEW = 384  # the greatest side of the views of LLaVA's usual towers, CLIP's and SigLIP's
MAX_PIXELS = 100_000_000  # in memory as float32 of three channels: 1.2 GB
MAX_RATIO = MAX_PIXELS // VIEW**2


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
    box = random_box(image.width, image.height, generator, scale, ratio)
    # Crop and resize in one: no copy of the crop, and large photos are first reduced by a whole
    # factor, which stays within a level of the exact filter at this gap.
    view = image.resize((image_size, image_size), interpolation, box=box, reducing_gap=3.0)
    if flip and generator.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return to_tensor(view)


def random_box(
    width: int,
    height: int,
    generator: random.Random,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """A box of a photo (left, top, right, bottom) in pixels, by the rule of torchvision's RandomResizedCrop: ten tries, then the centre."""
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
    return to_tensor(image.crop((left, top, left + image_size, top + image_size)))


def check_crop(crop_pct: float) -> None:
    """Raises ValueError if there is no such crop."""
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct is {crop_pct}, but a crop is more than 0 and at most 1.")


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB image as (3, H, W) uint8."""
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


def too_long(image: Image.Image, max_ratio: int = MAX_RATIO) -> str | None:
    """Why a photo cannot be shown, or None where it can: its longer side is at most so many times the other one."""
    if max(image.size) <= min(MAX_SIDE, max_ratio * min(image.size)):
        return None
    return (
        f"has {image.width} x {image.height} pixels, and at most {MAX_SIDE} a side and {max_ratio} times as many as on the other "
        "one can be read: cut out a part of it"
    )


def shown(photo: Photo) -> Photo:
    """The photo itself.

    Raises:
        UnreadablePhoto: It is too long for its width.
    """
    why = too_long(photo.image)
    if why is not None:
        raise UnreadablePhoto(photo.key, f"it {why}")
    return photo


@dataclass(frozen=True)
class ShowablePhotos:
    """Photos of which those that cannot be shown count as unreadable."""

    photos: SomePhotos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Photo:
        return shown(self.photos[index])

    def key(self, index: int) -> str:
        return self.photos.key(index)
