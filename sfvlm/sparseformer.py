"""SparseFormer, whole and in data-flow order: a photo becomes a few dozen tokens that chose where to look.

    pixels -> focusing (look, move the boxes, look again) -> cortex (the teacher's blocks) -> pooled vector, tokens

Shapes: B batch, N tokens (49), P sampling points, C early-conv width, F focusing width, D cortex width, H x W photo.

| stage | inherited, CLIP ViT-L/14 at 336 px | fresh, preset sparseformer-clip-base |
|---|---|---|
| pixel_values | B x 3 x 336 x 336 | B x 3 x 224 x 224 |
| early_conv | | B x 64 x 56 x 56 |
| glimpses | B x 49 x 3 x 14 x 14 | |
| token_rois[-1] | B x 49 x 4 | B x 48 x 4 |
| sampling_points[-1] | B x 49 x 16 x 2 | B x 48 x 16 x 2 |
| focusing block (x 4) | | B x 48 x 384 |
| focusing | B x 49 x 1024 | B x 48 x 768 |
| hidden_states[0] | B x 50 x 1024 | B x 49 x 768 |
| hidden_states[-1] | B x 50 x 1024 | B x 49 x 768 |
| pooler_output | B x 768 | B x 512 |
| blocks | 24 | 8 |
| tokens the teacher would have used | 577 | 197 |
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from . import roi
from .accelerate import accelerate, example_pixels
from .blocks import AttentionPool, Block, Head, block_sizes, check_pixels
from .configuration import SparseFormerConfig

FirstBlocks = Callable[[Tensor], Tensor]  # the first look's pass through leading blocks: (B, N, D) -> (B, N, D)


@dataclass
class SparseFormerOutput(ModelOutput):
    """What the encoder returns.

    Attributes:
        pooler_output: (B, projection_dim or D) the photo as one vector, in the teacher's image-text space.
        last_hidden_state: (B, 1 + N, D) tokens after the last block, before the final norm; the class token first.
        hidden_states: L + 1 of (B, 1 + N, D): the cortex's input, then the output of each of its L blocks.
        token_rois: (B, N, 4) boxes, as they started and after every refinement; float32 fractions of the image.
        sampling_points: (B, N, P, 2) where each look read the photo, in the same fractions.
        logits: (B, num_classes) of the teacher's classifier, where it has one.
        saliency: (B, patches) how much of the teacher's attention each of its patches will get: the log of it, but for a
            constant. Only where patches are chosen by it.
        cells: (B, N) which of the teacher's patches each token is, row by row. Only where patches are chosen.
    """

    pooler_output: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    token_rois: tuple[Tensor, ...] | None = None
    sampling_points: tuple[Tensor, ...] | None = None
    logits: Tensor | None = None
    saliency: Tensor | None = None
    cells: Tensor | None = None


class Focused(NamedTuple):
    """What a focusing stage hands to the cortex."""

    tokens: Tensor  # (B, N, D)
    token_rois: tuple[Tensor, ...]
    sampling_points: tuple[Tensor, ...]
    saliency: Tensor | None = None  # (B, patches)
    cells: Tensor | None = None  # (B, N)


class UnitNorm(nn.LayerNorm):
    """A layer norm that starts with outputs of unit length, in front of what must start gently."""


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero: what it adds is nothing until it has learned something."""


class EarlyConv(nn.Module):
    """One convolution at a quarter of the resolution, shared by all sampling: (B, 3, H, W) -> (B, C, H/4, W/4)."""

    def __init__(self, conv_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, conv_dim, kernel_size=7, stride=2, padding=3)

    def forward(self, pixels: Tensor) -> Tensor:
        # Channels last: pooling is then over contiguous channels (four times faster on a CPU), and the norm needs no copy.
        x = self.conv(pixels.contiguous(memory_format=torch.channels_last))
        x = F.relu(F.max_pool2d(x, kernel_size=3, stride=2, padding=1)).permute(0, 2, 3, 1)
        return F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2)  # a norm over channels, without parameters


