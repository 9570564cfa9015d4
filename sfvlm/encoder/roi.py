"""Box arithmetic: pure functions, no parameters, float32 throughout.

A box (region of interest, RoI) is four corners `(x1, y1, x2, y2)` in fractions of the image: (0, 0) is the upper left
corner of the photo, (1, 1) the lower right one. Boxes may reach outside; samples there repeat the border.

What the forward pass makes here it makes on the device of its boxes: a tensor copied from the CPU would hold a GPU up, and no
CUDA graph can record it.

Shapes: B batch, N tokens, P sampling points, C channels, H x W map.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

WHOLE = (0.0, 0.0, 1.0, 1.0)  # the photo as a box


def centers(roi: Tensor) -> Tensor:
    """Box centres: (..., 4) -> (..., 2), as (x, y)."""
    return (roi[..., :2] + roi[..., 2:]) / 2


def sizes(roi: Tensor) -> Tensor:
    """Box widths and heights: (..., 4) -> (..., 2). Negative when the corners are swapped."""
    return roi[..., 2:] - roi[..., :2]


def from_center(center: Tensor, size: Tensor) -> Tensor:
    """Corners from centre and size: (..., 2), (..., 2) -> (..., 4)."""
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def tile_layout(side: int, device: torch.device | str = "cpu") -> Tensor:
    """The `side` x `side` cells of the image, row by row: (side * side, 4). Every point lies in exactly one box."""
    edges = torch.arange(side + 1, dtype=torch.float32, device=device) / side
    y1, x1 = torch.meshgrid(edges[:-1], edges[:-1], indexing="ij")
    y2, x2 = torch.meshgrid(edges[1:], edges[1:], indexing="ij")
    return torch.stack([x1, y1, x2, y2], dim=-1).reshape(-1, 4)


def cell_boxes(cells: Tensor, grid: int) -> Tensor:
    """The boxes of cells of a `grid` x `grid` tiling, counted row by row: (...) -> (..., 4)."""
    return tile_layout(grid, cells.device)[cells]


def even_cells(side: int, height: int, width: int, device: torch.device) -> Tensor:
    """The cells of a `height` x `width` tiling nearest the middles of `side` x `side` larger ones: (side * side,).

    Counted row by row; of two that are as near, the later one.
    """
    odd = 2 * torch.arange(side, device=device) + 1
    rows, columns = odd * height // max(1, 2 * side), odd * width // max(1, 2 * side)
    return (rows[:, None] * width + columns).flatten()


def _filled(numbers: Iterable[float], device: torch.device | str) -> Tensor:
    """A few numbers in float32, each by a fill: (length,)."""
    return torch.cat([torch.full((1,), number, dtype=torch.float32, device=device) for number in numbers])


def zoom(roi: Tensor, share: float) -> Tensor:
    """Shrinks a layout towards the middle of the photo to `share` of its side: (..., 4) -> (..., 4)."""
    return (roi - 0.5) * share + 0.5


def overlapping_layout(num_tokens: int) -> Tensor:
    """The start of the official models: (num_tokens, 4).

    A square grid of half-size boxes spread so that the outer ones touch the border, column by column (x varies
    slowest), and whole-image boxes for the tokens beyond the square (showlab/sparseformer, `modeling.py`, `init_layer`).
    """
    side = math.isqrt(num_tokens)
    start = torch.linspace(0, 0.5, side, device="cpu") if side > 1 else torch.zeros(1, device="cpu")
    x, y = torch.meshgrid(start, start, indexing="ij")
    grid = torch.stack([x, y, x + 0.5, y + 0.5], dim=-1).reshape(-1, 4)
    whole = _filled(WHOLE, "cpu").expand(num_tokens - side * side, 4)
    return torch.cat([grid, whole])


def resample_layout(roi: Tensor, num_tokens: int) -> Tensor:
    """Boxes for another budget from learned ones: (N, 4) -> (num_tokens, 4).

    The leading square of boxes is read as a grid of box centres and sizes and interpolated bilinearly; sizes shrink or grow
    with the grid so that the boxes keep covering what they covered. Tokens beyond the square take the extra boxes in
    turn, or the whole image when there are none. The asked number equal to N returns the boxes untouched.
    """
    if len(roi) == num_tokens:
        return roi
    old, new = math.isqrt(len(roi)), math.isqrt(num_tokens)
    extra = num_tokens - new * new
    grid = torch.cat([centers(roi), sizes(roi)], dim=-1)[: old * old].reshape(1, old, old, 4).permute(0, 3, 1, 2)
    # Half-pixel interpolation stops half a cell short of the border: without extrapolation the outer boxes of a finer grid
    # would lose the rim of the photo, so centres are interpolated as displacements from their own regular cell.
    regular = centers(tile_layout(old, roi.device)).to(roi.dtype).reshape(1, old, old, 2).permute(0, 3, 1, 2)
    displacement = F.interpolate(grid[:, :2] - regular, size=(new, new), mode="bilinear", align_corners=False)
    center = centers(tile_layout(new, roi.device)).to(roi.dtype) + displacement[0].flatten(1).T
    size = F.interpolate(grid[:, 2:], size=(new, new), mode="bilinear", align_corners=False)[0].flatten(1).T * (
        old / new
    )
    boxes = from_center(center, size)
    if not extra:
        return boxes
    spare = roi[old * old :] if len(roi) > old * old else _filled(WHOLE, roi.device).to(roi.dtype)[None]
    return torch.cat([boxes, spare[torch.arange(extra, device=roi.device) % len(spare)]])


class Frames(NamedTuple):
    """The parts of the photo that tokens are sent to: their boxes are then in fractions of these parts."""

    parts: Tensor  # (B, N, 4), boxes in fractions of the photo
    inside: int  # the last so many tokens are sent to a rectangle, the others have the whole photo

    @property
    def rectangle(self) -> "Frames":
        """For any number of tokens, all of them inside: one part for all, (B, 1, 4)."""
        return Frames(self.parts[:, -1:], self.inside)


def focus_frames(focus: Tensor, batch: int, num_tokens: int, share: float = 1.0) -> Frames:
    """Frames that send a share of the tokens into rectangles of the photos, and leave the whole photo to the others.

    Args:
        focus: (B, 4) or (1, 4), in fractions of the photo.
        batch: B photos.
        num_tokens: N tokens of each.
        share: Of 0 to 1; below 1 the tokens inside are the nearest square number, so that they tile the rectangle.

    Raises:
        ValueError: The rectangles are not so many, the share is none, or one has no area; compiled code cannot ask for that.
    """
    if focus.ndim != 2 or focus.shape[1] != 4 or len(focus) not in (1, batch):
        raise ValueError(f"focus is {tuple(focus.shape)}; it must be ({batch}, 4) or (1, 4), a rectangle a photo.")
    if not torch.compiler.is_compiling() and not bool((sizes(focus) > 0).all()):
        raise ValueError(f"A focus of corners {focus.tolist()} has no area: x1 < x2 and y1 < y2.")
    if not 0 < share <= 1:
        raise ValueError(f"focus_share is {share}; it must be above 0 and at most 1.")
    side = max(1, round(math.sqrt(share * num_tokens)))
    inside = num_tokens if share == 1 else min(side * side, num_tokens)
    rectangles = focus.float().expand(batch, 4)[:, None].expand(-1, inside, -1)
    whole = _filled(WHOLE, rectangles.device).expand(batch, num_tokens - inside, -1)
    return Frames(torch.cat([whole, rectangles], dim=1), inside)


def framed_layout(roi: Tensor, num_tokens: int, frames: Frames | None) -> Tensor:
    """`resample_layout`; with frames for the tokens outside and inside the rectangle apart: (N, 4) -> (num_tokens, 4)."""
    inside = 0 if frames is None else frames.inside
    if inside in (0, num_tokens):
        return resample_layout(roi, num_tokens)
    return torch.cat([resample_layout(roi, num_tokens - inside), resample_layout(roi, inside)])


def on_photo(roi: Tensor, frames: Frames | None) -> Tensor:
    """Boxes in fractions of their frames to fractions of the photo: (B, N, 4) -> (B, N, 4)."""
    if frames is None:
        return roi
    corner, size = frames.parts[..., :2], sizes(frames.parts)
    return torch.cat([corner + roi[..., :2] * size, corner + roi[..., 2:] * size], dim=-1)


def refine(roi: Tensor, delta: Tensor) -> Tensor:
    """Moves and resizes boxes relative to themselves: roi (..., 4), delta (..., 4) as (dx, dy, log sw, log sh) -> (..., 4).

    The centre moves by `delta_xy` box sizes, the size is multiplied by `exp(delta_wh)`. A zero delta is the identity.
    Source: showlab/sparseformer, `modeling.py`, `roi_adjust`.
    """
    roi, delta = roi.float(), delta.float()
    # The official code takes the absolute size here, and the signed one when it samples.
    size = sizes(roi).abs()
    return from_center(centers(roi) + delta[..., :2] * size, size * delta[..., 2:].exp())


def bound(delta: Tensor, max_shift: float, max_log_scale: float) -> Tensor:
    """Squashes a raw delta (..., 4) smoothly: shifts to +-max_shift box sizes, log sizes to +-max_log_scale.

    Unbounded refinement lets a run collapse: boxes grow to many times the image, where the padding makes all tokens alike.
    """
    shift, scale = delta.float().split(2, dim=-1)
    return torch.cat([max_shift * torch.tanh(shift / max_shift), max_log_scale * torch.tanh(scale / max_log_scale)], -1)


def confine(roi: Tensor, min_size: float = 0.01) -> Tensor:
    """Keeps box centres on the photo and box sizes between `min_size` and the whole photo: (..., 4) -> (..., 4)."""
    return from_center(centers(roi).clamp(0, 1), sizes(roi).clamp(min_size, 1.0))


def place_points(roi: Tensor, offset: Tensor, eps: float = 1e-5) -> Tensor:
    """Absolute sampling points from relative offsets: roi (B, N, 4), offset (B, N, P, 2) -> (B, N, P, 2), image fractions.

    Offsets are standardised per token over its points (minus mean, over three standard deviations), so a box edge is
    where the points' spread ends, whatever the offsets' scale. Source: showlab/sparseformer,
    `make_absolute_sampling_point`.
    """
    roi, offset = roi.float(), offset.float()
    std, mean = torch.std_mean(offset, dim=-2, keepdim=True)
    offset = (offset - mean) / (3 * (std + eps))
    return centers(roi)[..., None, :] + offset * sizes(roi)[..., None, :]


def sample(feature_map: Tensor, points: Tensor) -> Tensor:
    """Bilinear interpolation: map (B, C, H, W), points (B, N, P, 2) in image fractions -> (B, N, P, C), in the map's dtype.

    Points are float32 whatever the map is: half precision cannot tell neighbouring pixels of a 336-pixel image apart.
    """
    grid = points.float() * 2 - 1
    out = F.grid_sample(feature_map.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out.permute(0, 2, 3, 1).to(feature_map.dtype)  # (B, C, N, P) -> (B, N, P, C)


def glimpse_points(roi: Tensor, side: int) -> Tensor:
    """The centres of a `side` x `side` grid of cells in each box, row by row: (B, N, 4) -> (B, N, side * side, 2)."""
    tick = (torch.arange(side, device=roi.device, dtype=torch.float32) + 0.5) / side
    start, size = roi[..., :2, None].float(), sizes(roi).float()[..., None]
    x, y = (start + size * tick).unbind(-2)  # each (B, N, side)
    points = torch.stack([x[..., None, :].expand(*y.shape, side), y[..., None].expand(*y.shape, side)], dim=-1)
    return points.flatten(-3, -2)


def sample_glimpses(pixels: Tensor, roi: Tensor, side: int) -> Tensor:
    """Small pictures of what the boxes hold: (B, 3, H, W), (B, N, 4) -> (B, N, 3, side, side).

    Bilinear samples, `side` x `side` a box, each from the level of an image pyramid at which neighbouring samples are at most
    two pixels apart, so that a large box is not aliased. A box of `side` pixels gives exactly its pixels.
    """
    batch, channels, height, width = pixels.shape
    levels = [pixels.float()]
    while min(levels[-1].shape[-2:]) > side:
        half = [(length + 1) // 2 for length in levels[-1].shape[-2:]]
        levels.append(F.interpolate(levels[-1], size=half, mode="area"))
    points = glimpse_points(roi, side)
    glimpses = sample(pixels, points) if len(levels) == 1 else _sample_pyramid(levels, points, sizes(roi), side)
    return glimpses.unflatten(2, (side, side)).permute(0, 1, 4, 2, 3).to(pixels.dtype)


def _sample_pyramid(levels: list[Tensor], points: Tensor, size: Tensor, side: int) -> Tensor:
    """One sampling over all levels, stacked into a tall picture: a box reads one level, whichever fits its size."""
    height, width = levels[0].shape[-2:]
    atlas = torch.cat([F.pad(level, (0, width - level.shape[-1])) for level in levels], dim=-2)
    lengths = [length for level in levels for length in level.shape[:-3:-1]]
    level_sizes = _filled(lengths, points.device).view(-1, 2)  # (levels, 2) as (width, height)
    tops = torch.cumsum(level_sizes[:, 1], dim=0) - level_sizes[:, 1]
    # Boxes that are not numbers, of a run gone wrong, must reach its loss rather than fail here as an index.
    stride = (size.detach().abs() * level_sizes[0] / side).amax(-1).nan_to_num()  # (B, N) pixels between samples
    # The small constant keeps a stride of exactly 2 (averaging pairs of pixels) from flickering between two levels.
    index = torch.log2(stride.clamp(min=1e-6) * (1 - 1e-4)).floor().clamp(0, len(levels) - 1).long()
    extent = level_sizes[index][:, :, None]  # (B, N, 1, 2) as (width, height)
    # Clamping to the outer pixels' centres repeats the border and keeps a box from reading its neighbour level.
    pixel = torch.minimum((points * extent - 0.5).clamp(min=0), extent - 1)
    x, y = pixel[..., 0], pixel[..., 1] + tops[index][:, :, None]
    return sample(atlas, torch.stack([(x + 0.5) / width, (y + 0.5) / atlas.shape[-2]], dim=-1))


def encode_position(roi: Tensor, dim: int, max_temperature: float = 128.0) -> Tensor:
    """Sine and cosine of the four corners: (..., 4) -> (..., dim), without gradient.

    Each corner gets dim / 4 features at geometrically spaced frequencies from pi to pi * max_temperature.
    Source: showlab/sparseformer, `position_encoding`.
    """
    roi = roi.detach().float() * math.pi
    frequency = torch.linspace(0, math.log(max_temperature), dim // 4, device=roi.device).exp()
    angle = roi[..., None] * frequency  # (..., 4, dim / 4)
    return torch.cat([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2)


def coverage(roi: Tensor, resolution: int = 32) -> Tensor:
    """Share of the image that lies in at least one box: (B, N, 4) -> (B,), counted on a `resolution`-square lattice."""
    tick = (torch.arange(resolution, device=roi.device) + 0.5) / resolution
    in_x = (roi[..., 0:1] <= tick) & (tick < roi[..., 2:3])  # (B, N, R)
    in_y = (roi[..., 1:2] <= tick) & (tick < roi[..., 3:4])
    inside = torch.einsum("bny,bnx->byx", in_y.float(), in_x.float()) > 0
    return inside.float().mean(dim=(1, 2))


def spread(roi: Tensor) -> dict[str, float]:
    """Statistics that tell a healthy run from a collapsed one: (B, N, 4) -> mean box size, its spread, coverage.

    `size` and `size_std` are in fractions of the image side; `outside` is the share of box centres off the photo.
    """
    roi = roi.detach().float()
    size, center = sizes(roi), centers(roi)
    outside = ((center < 0) | (center > 1)).any(-1).float().mean()
    return {
        "size": size.mean().item(),
        "size_std": size.std().item(),
        "coverage": coverage(roi).mean().item(),
        "outside": outside.item(),
    }
