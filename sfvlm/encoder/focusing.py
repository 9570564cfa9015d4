"""The three focusing stages: where a photo is looked at, and what each look becomes.

    fresh       the paper's: a small transformer reads points in boxes, and moves the boxes, four times over
    inherited   ours: boxes that move, embedded as the teacher embeds its patches
    chosen      ours: the teacher's own patches, those that it would attend to

The first is in `fresh`; `boxes` holds what all three are made of. Each takes (B, 3, H, W) and a budget N, and gives `Focused`.
Shapes as in `sparseformer.py`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from . import roi
from .boxes import Focused, Refiner, TokenBoxes, UnitNorm, ZeroLinear
from .configuration import SparseFormerConfig
from .fresh import FreshFocusing, SampleAndMix

FirstBlocks = Callable[[Tensor], Tensor]  # the first look's pass through leading blocks: (B, N, D) -> (B, N, D)


class Glimpses(nn.Module):
    """What a box holds, as a token: a glimpse, embedded by the teacher's own patch and position embeddings."""

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__()
        self.config = config
        width, glimpse = config.hidden_size, config.glimpse_size
        self.kernel = nn.Parameter(torch.empty(width, 3, glimpse, glimpse))
        self.bias = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(width, config.teacher_grid, config.teacher_grid))

    def look(self, pixels: Tensor, token_roi: Tensor, frames: roi.Frames | None = None) -> Tensor:
        """Glimpses, embedded and placed: (B, 3, H, W), (B, N, 4) -> (B, N, D)."""
        on_photo = roi.on_photo(token_roi, frames)
        glimpses = roi.sample_glimpses(pixels, on_photo, self.config.glimpse_size)  # (B, N, 3, side, side)
        tokens = F.linear(glimpses.flatten(2), self.kernel.flatten(1), self.bias)
        table = self.positions.expand(pixels.shape[0], -1, -1, -1)
        return tokens + roi.sample(table, roi.centers(token_roi)[:, :, None])[:, :, 0]

    def _seen(self, tokens: Tensor, rois: tuple[Tensor, ...]) -> Focused:
        """The tokens, with the boxes on the photo and a few points of each look."""
        return Focused(tokens, rois, tuple(roi.glimpse_points(boxes, 4) for boxes in rois))


class InheritedFocusing(Glimpses):
    """Ours: a box is a glimpse, embedded by the teacher's own patch and position embeddings.

        tiles --> look --> the first blocks --+--> move boxes --> look --(+)--> cortex
        (whole photo)                         +----- remember ------------^

    The first look tiles the photo coarsely and runs through the first few of the teacher's blocks. What it saw moves the boxes of
    the second, closer look, and is added to it by a zero-initialised layer, so that nothing outside the boxes is lost.
    (B, 3, H, W) -> tokens (B, N, D), boxes (B, N, 4) of each look, points (B, N, P, 2) for showing.

    With one box a teacher patch, an untrained stage gives the teacher's own patch tokens.
    """

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.token_roi = TokenBoxes(config.num_tokens)
        self.refiner = Refiner(width, config) if config.coarse_blocks else None
        self.memory_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.coarse_blocks else None
        self.memory = ZeroLinear(width, width) if config.coarse_blocks else None

    def forward(
        self,
        pixels: Tensor,
        num_tokens: int,
        first_blocks: FirstBlocks,
        frames: roi.Frames | None = None,
    ) -> Focused:
        token_roi = self.token_roi(pixels.shape[0], num_tokens, frames)  # (B, N, 4)
        if self.refiner is None or self.memory is None or self.memory_norm is None:
            rois, tokens = (roi.on_photo(token_roi, frames),), self.look(pixels, token_roi, frames)
            return self._seen(tokens, rois)
        tiles = roi.tile_layout(math.isqrt(num_tokens), pixels.device)
        tiles = roi.framed_layout(tiles, num_tokens, frames).expand(pixels.shape[0], -1, -1)
        seen = first_blocks(self.look(pixels, tiles, frames))  # (B, N, D)
        token_roi = self.refiner(seen, token_roi)
        tokens = self.look(pixels, token_roi, frames) + self.memory(self.memory_norm(seen))
        rois = tuple(roi.on_photo(boxes, frames) for boxes in (tiles, token_roi))
        return self._seen(tokens, rois)._replace(coarse=seen)