class SampleAndMix(nn.Module):
    """Reads the map at points inside each token's box and mixes what it read with weights the token makes itself.

    (B, C, H/4, W/4), tokens (B, N, width), boxes (B, N, 4) -> tokens (B, N, width), points (B, N, P, 2).
    Adaptive mixing: over channels, then over points (arXiv 2304.03768, section 3.2).
    """

    def __init__(self, width: int, config: SparseFormerConfig) -> None:
        super().__init__()
        self.channels, self.points_in, self.points_out = config.conv_dim, config.num_points, config.mixing_points
        eps = config.layer_norm_eps
        self.offset_norm = UnitNorm(width, eps=eps)
        self.offset = ZeroLinear(width, 2 * self.points_in, bias=False)
        self.offset_bias = nn.Parameter(torch.empty(2 * self.points_in))
        self.generator_norm = UnitNorm(width, eps=eps)
        self.generator_in = nn.Linear(width, config.generator_size)
        self.generator_out = nn.Linear(config.generator_size, self.channels**2 + self.points_in * self.points_out)
        self.out = nn.Linear(self.channels * self.points_out, width)

    def forward(self, feature_map: Tensor, tokens: Tensor, token_roi: Tensor) -> tuple[Tensor, Tensor]:
        offset = self.offset(self.offset_norm(tokens)) + self.offset_bias
        points = roi.place_points(token_roi, offset.unflatten(-1, (self.points_in, 2)))  # (B, N, P, 2)
        sampled = roi.sample(feature_map, points).to(tokens.dtype)  # (B, N, P, C)

        weights = self.generator_out(self.generator_in(self.generator_norm(tokens)))
        over_channels, over_points = weights.split([self.channels**2, self.points_in * self.points_out], dim=-1)
        mixed = sampled @ over_channels.unflatten(-1, (self.channels, self.channels))  # (B, N, P, C)
        mixed = over_points.unflatten(-1, (self.points_out, self.points_in)) @ mixed  # (B, N, 2P, C)
        return tokens + self.out(F.gelu(mixed).flatten(2)), points


class PlaceInBox(nn.Module):
    """Tells a token where its box is: tokens (B, N, width), boxes (B, N, 4) -> tokens (B, N, width)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, token_roi: Tensor) -> Tensor:
        position = roi.encode_position(token_roi, tokens.shape[-1]).to(tokens.dtype)
        return tokens + self.proj(self.norm(position))


class Refiner(nn.Module):
    """Moves and resizes the boxes from what the tokens have read: zero-initialised, so that a new one moves nothing.

    Tokens (B, N, width), boxes (B, N, 4) -> boxes (B, N, 4). Bounded unless the configuration says None: an unbounded run
    can collapse to boxes ten times the photo, where the repeated border makes all tokens alike.
    """

    def __init__(self, width: int, config: SparseFormerConfig) -> None:
        super().__init__()
        self.max_shift, self.max_log_scale = config.box_shift, config.box_log_scale
        self.norm = UnitNorm(width, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = ZeroLinear(width, 4, bias=False)

    def forward(self, tokens: Tensor, token_roi: Tensor) -> Tensor:
        delta = self.fc2(F.gelu(self.fc1(self.norm(tokens)))).float()
        if self.max_shift is None or self.max_log_scale is None:
            return roi.refine(token_roi, delta)
        return roi.confine(roi.refine(token_roi, roi.bound(delta, self.max_shift, self.max_log_scale)))


class TokenBoxes(nn.Module):
    """The learned boxes every photo starts from: (N, 4), float32 through `.half()` and `.to(dtype)`."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, 4, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TokenBoxes":
        exact = self.weight.data
        super()._apply(fn, recurse)
        if self.weight.dtype != torch.float32:  # rounded to half a pixel: take the device, keep the numbers
            self.weight.data = exact.to(self.weight.device)
        return self

    def forward(self, batch: int, num_tokens: int, frames: roi.Frames | None = None) -> Tensor:
        return roi.framed_layout(self.weight, num_tokens, frames).expand(batch, -1, -1)


