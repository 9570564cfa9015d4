"""Rendered scenes with a class label, captions and questions: the data that needs no download.

A scene is one to five things on a textured background. The largest, its main object, is always a
coloured shape and names its class ("red circle"). Digits and letters are smaller company: glyphs
with a contrasting outline, or on a white rounded label; a scene holds digits or letters, never
both, so that 0 and O are not confused. White is no object colour, so labels never count as things.
All follows from (seed, index). Geometry and textures are in fractions of the image: another
`image_size` shows the same scene with more or less detail, and only the film grain is drawn anew.
"""

import colorsys
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from .scene_texts import (
    CLASS_NAMES,
    COLORS,
    SHAPES,
    Box,
    Question,
    SceneObject,
    pick,
    scene_captions,
    scene_questions,
)

Color = tuple[int, int, int]
Corners = NDArray[np.float64]  # (n, 2), x to the right and y down, within [-1, 1]
Masks = tuple[Image.Image, Image.Image]  # an object's whole silhouette, and its coloured part
LIGHT_COLORS = ("orange", "yellow", "cyan", "pink")  # unreadable on white: outlined in black
WHITE = (246, 244, 238)
BACKGROUNDS = ("plain", "gradient", "noisy", "striped", "checkered", "dotted", "blurry")
# Longer side of an object's box in fractions of the image; gaps keep the words apart by eye, and
# the main object visibly the largest.
EXTENTS = {"small": (0.09, 0.125), "medium": (0.17, 0.23), "large": (0.33, 0.45)}
SMALL_MAIN_EXTENT, SMALL_OTHER_EXTENT = (0.068, 0.08), (0.04, 0.054)
MASTER_SIDE = 288  # pixels of the masks every object is scaled from


def _star(corners: int, inner: float = 1.0) -> Corners:
    """Corners around the origin, the first on top, every second one at radius `inner`."""
    angles = 2 * np.pi * np.arange(corners) / corners
    radii = np.where(np.arange(corners) % 2, inner, 1.0)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def _heart() -> Corners:
    t = np.linspace(0, 2 * np.pi, 64)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1) / 17


