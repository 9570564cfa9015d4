"""How the cost of one sparse encoder grows: with its tokens, with photos at once, and with their size beside a dense one.

panels = scaling_panels(sparse, dense, budgets=(16, 49, 196), batch_sizes=(1, 2, 4), image_sizes=(224, 336, 672))
rows = measure_panel(panels[0])
line_fit(x, y)        -> what it costs at nothing, what each more adds, and the share of the variance that a line explains
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from ..encoder.sparseformer import SparseFormerModel
from ..util.choices import SCALING_IMAGE_SIZES
from .encoders import Encoder, at_budget
from .hosts import check_numbers
from .measure import Measures, Row, cost_rows, in_turns
from .rounds import timed_encode

SCALING_BUDGETS = (16, 25, 36, 49, 64, 81, 100, 121, 144, 169, 196)
SCALING_BATCH_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Point:
    """One encoder at one place of an axis.

    Attributes:
        panel: What grows: "tokens", "photos" or "image size".
        x: How far.
        encoder, batch_size: What is measured.
    """

    panel: str
    x: int
    encoder: Encoder
    batch_size: int = 1


class AnySize(nn.Module):
    """A CLIP of transformers whose positions are interpolated to the photo: (B, 3, S, S) -> its output."""

    def __init__(self, clip: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixels: Tensor) -> Any:
        return self.clip(pixels, interpolate_pos_encoding=True)


class Fit(NamedTuple):
    """A line by least squares, y = at_zero + slope x, and the share of y's variance that it explains."""

    at_zero: float
    slope: float
    explained: float


def scaling_panels(
    sparse: Encoder,
    dense: Encoder | None,
    *,
    budgets: Sequence[int] = SCALING_BUDGETS,
    batch_sizes: Sequence[int] = SCALING_BATCH_SIZES,
    image_sizes: Sequence[int] = SCALING_IMAGE_SIZES,
) -> list[list[Point]]:
    """The points of each panel: tokens (one photo of the encoder's own size), photos, and image sizes (one photo).

    Args:
        sparse: A SparseFormer.
        dense: What is measured beside it at every image size, or nothing.
        budgets, batch_sizes, image_sizes: Where the points are; photos are of the encoder's own budget.

    Raises:
        ValueError: The encoder is none, or a place is below 1.
    """
    if not isinstance(sparse.counted, SparseFormerModel):
        raise ValueError(
            f"{sparse.name} has no budget that could grow: give a sparse encoder, such as clip-l14-336@49."
        )
    for name, places in (("budget", budgets), ("batch size", batch_sizes), ("image size", image_sizes)):
        check_numbers(**{name: min(places, default=0)})
    if dense is not None and isinstance(dense.counted, CLIPVisionModelWithProjection):
        any_size = AnySize(dense.counted)
        dense = replace(dense, model=any_size, counted=any_size)
    tokens = [Point("tokens", count, _with_tokens(sparse, sparse.counted, count)) for count in budgets]
    photos = [Point("photos", count, sparse, count) for count in batch_sizes]
    both = [sparse] if dense is None else [dense, sparse]
    sizes = [Point("image size", side, replace(each, image_size=side)) for side in image_sizes for each in both]
    return [tokens, photos, sizes]


def _with_tokens(encoder: Encoder, model: SparseFormerModel, tokens: int) -> Encoder:
    twin = at_budget(model, tokens)
    return replace(encoder, model=twin, counted=twin, num_tokens=tokens)


def measure_panel(points: Sequence[Point], *, repeats: int = 5, warmups: int = 1) -> list[Row]:
    """Measures the points of a panel in turns.

    Returns:
        Rows of `cost_rows`, of the seconds and multiply-adds of a call, with `panel`, `x`, `image_size` and `num_tokens`.
    """
    # Before anything is timed: a place where a model cannot go says so.
    facts: list[Measures] = [{"encode_macs": point.encoder.macs * point.batch_size} for point in points]
    runs = in_turns([timed_encode(point.encoder, point.batch_size) for point in points], repeats, warmups)
    rows = []
    for point, fact, measured in zip(points, facts, runs, strict=True):
        encoder = point.encoder
        place = {"panel": point.panel, "x": point.x, "image_size": encoder.image_size, "num_tokens": encoder.num_tokens}
        rows += [
            row | place for row in cost_rows([(encoder.name, encoder.source)], point.batch_size, [fact], [measured])
        ]
    return rows


def line_fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """The line through points by least squares; with fewer than two places it is flat."""
    if len(set(x)) < 2:
        return Fit(statistics.fmean(y), 0.0, 0.0)
    slope, at_zero = statistics.linear_regression(x, y)
    spread = len(y) * statistics.pvariance(y)
    missed = sum((each - at_zero - slope * place) ** 2 for place, each in zip(x, y, strict=True))
    return Fit(at_zero, slope, 1 - missed / spread if spread else 0.0)


def fits(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for every panel and model: of seconds over tokens or photos; over the photo's pixels for image sizes."""
    found = []
    for panel, model in dict.fromkeys((row["panel"], row["model"]) for row in rows):
        chosen = [row for row in rows if (row["panel"], row["model"]) == (panel, model)]
        places = [row["x"] ** 2 if panel == "image size" else row["x"] for row in chosen]
        medians = [row["measures"]["encode_seconds"]["median"] for row in chosen]
        each = "pixel" if panel == "image size" else "photo" if panel == "photos" else "token"
        line = line_fit(places, medians)
        found.append(
            {"panel": panel, "model": model, "each": each, **line._asdict(), "last_by_first": medians[-1] / medians[0]}
        )
    return found
