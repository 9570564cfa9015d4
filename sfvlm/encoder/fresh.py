"""The paper's focusing stage: a small transformer that reads points in boxes (arXiv 2312.01987).

Shapes as in `sparseformer.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import roi
from .blocks import Block
from .boxes import Focused, Refiner, TokenBoxes, UnitNorm, ZeroLinear
from .configuration import SparseFormerConfig


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
        token_roi = self.token_roi(pixels.shape[0], num_tokens, frames)  # (B, N, 4)
        tokens = self.token.expand(pixels.shape[0], num_tokens, -1)  # (B, N, F)
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
