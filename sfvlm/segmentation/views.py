"""What a model sees of a photo with a mask: for scores the whole of both, for training a crop of both by chance.

Photos are resized by a filter, masks by the nearest pixel: between class 3 and class 5 lies no class 4.
"""

import random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from ..dense.masks import Mask
from ..dense.metrics import IGNORED
from ..photos.views import evaluation_view, normalize, random_box, to_tensor


class MaskedView(NamedTuple):
    """What a model sees.

    Attributes:
        pixels: (3, S, S) uint8.
        labels: (L, L) int64, L <= S.
    """

    pixels: Tensor
    labels: Tensor


def whole_view(image: Image.Image, config: Any) -> Tensor:  # (3, S, S) uint8
    """The whole photo, squashed to the square of a tower's configuration: no pixel of a mask is left out."""
    filtering = Image.Resampling[config.resample.upper()]
    return evaluation_view(image, config.image_size, 1.0, filtering, squash=True)


def large_view(image: Image.Image, config: Any, shortest: int) -> Tensor:  # (3, H, W) uint8
    """The whole photo in its own aspect ratio, for windows."""
    scale = shortest / min(image.size)
    size = tuple(max(shortest, round(scale * length)) for length in image.size)
    return to_tensor(image.convert("RGB").resize(size, Image.Resampling[config.resample.upper()]))  # type: ignore[arg-type]


def training_view(
    image: Image.Image,
    mask: Mask,
    config: Any,
    generator: random.Random,
    *,
    label_side: int,
    scale: tuple[float, float] = (0.4, 1.0),
    flip: bool = True,
    colour: float = 0.3,
    whole: float = 0.5,
) -> MaskedView:
    """A crop of a photo and of its mask, mirrored together half of the time; colours change in the photo alone.

    Args:
        image, mask: Of one size.
        config: Of the tower: `image_size` and `resample`.
        generator: What happens depends on it alone.
        label_side: L.
        scale: Share of the photo's area that a crop has, as torchvision's RandomResizedCrop takes it.
        flip: Whether to mirror.
        colour: Brightness, contrast and saturation change by up to this factor; 0 leaves them.
        whole: Share of the views that show the whole photo squashed to the square, as scores are taken.
    """
    side, box = config.image_size, (0, 0, *image.size)
    if generator.random() >= whole:
        box = random_box(*image.size, generator, scale, (3 / 4, 4 / 3))
    filtering = Image.Resampling[config.resample.upper()]
    view = image.resize((side, side), filtering, box=box, reducing_gap=3.0)
    labels = nearest(mask, label_side, box)
    if flip and generator.random() < 0.5:
        view, labels = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels.flip(1)
    if colour:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            view = enhance(view).enhance(generator.uniform(1 - colour, 1 + colour))
    return MaskedView(to_tensor(view), labels)


def nearest(mask: Mask, side: int, box: tuple[int, int, int, int]) -> Tensor:
    """A box of a mask as a square, by the nearest pixels: (H, W) -> (side, side) int64."""
    left, top, right, bottom = box
    rows = top + (np.arange(side) + 0.5) * (bottom - top) / side
    columns = left + (np.arange(side) + 0.5) * (right - left) / side
    return torch.from_numpy(mask[rows.astype(np.intp)[:, None], columns.astype(np.intp)].astype(np.int64))


def normalized(pixels: Tensor, config: Any) -> Tensor:
    """(B, 3, S, S) uint8 to what a tower reads."""
    return normalize(pixels, config.image_mean, config.image_std)


__all__ = ["IGNORED", "MaskedView", "large_view", "nearest", "normalized", "training_view", "whole_view"]