class FreshFocusing(nn.Module):
    """The paper's focusing transformer: a small one that reads the photo, moves its boxes, and reads again.

        boxes --> sample + mix --> place --> attend --> MLP --> move boxes --+
                       ^                                                     |  x 4, shared weights
                       +-----------------------------------------------------+
        then: lift to the cortex width, and read once more.

    (B, 3, H, W) -> tokens (B, N, D), boxes after every step (B, N, 4), points of every look (B, N, P, 2).
    Source: arXiv 2312.01987; showlab/sparseformer, `modeling.py`.
    """

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__()
        width, eps = config.focusing_size, config.layer_norm_eps
        self.early_conv = EarlyConv(config.conv_dim)
        self.token_roi = TokenBoxes(config.num_tokens)
        self.token = nn.Parameter(torch.empty(width))  # one for all: only its box tells a token from another
        self.stage_embedding = nn.Parameter(torch.empty(config.num_focusing_steps, width))
        self.sample_and_mix = SampleAndMix(width, config)
        self.place_in_box = PlaceInBox(width, eps)
        self.block = Block(width, width // 64, 4 * width, "gelu", eps)
        self.refiner = Refiner(width, config)
        self.lift = nn.Linear(width, config.hidden_size)
        self.last_sample_and_mix = SampleAndMix(config.hidden_size, config)
        self.last_place_in_box = PlaceInBox(config.hidden_size, eps)

    def forward(self, pixels: Tensor, num_tokens: int, frames: roi.Frames | None = None) -> Focused:
        feature_map = self.early_conv(pixels)  # (B, C, H/4, W/4)
        token_roi = self.token_roi(len(pixels), num_tokens, frames)  # (B, N, 4)
        tokens = self.token.expand(len(pixels), num_tokens, -1)  # (B, N, F)
        rois, looks = [roi.on_photo(token_roi, frames)], []
        for stage in self.stage_embedding:
            tokens, points = self.sample_and_mix(feature_map, tokens + stage, rois[-1])
            tokens = self.block(self.place_in_box(tokens, token_roi))
            token_roi = self.refiner(tokens, token_roi)
            rois.append(roi.on_photo(token_roi, frames))
            looks.append(points)
        tokens = self.lift(tokens)  # (B, N, D)
        tokens, points = self.last_sample_and_mix(feature_map, tokens, rois[-1])
        return Focused(self.last_place_in_box(tokens, token_roi), tuple(rois), (*looks, points))


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
        table = self.positions.expand(len(pixels), -1, -1, -1)
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
        token_roi = self.token_roi(len(pixels), num_tokens, frames)  # (B, N, 4)
        if self.refiner is None or self.memory is None or self.memory_norm is None:
            rois, tokens = (roi.on_photo(token_roi, frames),), self.look(pixels, token_roi, frames)
            return self._seen(tokens, rois)
        tiles = roi.tile_layout(math.isqrt(num_tokens)).to(pixels.device)
        tiles = roi.framed_layout(tiles, num_tokens, frames).expand(len(pixels), -1, -1)
        seen = first_blocks(self.look(pixels, tiles, frames))  # (B, N, D)
        token_roi = self.refiner(seen, token_roi)
        tokens = self.look(pixels, token_roi, frames) + self.memory(self.memory_norm(seen))
        rois = tuple(roi.on_photo(boxes, frames) for boxes in (tiles, token_roi))
        return self._seen(tokens, rois)


class ChosenFocusing(Glimpses):
    """Ours, for hosts, whose projectors read real patches better than blurred ones: the closer look goes to whole patches.

        tiles --> look --> the first blocks --+--> where to look --> the best patches --> look --(+)--> cortex
        (whole photo)                         +------------------------- remember ----------------^

    The first look guesses what the teacher will attend to (`saliency`), for it learns just that. The patches it finds most
    worth a look become the tokens, in the order of the photo, and with them an even grid of patches, so that nothing is
    left out altogether. Choosing has no gradient: it cannot collapse.
    (B, 3, H, W) -> tokens (B, N, D), boxes (B, N, 4) of each look, points (B, N, P, 2) for showing.

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
        return self._seen(tokens, tuple(rois))

    def _focus(self, pixels: Tensor, num_tokens: int, first_blocks: FirstBlocks, frames: roi.Frames | None) -> Focused:
        batch, side = len(pixels), self.tiles_a_side
        tiles = roi.tile_layout(side).to(pixels.device).expand(batch, -1, -1)
        seen = first_blocks(self.look(pixels, tiles, frames))  # (B, side * side, D)
        saliency = self._guess(seen)  # (B, grid * grid)
        cells = self.choose(saliency, num_tokens)  # (B, N)
        boxes = roi.cell_boxes(cells, self.config.teacher_grid)
        remembered = self.memory(self.memory_norm(seen)).transpose(1, 2).unflatten(2, (side, side))
        tokens = self.look(pixels, boxes, frames) + roi.sample(remembered, roi.centers(boxes)[:, :, None])[:, :, 0]
        rois = tuple(roi.on_photo(looked_at, frames) for looked_at in (tiles, boxes))
        return self._seen(tokens, rois)._replace(saliency=saliency, cells=cells)

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
        patches = saliency.shape[1]
        if count > patches:
            raise ValueError(f"num_tokens is {count}, but the photo has {patches} patches: ask for {patches} at most.")
        with torch.no_grad():
            side, grid = math.isqrt(round(count * self.config.even_share)), self.config.teacher_grid
            worth = saliency.index_fill(1, roi.even_cells(side, grid, grid, saliency.device), math.inf)
            return worth.topk(count, dim=1).indices.sort(dim=1).values


FOCUSING = {"inherited": InheritedFocusing, "chosen": ChosenFocusing, "fresh": FreshFocusing}


@torch.compiler.assume_constant_result
def _kernel_resampling(old: int, new: int) -> Tensor:
    """(new, old): what to multiply a kernel's rows and columns with, so that it answers a resized picture as before.

    For enlarged pictures the pseudo-inverse of bilinear enlargement, for reduced ones its transpose: going up and down
    again is the identity (FlexiViT, arXiv 2212.08013, section 3.4).
    """
    small, large = sorted((old, new))
    enlarge = F.interpolate(torch.eye(small, dtype=torch.float64)[None], size=large, mode="linear")[
        0
    ].T  # (large, small)
    return (torch.linalg.pinv(enlarge).T if new > old else enlarge.T).float()


def resample_kernel(kernel: Tensor, side: int) -> Tensor:
    """A patch embedding for another patch size: (D, 3, p, p) -> (D, 3, side, side)."""
    if kernel.shape[-1] == side:
        return kernel
    weights = _kernel_resampling(kernel.shape[-1], side).to(kernel.device)
    return (weights @ kernel.float() @ weights.T).to(kernel.dtype)


def _constant(number: int) -> int:
    """The same number, counted up: torch.compile then takes it as a constant, where it would trace a symbol."""
    count = 0
    while count < number:
        count += 1
    return count


class SparseFormerModel(PreTrainedModel):
    """A sparse image encoder: `model(pixel_values, num_tokens=49)` -> `SparseFormerOutput`."""

    config_class = SparseFormerConfig
    config: SparseFormerConfig
    base_model_prefix = "sparseformer"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    # It attends by torch's SDPA whatever is asked for: a host's choice of kernels for its LLM never fails on the tower.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    # A host that is spread over devices keeps its tower on one: the class token and the blocks meet in one tensor.
    _no_split_modules = ["SparseFormerModel", "Block", "FreshFocusing", "InheritedFocusing", "ChosenFocusing"]  # noqa: RUF012

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self._focus: tuple[Tensor | None, float] = (None, 1.0)
        self.focusing = FOCUSING[config.focusing](config)
        self.cls_token = nn.Parameter(torch.empty(config.hidden_size)) if config.has_cls_token else None
        self.pre_norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.pre_norm else nn.Identity()
        )
        self.blocks = nn.ModuleList(Block(*block_sizes(config)) for _ in range(config.num_hidden_layers))
        self.head = Head(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        num_tokens: int | None = None,
        output_hidden_states: bool | int | None = None,
        return_dict: bool | None = None,
        focus: Tensor | None = None,
        focus_share: float = 1.0,
        **_: Any,
    ) -> SparseFormerOutput | tuple[Tensor, ...]:
        """Encodes photos.

        Args:
            pixel_values: (B, 3, H, W) normalised as the preprocessor does; any size from 16 pixels, any aspect ratio.
            num_tokens: The budget for this call, the configuration's `budget` by default.
            output_hidden_states: Also return the tokens after every block.
            return_dict: False for a plain tuple.
            focus: (B, 4) or (1, 4), a rectangle of each photo in fractions of it, which the boxes start in and stay
                near: what lies in it is seen as a photo of its own. Give more pixels than usual to see more.
            focus_share: Share of the tokens that go there; the others see the whole photo.
            _: What a host hands on to its tower without need, such as LLaVA-OneVision's `vision_aspect_ratio` for videos.

        Raises:
            ValueError: The pixels are not (B, 3, H, W), the budget is not positive, or a rectangle is none.
        """
        check_pixels(pixel_values)
        count = self.config.budget if num_tokens is None else num_tokens
        if count < 1:
            raise ValueError(f"num_tokens is {count}; a photo needs at least 1 token.")
        count = _constant(count)
        pixels = pixel_values.to(self.dtype)
        focus, share = self._focus if focus is None else (focus, focus_share)
        frames = None if focus is None else roi.focus_frames(focus.to(pixels.device), len(pixels), count, share)

        if isinstance(self.focusing, FreshFocusing):
            focused = self.focusing(pixels, count, frames)
        else:
            focused = self.focusing(pixels, count, self._first_blocks, frames)
        hidden = self._enter(focused.tokens)  # (B, 1 + N, D)
        hidden_states = [hidden]
        for block in self.blocks:
            hidden = self._run(block, hidden)
            hidden_states.append(hidden)
        pooled, logits = self.head(hidden)

        output = SparseFormerOutput(
            pooler_output=pooled,
            last_hidden_state=hidden,
            hidden_states=tuple(hidden_states) if self._wants_hidden_states(output_hidden_states) else None,
            token_rois=focused.token_rois,
            sampling_points=focused.sampling_points,
            logits=logits,
            saliency=focused.saliency,
            cells=focused.cells,
        )
        return output.to_tuple() if return_dict is False else output

    @contextmanager
    def focused_on(self, focus: Tensor, share: float = 1.0) -> Iterator[None]:
        """Inside, calls without a `focus` of their own take this one: for hosts, which hand on the pixels alone.

        Args:
            focus: (B, 4) or (1, 4), as in `forward`.
            share: Share of the tokens that go there.
        """
        before, self._focus = self._focus, (focus, share)
        try:
            yield
        finally:
            self._focus = before

    def accelerate(
        self, how: str | None = None, *, pixels: Tensor | None = None, num_tokens: int | None = None
    ) -> "SparseFormerModel":
        """The same model, faster on this machine for calls of that size; this one stays as it is.

        Args:
            how: A way of `sfvlm.accelerate.HOWS`; by default the fastest that loses no precision.
            pixels: (B, 3, H, W), a batch as it will come; by default one rendered scene of the model's own size.
            num_tokens: Budget of the calls; by default the model's own.

        Raises:
            ValueError: This machine cannot do it, the model is training, or the output differs by more than it may.
        """
        if pixels is None:
            pixels = example_pixels(self.config)
        return accelerate(self, how, pixels.to(self.device, self.dtype), num_tokens=num_tokens)

    def _enter(self, tokens: Tensor) -> Tensor:
        """Puts the class token in front and applies CLIP's first norm: (B, N, D) -> (B, 1 + N, D)."""
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), 1, -1), tokens], dim=1)
        return self.pre_norm(tokens)

    def _first_blocks(self, tokens: Tensor) -> Tensor:
        """The coarse pass, through blocks shared with the main one: (B, N, D) -> (B, N, D)."""
        hidden = self._enter(tokens)
        for block in self.blocks[: self.config.coarse_blocks]:
            hidden = self._run(block, hidden)
        return hidden[:, int(self.config.has_cls_token) :]

    def _run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(block.__call__, hidden)
        return block(hidden)

    def _wants_hidden_states(self, asked: bool | int | None) -> bool:
        # LLaVA in transformers 5.23 asks by layer number, and layer 0 or -1 must not read as "no".
        return bool(self.config.output_hidden_states) if asked is None else asked is not False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises every parameter explicitly: LLaVA turns implicit initialisation off, meta construction skips it.

        Called for children before parents, so a parent may overrule; not at all (for code outside transformers) for
        modules without parameters of their own.

        | tensors | distribution |
        |---|---|
        | linear, kernels, embeddings | truncated normal, `initializer_range`; biases zero |
        | early conv | Kaiming, fan out |
        | norms in front of a generator, offset or refiner | width ** -0.5, so that their output has unit length |
        | last layer of generator, offset and refiner | zero: mixing starts fixed, points on a grid, boxes at rest |
        """
        std = self.config.initializer_range
        if isinstance(module, UnitNorm):
            init.constant_(module.weight, module.normalized_shape[0] ** -0.5)
            init.zeros_(module.bias)
        elif isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
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
            init.copy_(module.token_roi.weight, roi.overlapping_layout(self.config.num_tokens))
            init.trunc_normal_(module.token, std=1.0)
            init.normal_(module.stage_embedding, std=std)
        elif isinstance(module, Glimpses):
            init.trunc_normal_(module.kernel, std=std)
            init.zeros_(module.bias)
            init.trunc_normal_(module.positions, std=std)
            if isinstance(module, InheritedFocusing):
                side = math.isqrt(self.config.num_tokens)
                init.copy_(module.token_roi.weight, roi.zoom(roi.tile_layout(side), self.config.box_zoom))
        elif isinstance(module, AttentionPool):
            init.trunc_normal_(module.query, std=std)
        elif isinstance(module, SparseFormerModel) and module.cls_token is not None:
            init.trunc_normal_(module.cls_token, std=std)
