"""Boxes and sampling points on the photo: where the tokens looked, step by step."""

import colorsys
import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from ..encoder import roi
from ..encoder.sparseformer import SparseFormerModel
from ..photos.views import normalize, tower_view
from ..util.files import make_folder, replacing


def token_color(index: int, count: int) -> tuple[int, int, int]:
    """A colour of its own for each token, neighbours far apart on the colour wheel."""
    hue = (index * 0.618034) % 1.0
    value = 1.0 if index % 2 or count < 2 else 0.85
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    image: Image.Image,
    boxes: Tensor,
    points: Tensor | None = None,
    tokens: list[int] | None = None,
    context: Tensor | None = None,
) -> Image.Image:
    """Draws boxes (N, 4) and points (N, P, 2), both in fractions of the image, on a copy of it.

    Args:
        image: The photo the fractions refer to: the square view the model saw.
        boxes: Boxes of one step.
        points: Sampling points of the same step; left out when None.
        tokens: Which tokens to draw; all by default.
        context: (M, 4) boxes of what was looked at beside them, in thin grey.
    """
    canvas = image.convert("RGB").copy()
    draw = ImageDraw.Draw(canvas, "RGBA")
    width, height = canvas.size
    stroke = max(1, round(min(canvas.size) / 220))
    for box in [] if context is None else context.tolist():
        draw.rectangle(_on(canvas, box), outline=(170, 170, 170, 190), width=max(1, stroke // 2))
    for index in tokens if tokens is not None else range(len(boxes)):
        color = token_color(index, len(boxes))
        draw.rectangle(_on(canvas, boxes[index].tolist()), outline=(*color, 230), width=stroke)
        for x, y in [] if points is None else points[index].tolist():
            draw.ellipse(
                (x * width - stroke, y * height - stroke, x * width + stroke, y * height + stroke), fill=(*color, 200)
            )
    return canvas


def _on(image: Image.Image, box: list[float]) -> tuple[float, float, float, float]:
    """A box in fractions of the image, in pixels: left, top, right, bottom, also where its corners are swapped."""
    (x1, y1, x2, y2), (width, height) = box, image.size
    return min(x1, x2) * width, min(y1, y2) * height, max(x1, x2) * width, max(y1, y2) * height


def draw_attention(image: Image.Image, boxes: Tensor, weights: Tensor, marked: int = 5) -> Image.Image:
    """Lights the photo where boxes (N, 4) with large weights (N,) lie, darkens the rest, and outlines the largest ones.

    Args:
        image: The photo that the boxes are in fractions of.
        boxes: Of one step.
        weights: The largest is fully lit, the smallest not at all.
        marked: How many boxes are outlined.
    """
    above = weights - weights.min()
    shares = (above / above.max()).tolist() if above.max() > 0 else [1.0] * len(weights)
    light = Image.new("L", image.size, 0)
    for index in weights.argsort().tolist():  # the strongest last, on top
        left, top, right, bottom = map(round, _on(image, boxes[index].tolist()))
        light.paste(round(255 * shares[index]), (left, top, right, bottom))
    light = light.filter(ImageFilter.GaussianBlur(min(image.size) / 80))
    dark = Image.blend(image.convert("RGB"), Image.new("RGB", image.size, "black"), 0.72)
    lit = Image.composite(image.convert("RGB"), dark, light)
    return draw_boxes(lit, boxes, tokens=weights.argsort(descending=True)[:marked].tolist())


def contact_sheet(images: list[Image.Image], columns: int, gap: int = 6) -> Image.Image:
    """Pictures of one size on a white sheet, row by row."""
    width, height = images[0].size
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        sheet.paste(image, ((index % columns) * (width + gap), (index // columns) * (height + gap)))
    return sheet


@torch.no_grad()
def draw_focusing(
    model: SparseFormerModel,
    image: Image.Image,
    num_tokens: int | None = None,
    size: int = 336,
    with_points: bool = False,
) -> Image.Image:
    """The photo, then the photo with the boxes of every step, side by side; `size` pixels high each."""
    config = model.config
    pixels = tower_view(image, config)
    shown = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
    batch = normalize(pixels[None], config.image_mean, config.image_std).to(model.device)
    output = model(batch, num_tokens=num_tokens)
    panels = [shown]
    for step, boxes in enumerate(output.token_rois):
        points = output.sampling_points[step][0] if with_points and step < len(output.sampling_points) else None
        context = output.context_rois if step == len(output.token_rois) - 1 else None
        panels.append(
            draw_boxes(
                shown,
                boxes[0].cpu(),
                None if points is None else points.cpu(),
                context=None if context is None else context[0].cpu(),
            )
        )
    return contact_sheet(panels, columns=len(panels))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes in one piece; the suffix says the format.

    Raises:
        ValueError: There is no format of that suffix, or the file cannot be written.
    """
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{path} has not the suffix of a picture that can be written: call it {path.stem}.png.")
    make_folder(path.parent)
    try:
        with replacing(path) as temporary:
            picture.save(temporary)
    except OSError as error:
        raise ValueError(f"The picture {path} cannot be written: {error.strerror or error}.") from error


def describe_boxes(boxes: Tensor) -> str:
    """One line on boxes (B, N, 4), for people."""
    numbers = roi.spread(boxes)
    return (
        f"{boxes.shape[1]} boxes of {numbers['size'] * 100:.1f} % of the side on average, "
        f"covering {numbers['coverage'] * 100:.0f} % of the photo"
    )
