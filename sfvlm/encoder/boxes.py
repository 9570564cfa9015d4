"""What focusing stages share: what they hand on, boxes that are learned and moved, and layers that start gently.

Boxes are (B, N, 4), corners in fractions of the photo, float32: see `roi`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import roi
from .configuration import SparseFormerConfig


class Focused(NamedTuple):
    """What a focusing stage hands to the cortex."""

    tokens: Tensor  # (B, N, D)
    token_rois: tuple[Tensor, ...]
    sampling_points: tuple[Tensor, ...]
    saliency: Tensor | None = None  # (B, patches)
    cells: Tensor | None = None  # (B, N)
    context: Tensor | None = None  # (B, M, D)
    context_rois: Tensor | None = None  # (B, M, 4)
    coarse: Tensor | None = None  # (B, tiles, D) what the first look saw, in the boxes of token_rois[0]


class UnitNorm(nn.LayerNorm):
    """A layer norm that starts with outputs of unit length, in front of what must start gently."""


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero: what it adds is nothing until it has learned something."""


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