_PLUS = np.array([(-0.34, -1), (0.34, -1), (0.34, -0.34), (1, -0.34), (1, 0.34), (0.34, 0.34)])
_ARROW = [(-1, -0.3), (0, -0.3), (0, -0.8), (1, 0), (0, 0.8), (0, 0.3), (-1, 0.3)]
POLYGONS: dict[str, Corners] = {
    "circle": _star(90),
    "square": np.array([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
    "triangle": _star(3),
    "star": _star(10, inner=0.45),
    "heart": _heart(),
    "cross": np.concatenate([_PLUS, -_PLUS]),
    "ring": _star(90),  # the hole is cut when it is drawn
    "diamond": _star(4) * (0.62, 1.0),  # narrow, for a turned square is still a square
    "pentagon": _star(5),
    "arrow": np.array(_ARROW),
}


@dataclass(frozen=True)
class Scene:
    """A rendered picture and what is true of it; the main object is the first of `objects`."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    background: str
    label: int  # index into CLASS_NAMES
    captions: tuple[str, ...]
    questions: tuple[Question, ...]

    def to_meta(self) -> dict[str, Any]:
        """Everything but the image, as plain values for JSON."""
        return {
            "objects": [asdict(item) for item in self.objects],
            "background": self.background,
            "label": self.label,
            "captions": list(self.captions),
            "questions": [asdict(question) for question in self.questions],
        }


def scene_dataset(count: int, seed: int = 0, image_size: int = 224) -> Iterator[Scene]:
    """The scenes 0 ... count - 1 of a seed."""
    return (render_scene(seed, index, image_size) for index in range(count))


def render_scene(seed: int, index: int, image_size: int = 224, small_objects: bool = False) -> Scene:
    """Scene `index` of `seed`, a square of `image_size` pixels.

    With `small_objects` everything measures 4 to 8 % of the image side: hardly legible at 224
    pixels without a closer look. The size word of all is then "small".
    """
    if seed < 0 or index < 0 or image_size < 32:
        raise ValueError(f"seed and index start at 0 and image_size at 32, got {seed}, {index}, {image_size}")
    rng = np.random.default_rng([seed, index])
    # Noisy and blurry count twice: their spectra are the nearest to a photo's.
    background = pick(rng, (*BACKGROUNDS, "noisy", "blurry"))
    objects, masks = _arrange(rng, small_objects)
    captions, questions = scene_captions(rng, objects, background), scene_questions(rng, objects)
    canvas = _paint_background(rng, background, {item.color for item in objects}, image_size)
    shadow_side = pick(rng, (-1, 0, 1))  # 0: no shadows
    for item, item_masks in zip(objects, masks, strict=True):
        _paint_object(rng, canvas, item, item_masks, shadow_side)
    # Grain draws as many numbers as there are pixels, so it comes after everything else.
    strength = int(rng.integers(10))
    grain = rng.integers(128 - strength, 129 + strength, (image_size, image_size), dtype=np.uint8)
    image = ImageChops.add(canvas, _gray(grain), offset=-128)
    label = CLASS_NAMES.index(objects[0].name)
    return Scene(image, tuple(objects), background, label, captions, questions)


def _gray(values: NDArray[Any]) -> Image.Image:
    """Values (height, width) in 0 ... 255 as an RGB image of grays."""
    plane = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return Image.merge("RGB", (plane, plane, plane))


def _arrange(rng: np.random.Generator, small_objects: bool) -> tuple[list[SceneObject], list[Masks]]:
    """Objects whose boxes do not touch, the main one first; what finds no room is left out."""
    main_size = "small" if small_objects else pick(rng, ("medium", "large"))
    sign, texts = pick(rng, (("digit", "0123456789"), ("letter", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")))
    objects: list[SceneObject] = []
    masks: list[Masks] = []
    for position in range(int(rng.integers(1, 6))):
        shape, color, size, text = pick(rng, SHAPES), pick(rng, tuple(COLORS)), main_size, None
        low, high = SMALL_MAIN_EXTENT if small_objects else EXTENTS[size]
        if position > 0:
            size = "medium" if main_size == "large" and rng.random() < 0.6 else "small"
            low, high = SMALL_OTHER_EXTENT if small_objects else EXTENTS[size]
            company = rng.random()
            if company < 0.35:
                shape, text = sign, pick(rng, texts)
                low = (low + high) / 2  # glyphs need their pixels
            elif company < 0.55:  # repeated shapes and colours give something to count
                shape = objects[0].shape
            elif company < 0.7:
                color = objects[0].color
        whole, inner = _masks(rng, shape, color, text)
        scale = rng.uniform(low, high) / max(whole.size)
        width, height = whole.width * scale, whole.height * scale
        for _ in range(40):
            x, y = rng.uniform(0.02, 0.98 - width), rng.uniform(0.02, 0.98 - height)
            box = (x, y, x + width, y + height)
            if not any(_touch(box, other.box) for other in objects):
                objects.append(SceneObject(shape, color, size, box, text))
                masks.append((whole, inner))
                break
    return objects, masks


def _touch(a: Box, b: Box, gap: float = 0.02) -> bool:
    return all(a[i] < b[i + 2] + gap and b[i] < a[i + 2] + gap for i in (0, 1))


def _masks(rng: np.random.Generator, shape: str, color: str, text: str | None) -> Masks:
    """The object's masks after a mild rotation, both cropped to the bounds of the whole."""
    # Turned further, a square would pass for a diamond and a sign would be hard to read.
    steps = 2 if text or shape in ("square", "diamond") else 3
    degrees = 5 * int(rng.integers(-steps, steps + 1))
    if shape == "arrow":
        degrees += 90 * pick(rng, range(4))
    has_label = color not in LIGHT_COLORS and rng.random() < 0.6
    return _turned_masks(shape, text, has_label and text is not None, degrees)


@cache  # turning costs more than all the rest of a scene; there are about 400 different ones
def _turned_masks(shape: str, text: str | None, has_label: bool, degrees: int) -> Masks:
    masters = _sign_masks(text, has_label) if text else (_shape_mask(shape),)
    turned = [mask.rotate(degrees, Image.Resampling.BILINEAR) for mask in masters]
    bounds = turned[0].point([0] * 128 + [255] * 128).getbbox()
    turned = [mask.crop(bounds) for mask in turned]
    return turned[0], turned[-1]


@cache
def _shape_mask(shape: str) -> Image.Image:
    """A shape drawn in the middle of a square with room to turn, four times too large first."""
    side = 4 * MASTER_SIDE
    mask = Image.new("L", (side, side))
    for corners, fill in ((POLYGONS[shape], 255), (0.55 * POLYGONS[shape], 0)):
        if fill or shape == "ring":
            points = (side / 2 + side * 0.38 * corners).ravel().tolist()
            ImageDraw.Draw(mask).polygon(points, fill=fill)
    return mask.reduce(4)


@cache
def _sign_masks(text: str, has_label: bool) -> Masks:
    """A digit or letter in Pillow's built-in font: with its outline or label, and alone."""
    whole, glyph = (Image.new("L", (MASTER_SIDE, MASTER_SIDE)) for _ in range(2))
    font, middle = ImageFont.load_default(size=180), MASTER_SIDE / 2
    left, top, right, bottom = font.getbbox(text)
    corner = (middle - (left + right) / 2, middle - (top + bottom) / 2)
    ImageDraw.Draw(glyph).text(corner, text, 255, font, stroke_width=6)
    if has_label:  # wider than high, so that nobody takes it for a square
        label = (middle - 112, middle - 88, middle + 112, middle + 88)
        ImageDraw.Draw(whole).rounded_rectangle(label, radius=38, fill=255)
    else:
        ImageDraw.Draw(whole).text(corner, text, 255, font, stroke_width=18)
    return whole, glyph


def _paint_object(
    rng: np.random.Generator,
    canvas: Image.Image,
    item: SceneObject,
    masks: Masks,
    shadow_side: int,
) -> None:
    left, top, right, bottom = (round(side * canvas.width) for side in item.box)
    size = (max(right - left, 1), max(bottom - top, 1))
    whole = masks[0].resize(size, Image.Resampling.BILINEAR)
    inner = masks[1].resize(size, Image.Resampling.BILINEAR) if item.text else whole
    if shadow_side:
        blur = max(size) // 14 + 1
        shadow = Image.new("L", (size[0] + 6 * blur, size[1] + 6 * blur))
        shadow.paste(90, (3 * blur, 3 * blur), whole)
        corner = (left + (shadow_side - 3) * blur, top - 2 * blur)
        canvas.paste((0, 0, 0), corner, shadow.filter(ImageFilter.GaussianBlur(blur)))
    if item.text:
        rim = COLORS["black"] if item.color in LIGHT_COLORS else WHITE
        canvas.paste(rim, (left, top), whole)
    # A little lighter at one end than at the other, as under a lamp.
    ramp = np.linspace(rng.uniform(222, 255), rng.uniform(222, 255), size[1])
    shade = _gray(np.broadcast_to(ramp[:, None], (size[1], size[0])))
    fill = ImageChops.multiply(Image.new("RGB", size, COLORS[item.color]), shade)
    canvas.paste(fill, (left, top), inner)


def _paint_background(rng: np.random.Generator, background: str, colors: set[str], image_size: int) -> Image.Image:
    """Two muted colours mixed by a texture, under uneven light; `colors` stay visible on it."""
    base, second = _muted_pair(rng, colors)
    angle, frequency = rng.uniform(0, 2 * math.pi), rng.uniform(4, 10)
    across = np.linspace(-math.pi, math.pi, image_size, dtype=np.float32)
    x, y = across[None, :], across[:, None]
    u = frequency * (math.cos(angle) * x + math.sin(angle) * y)
    v = frequency * (math.cos(angle) * y - math.sin(angle) * x)
    if background == "gradient":
        mix = 0.5 + u / (2 * math.pi * frequency)
    elif background == "striped":
        mix = 0.5 + 3 * np.sin(u)
    elif background == "checkered":
        mix = 0.5 + 5 * np.sin(u / 2) * np.sin(v / 2)
    elif background == "dotted":
        mix = 2.5 * (np.cos(u) + np.cos(v) - 1)
    elif background in ("noisy", "blurry"):
        mix = 0.5 + _noise(rng, 6 if background == "noisy" else 1, image_size)
    else:
        mix = np.zeros_like(u)
    texture = _gray(255 * mix).getchannel(0)
    size = (image_size, image_size)
    canvas = Image.composite(Image.new("RGB", size, second), Image.new("RGB", size, base), texture)
    return ImageChops.multiply(canvas, _gray(230 + 25 * _noise(rng, 1, image_size)))


def _noise(rng: np.random.Generator, octaves: int, image_size: int) -> NDArray[np.float32]:
    """Smooth noise about 0, (image_size, image_size); amplitudes fall as 1 / frequency."""
    field = Image.new("F", (1, 1))
    for octave in range(octaves):
        cells = 5 * 2**octave
        grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32) / 2**octave
        field = field.resize((cells, cells), Image.Resampling.BICUBIC)
        field = Image.fromarray(np.asarray(field) + grid)
    # Bytes are resized several times faster than floats, and the grain hides their steps.
    plane = _gray(128 + 80 * np.asarray(field)).getchannel(0)
    plane = plane.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(plane, dtype=np.float32) / np.float32(80) - np.float32(1.6)


def _muted_pair(rng: np.random.Generator, colors: set[str]) -> tuple[Color, Color]:
    """Two related muted colours, away from the objects' `colors`."""
    objects = np.array([COLORS[color] for color in sorted(colors)])
    best, best_distance = (WHITE, WHITE), -1.0
    for _ in range(16):
        hue, saturation, value = rng.uniform((0, 0.05, 0.3), (1, 0.32, 0.85))
        other = (hue + rng.uniform(-0.08, 0.08)) % 1, saturation, value + rng.uniform(0.08, 0.15)
        pair = 255 * np.array([colorsys.hsv_to_rgb(hue, saturation, value), colorsys.hsv_to_rgb(*other)])
        apart = pair[:, None] - objects
        # Brightness counts twice, for it is what makes an edge visible.
        distance = (np.linalg.norm(apart, axis=2) + abs(apart @ (0.3, 0.59, 0.11))).min()
        if distance > best_distance:
            first, second = pair.astype(int).tolist()
            best, best_distance = (tuple(first), tuple(second)), distance
        if distance > 160:  # clear enough: the very clearest would always be the same few
            break
    return best
