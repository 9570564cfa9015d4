"""From tokens and their boxes to a map, by boxes alone: the simple projection, the same for every way to few tokens.

    SparseFormer    each cell the mean of the tokens whose boxes cover it; where none does, the coarse look or the nearest tokens
    dense teacher   its patches
    reduce:         each patch the token it became a part of, or was dropped for

Shapes: B batch, N tokens, D width, h x w the map, row by row. Boxes as in `sfvlm.encoder.roi`.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..alternatives.methods import grid_of
from ..alternatives.towers import ReducedTower
from ..encoder import roi
from ..encoder.sparseformer import SparseFormerOutput
from ..teachers.open import DenseTransformer

Behind = Literal["nearest", "coarse"]
SHARPNESS = 8.0  # of the nearest tokens: at 1 / sqrt(N) of the photo's side a token counts exp(-SHARPNESS / 2) times as much as here


def dense_map(
    output: SparseFormerOutput,
    size: tuple[int, int],
    *,
    norm: nn.Module | None = None,
    behind: Behind = "nearest",
    region: Tensor | None = None,
) -> Tensor:
    """The map that a SparseFormer's boxes give: each cell the mean of the tokens, by how much of it their boxes cover.

    Args:
        output: Of any focusing stage, with or without a `focus`.
        size: (h, w) of the map, in cells. The teacher's own grid loses nothing; a finer one repeats.
        norm: The model's last norm (`model.head.norm`), put on the tokens first; None for what the blocks hand over.
        behind: What fills the part of a cell that no box covers: the nearest tokens, or the coarse look, which is of an earlier
            block and so of another space.
        region: (B, 4) or (1, 4), the part of the photo that the map is of, in fractions of it; the whole photo by default. With
            all tokens in a rectangle, that rectangle.

    Returns:
        (B, D, h, w), in the tokens' type.

    Raises:
        ValueError: The output has no boxes, the size is none, or there was no coarse look.
    """
    tokens, boxes = image_tokens(output)
    check_size(size)
    tokens = tokens if norm is None else norm(tokens)
    cover = coverage(boxes, size, region)  # (B, h * w, N) shares of a cell
    covered = cover.sum(dim=-1, keepdim=True)
    inside = cover / covered.clamp(min=1e-6)
    share = covered.clamp(max=1)
    if behind == "nearest":
        weights = share * inside + (1 - share) * nearness(boxes, size, region)
        return as_map(weights.to(tokens.dtype) @ tokens, size)
    if output.coarse_tokens is None or output.token_rois is None:
        raise ValueError("There was no coarse look to put behind the tokens: ask for behind='nearest'.")
    back = nearness(output.token_rois[0], size, region).to(tokens.dtype)
    coarse = output.coarse_tokens if norm is None else norm(output.coarse_tokens)
    return as_map((share * inside).to(tokens.dtype) @ tokens + (1 - share).to(tokens.dtype) * (back @ coarse), size)


def image_tokens(output: SparseFormerOutput) -> tuple[Tensor, Tensor]:
    """The tokens without the class token, (B, N, D), and their boxes, (B, N, 4).

    Raises:
        ValueError: The output has no boxes.
    """
    if output.token_rois is None or output.last_hidden_state is None:
        raise ValueError("A map needs a SparseFormer's output with tokens and boxes: token_rois is None.")
    boxes = output.token_rois[-1]
    return output.last_hidden_state[:, -boxes.shape[1] :], boxes


def patch_map(tokens: Tensor, size: tuple[int, int], class_tokens: int = 0) -> Tensor:
    """Tokens of a whole grid as a map: (B, [1 +] h * w, D) -> (B, D, h, w).

    Raises:
        ValueError: There are not so many.
    """
    check_size(size)
    if tokens.shape[1] - class_tokens != size[0] * size[1]:
        raise ValueError(
            f"There are {tokens.shape[1] - class_tokens} tokens, and a map of {size[0]} x {size[1]} has {size[0] * size[1]} cells."
        )
    return as_map(tokens[:, class_tokens:], size)


def placed_map(tokens: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Each patch gets the token it became a part of; a patch that was dropped, those nearest to it.

    Args:
        tokens: (B, N, D) without class token.
        places: (B, h * w) of -1 to N - 1, as `sfvlm.alternatives.methods.Kept` has them.
        size: (h, w) of the patches.

    Returns:
        (B, D, h, w).
    """
    found = tokens.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, tokens.shape[-1]))
    dropped = places < 0
    if not bool(dropped.any()):
        return as_map(found, size)
    cells = (~dropped).int().argsort(dim=1, descending=True, stable=True)[:, : tokens.shape[1]]  # (B, N) row by row
    middles = cell_centers(size, tokens.device)[cells]
    nearest = nearness(torch.cat([middles, middles], dim=-1), size).to(tokens.dtype) @ tokens
    return as_map(torch.where(dropped[..., None], nearest, found), size)