class ChosenFocusing(Glimpses):
    """Ours: the closer look goes to whole patches, which a host's projector reads better than blurred ones.

        tiles --> look --> the first blocks --+--> where to look --> the best patches --> look --(+)--> cortex: tokens, context
        (whole photo)                         +------------------------- remember ----------------^

    The first look guesses what the teacher will attend to (`saliency`), for it learns just that. Of so many tokens as
    `even_share` says, each is the best patch of a region of an even grid; the others are the best of the rest. A host wants
    tokens from everywhere, the pooled vector most from where there is most to see. The best that are left then are looked at
    too, as context: tokens attend to them in the leading blocks, and nobody is handed them. Choosing has no gradient: it
    cannot collapse.
    (B, 3, H, W) -> tokens (B, N, D), context (B, M, D), boxes (B, N, 4) of each look, points (B, N, P, 2) for showing.

    With one token a teacher patch, an untrained stage gives the teacher's own patch tokens.
    """

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.tiles_a_side = math.isqrt(config.num_tokens)
        self.guesses_a_side = math.ceil(config.teacher_grid / self.tiles_a_side)  # of each tile
        self.saliency_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.saliency = nn.Linear(width, self.guesses_a_side**2)
        self.memory_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.memory = ZeroLinear(width, width)

    def forward(
        self,
        pixels: Tensor,
        num_tokens: int,
        first_blocks: FirstBlocks,
        frames: roi.Frames | None = None,
    ) -> Focused:
        if frames is None:
            return self._focus(pixels, num_tokens, first_blocks, None)
        closer = self._focus(pixels, frames.inside, first_blocks, frames.rectangle)
        if frames.inside == num_tokens:
            return closer
        whole = self._focus(pixels, num_tokens - frames.inside, first_blocks, None)
        tokens = torch.cat([whole.tokens, closer.tokens], dim=1)
        rois = (torch.cat(pair, dim=1) for pair in zip(whole.token_rois, closer.token_rois, strict=True))
        return self._seen(tokens, tuple(rois))._replace(
            context=_joined(whole.context, closer.context),
            context_rois=_joined(whole.context_rois, closer.context_rois),
            coarse=_joined(whole.coarse, closer.coarse),
        )

    def _focus(self, pixels: Tensor, num_tokens: int, first_blocks: FirstBlocks, frames: roi.Frames | None) -> Focused:
        batch, side = pixels.shape[0], self.tiles_a_side
        tiles = roi.tile_layout(side, pixels.device).expand(batch, -1, -1)
        seen = first_blocks(self.look(pixels, tiles, frames))  # (B, side * side, D)
        saliency = self._guess(seen)  # (B, grid * grid)
        cells = self.choose(saliency, num_tokens)  # (B, N)
        context = self.choose_context(saliency, cells)  # (B, M)
        boxes = roi.cell_boxes(torch.cat([cells, context], dim=1), self.config.teacher_grid)
        remembered = self.memory(self.memory_norm(seen)).transpose(1, 2).unflatten(2, (side, side))
        tokens = self.look(pixels, boxes, frames) + roi.sample(remembered, roi.centers(boxes)[:, :, None])[:, :, 0]
        tiles, boxes = roi.on_photo(tiles, frames), roi.on_photo(boxes, frames)
        focused = self._seen(tokens[:, :num_tokens], (tiles, boxes[:, :num_tokens]))
        focused = focused._replace(saliency=saliency, cells=cells, coarse=seen)
        if not context.shape[1]:
            return focused
        return focused._replace(context=tokens[:, num_tokens:], context_rois=boxes[:, num_tokens:])

    def _guess(self, seen: Tensor) -> Tensor:
        """Each tile's guesses, laid out and read at the teacher's patches: (B, tiles, D) -> (B, patches)."""
        each, side = self.guesses_a_side, self.tiles_a_side
        guesses = self.saliency(self.saliency_norm(seen)).float().unflatten(2, (each, each)).unflatten(1, (side, side))
        fine = guesses.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, None]  # (B, 1, side * each, side * each)
        if fine.shape[-1] != self.config.teacher_grid:
            fine = F.adaptive_avg_pool2d(fine, self.config.teacher_grid)
        return fine.flatten(1)

    def choose(self, saliency: Tensor, count: int) -> Tensor:
        """Which patches to look at: (B, patches) -> (B, count), in the order of the photo.

        Raises:
            ValueError: There are not so many patches.
        """
        self.config.check_budget(count)
        with torch.no_grad():
            side, grid = math.isqrt(round(count * self.config.even_share)), self.config.teacher_grid
            places = torch.arange(grid, device=saliency.device) * side // grid
            region = (side * places[:, None] + places).flatten()  # (patches,) of an even side x side grid
            inside = region == torch.arange(side * side, device=saliency.device)[:, None]  # (regions, patches)
            best = saliency[:, None].masked_fill(~inside, -math.inf).argmax(dim=2)  # (B, regions)
            worth = saliency.scatter(1, best, math.inf)
            return worth.topk(count, dim=1).indices.sort(dim=1).values

    def choose_context(self, saliency: Tensor, cells: Tensor) -> Tensor:
        """Which further patches to look at, the best of the rest: (B, patches), (B, N) -> (B, M), in the order of the photo."""
        count = self.config.context_size(cells.shape[1])
        with torch.no_grad():
            rest = saliency.scatter(1, cells, -math.inf)
            return rest.topk(count, dim=1).indices.sort(dim=1).values


