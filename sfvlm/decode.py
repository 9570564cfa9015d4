"""From the bytes of an image file to an upright RGB photo."""

import contextlib
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# Formats are named because Pillow also opens some, such as EPS, by starting another program.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Photo:
    """One decoded photo and what its source says of it."""

    image: Image.Image  # mode RGB, upright
    key: str  # stable: "folder/file.jpg", "shard.tar:key", "dataset:row" or "scenes:seed:index"
    label: int | None = None
    captions: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


class UnreadablePhoto(ValueError):
    """A photo that is in the index but cannot be had."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)  # both, so that the exception survives pickling
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


def decode_image(data: bytes, max_pixels: int, decode_hint: int | None = None) -> Image.Image:
    """Encoded bytes to an upright RGB image: first frame, transparency on white, 16 bits scaled.

    `decode_hint` lets a JPEG decode at 1/2, 1/4 or 1/8 of its size, while both sides stay at least
    that long. Raises ValueError with the reason.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        image = Image.open(BytesIO(data), formats=IMAGE_FORMATS)
    except Image.UnidentifiedImageError:
        raise ValueError(f"not a {', '.join(IMAGE_FORMATS)} image") from None
    except Exception as error:  # on corrupt bytes Pillow's readers raise nearly any exception
        raise ValueError(f"its header cannot be read: {error}") from error
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width} x {image.height} is more than max_pixels={max_pixels}")
    try:
        if decode_hint is not None:
            image.draft("RGB", (decode_hint, decode_hint))
        image.load()
        _turn_upright(image)
        return to_rgb(image)
    except Exception as error:
        raise ValueError(f"it cannot be decoded: {error}") from error


def _turn_upright(image: Image.Image) -> None:
    # Broken EXIF is common, may raise anything, and says nothing against the pixels.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency on white, more than 8 bits scaled."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey_to_eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGB", image.size, "white")
        background.paste(image, mask=image.getchannel("A"))
        return background
    return image.convert("RGB")


def _grey_to_eight_bits(image: Image.Image) -> Image.Image:
    """Scales deep greyscale, which Pillow's own conversion would clip to white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    brightest = float(values.max())
    # Floats come as 0..1, 0..255 or 0..65535, integers as 16 bits; what lies beyond is scaled by
    # its own maximum.
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    white = next((value for value in whites if brightest <= value), brightest)
    return Image.fromarray(np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8))