def resized(dense: Tensor, size: tuple[int, int]) -> Tensor:
    """A map of another size, bilinear as segmentation benchmarks do: (B, D, h, w) -> (B, D, *size)."""
    if dense.shape[-2:] == size:
        return dense
    return F.interpolate(dense, size=size, mode="bilinear", align_corners=False)


def reduced_map(tower: ReducedTower, pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """The map of a dense tower with few tokens, behind its last norm: (B, 3, H, W) -> (B, D, *size)."""
    output: Any = tower(pixels, return_dict=True)
    extra = int(tower.config.has_cls_token)
    tokens = tower.dense.head.norm(output.last_hidden_state)[:, extra:]
    if output.places is None:
        side = math.isqrt(tokens.shape[1])
        return resized(patch_map(tokens, (side, side)), size)
    return resized(placed_map(tokens, output.places, grid_of(tower.dense.config, pixels)), size)


def teacher_map(dense: DenseTransformer, pixels: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """A dense teacher's patches behind its last norm, at its own grid or another size: (B, 3, H, W) -> (B, D, h, w)."""
    grid = grid_of(dense.config, pixels)
    tokens = dense.head.norm(dense(pixels).hidden_states[-1])
    return resized(patch_map(tokens, grid, int(dense.config.has_cls_token)), size or grid)


def coverage(boxes: Tensor, size: tuple[int, int], region: Tensor | None = None) -> Tensor:
    """What share of each cell each box covers: (B, N, 4) -> (B, h * w, N) of 0 to 1."""
    height, width = size
    boxes = within(boxes, region)
    low, high = torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])
    columns = _overlaps(low[..., 0], high[..., 0], width)  # (B, w, N)
    rows = _overlaps(low[..., 1], high[..., 1], height)
    return (rows[:, :, None] * columns[:, None]).flatten(1, 2)


def nearness(boxes: Tensor, size: tuple[int, int], region: Tensor | None = None) -> Tensor:
    """How much each token counts in each cell, by the distance of its box's middle: (B, N, 4) -> (B, h * w, N), sums 1."""
    cells = cell_centers(size, boxes.device)
    distance = torch.cdist(cells.expand(len(boxes), -1, -1), roi.centers(within(boxes, region)))
    return (-0.5 * SHARPNESS * boxes.shape[1] * distance.square()).softmax(dim=-1)


def within(boxes: Tensor, region: Tensor | None) -> Tensor:
    """Boxes in fractions of a part of the photo: (B, N, 4), parts (B, 4) or (1, 4) -> (B, N, 4)."""
    boxes = boxes.float()
    if region is None:
        return boxes
    corner, extent = region[:, None, :2].float(), roi.sizes(region[:, None].float())
    return torch.cat([(boxes[..., :2] - corner) / extent, (boxes[..., 2:] - corner) / extent], dim=-1)


def cell_centers(size: tuple[int, int], device: torch.device) -> Tensor:
    """The middles of a map's cells, row by row, as (x, y) in fractions of it: (h * w, 2)."""
    height, width = size
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)


def as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h * w, D) -> (B, D, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def check_size(size: tuple[int, int]) -> None:
    """Raises ValueError unless a map can have so many cells."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {tuple(size)}; a map has (rows, columns) of cells, at least 1 each.")


def _overlaps(low: Tensor, high: Tensor, count: int) -> Tensor:
    """What share of each of `count` equal parts of 0 to 1 lies between low and high: each (B, N) -> (B, count, N)."""
    start = torch.arange(count, device=low.device)[:, None] / count
    reach = torch.minimum(high[:, None], start + 1 / count) - torch.maximum(low[:, None], start)
    return (reach * count).clamp(0, 1)