def _joined(*parts: Tensor | None) -> Tensor | None:
    """Along the tokens, what there is."""
    found = [part for part in parts if part is not None]
    return torch.cat(found, dim=1) if found else None


FOCUSING = {"inherited": InheritedFocusing, "chosen": ChosenFocusing, "fresh": FreshFocusing}


def init_focusing(module: nn.Module, config: SparseFormerConfig) -> bool:
    """Initialises, in place, the parameters of what only focusing stages have; False for any other module.

    | tensors | distribution |
    |---|---|
    | norms in front of a generator, offset or refiner | width ** -0.5, so that their output has unit length |
    | last layer of generator, offset and refiner | zero: mixing starts fixed, points on a grid, boxes at rest |
    | boxes | tiles: overlapping ones for fresh focusing, zoomed ones for inherited |
    | kernels, embeddings | truncated normal, `initializer_range` |
    """
    std = config.initializer_range
    if isinstance(module, UnitNorm):
        init.constant_(module.weight, module.normalized_shape[0] ** -0.5)
        init.zeros_(module.bias)
    elif isinstance(module, ZeroLinear):
        init.zeros_(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, SampleAndMix):
        whole = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
        points = roi.glimpse_points(whole, math.isqrt(module.points_in)).flatten() - 0.5
        if len(points) == len(module.offset_bias):
            init.copy_(module.offset_bias, points)
        else:
            init.uniform_(module.offset_bias, -0.5, 0.5)
        init.zeros_(module.generator_out.weight)
        over_channels = nn.init.xavier_uniform_(torch.empty(module.channels, module.channels))
        over_points = nn.init.xavier_uniform_(torch.empty(module.points_out, module.points_in))
        init.copy_(module.generator_out.bias, torch.cat([over_channels.flatten(), over_points.flatten()]))
    elif isinstance(module, FreshFocusing):
        init.copy_(module.token_roi.weight, roi.overlapping_layout(config.num_tokens))
        init.trunc_normal_(module.token, std=1.0)
        init.normal_(module.stage_embedding, std=std)
    elif isinstance(module, Glimpses):
        init.trunc_normal_(module.kernel, std=std)
        init.zeros_(module.bias)
        init.trunc_normal_(module.positions, std=std)
        if isinstance(module, InheritedFocusing):
            side = math.isqrt(config.num_tokens)
            init.copy_(module.token_roi.weight, roi.zoom(roi.tile_layout(side), config.box_zoom))
    else:
        return False
    return True
