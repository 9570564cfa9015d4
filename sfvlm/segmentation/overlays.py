"""Maps of classes on the photo: a colour a class, with a legend, several models beside each other."""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..dense.metrics import IGNORED

LEAST_SHARE = 0.005  # of the photo: what covers less is in the picture, and not in the legend
MARGIN, LINE = 8, 18  # pixels


class Layer(NamedTuple):
    """One map to draw: what it is called, and the class of each pixel (H, W) of the photo; `IGNORED` is left as it is."""

    title: str
    classes: NDArray[np.integer]


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour of its own for each class, neighbours far apart on the colour wheel."""
    hue, value = (number * 0.618034 + 0.05) % 1.0, (1.0, 0.78, 0.9)[number % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.65)[number % 2], value)
    return round(red * 255), round(green * 255), round(blue * 255)


def overlay(image: Image.Image, classes: NDArray[np.integer], strength: float = 0.55) -> Image.Image:
    """The photo in the colours of its classes.

    Raises:
        ValueError: Photo and map differ in size.
    """
    if image.size != classes.shape[::-1]:
        raise ValueError(f"The photo has {image.size} pixels and its map {classes.shape[::-1]}.")
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    colours = np.zeros_like(pixels)
    for number in np.unique(classes):
        colours[classes == number] = colour_of(int(number))
    mixed = np.where((classes == IGNORED)[..., None], pixels, (1 - strength) * pixels + strength * colours)
    return Image.fromarray(mixed.round().astype(np.uint8))


def panel(image: Image.Image, layers: Sequence[Layer], names: Sequence[str], *, side: int = 320) -> Image.Image:
    """The photo, then each map of it with its title, and a legend of the classes that are in one of them.

    Args:
        image: The photo, of the maps' size.
        layers: One or more.
        names: Of the classes.
        side: Width of each picture in pixels.
    """
    height = max(1, round(image.height * side / image.width))
    pictures = [("photo", image.convert("RGB"))] + [(layer.title, overlay(image, layer.classes)) for layer in layers]
    seen = _seen(layers)
    font = ImageFont.load_default(13)
    width = len(pictures) * (side + MARGIN) + MARGIN
    cells = [(number, names[number] if number < len(names) else f"class {number}") for number in seen]
    places, rows = _laid_out([font.getlength(name) for _, name in cells], width)
    canvas = Image.new("RGB", (width, LINE + height + MARGIN + rows * LINE + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (title, picture) in enumerate(pictures):
        left = MARGIN + number * (side + MARGIN)
        draw.text((left, 1), _shortened(title, side, font), fill="black", font=font)
        canvas.paste(picture.resize((side, height), Image.Resampling.LANCZOS), (left, LINE))
    for (number, name), (left, row) in zip(cells, places, strict=True):
        top = LINE + height + MARGIN + row * LINE
        draw.rectangle((left, top + 2, left + 12, top + 14), fill=colour_of(number))
        draw.text((left + 17, top), name, fill="black", font=font)
    return canvas


def _seen(layers: Sequence[Layer]) -> list[int]:
    """Classes that cover enough of one of the maps, in order."""
    found: set[int] = set()
    for layer in layers:
        numbers, counts = np.unique(layer.classes, return_counts=True)
        found |= {
            int(n)
            for n, c in zip(numbers, counts, strict=True)
            if n != IGNORED and c >= LEAST_SHARE * layer.classes.size
        }
    return sorted(found)


def _laid_out(widths: Sequence[float], width: int) -> tuple[list[tuple[int, int]], int]:
    """Where each entry of the legend goes: left side and row; and how many rows there are."""
    places, left, row = list[tuple[int, int]](), MARGIN, 0
    for each in widths:
        if places and left + 30 + each > width:
            left, row = MARGIN, row + 1
        places.append((left, row))
        left += int(30 + each)
    return places, row + 1 if places else 0


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while len(text) > 4 and font.getlength(text) > width:
        text = text[:-4] + "..."
    return text
