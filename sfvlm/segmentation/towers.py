"""Any tower as a map of the photo: sparse, dense or reduced, by one call.

    MapOf: pixels (B, 3, H, W) -> map (B, D, h, w), after the tower's last norm
"""

from typing import Any

from torch import Tensor, nn

from ..alternatives.configuration import ReducedTowerConfig
from ..alternatives.towers import ReducedTower
from ..dense.maps import dense_map, patch_map
from ..encoder.configuration import SparseFormerConfig
from ..encoder.sparseformer import SparseFormerModel
from ..teachers.open import DenseTransformer
from .configuration import SegmenterConfig

Tower = SparseFormerModel | DenseTransformer | ReducedTower


class MapOf(nn.Module):
    """A tower and what makes a map of its tokens: (B, 3, H, W) -> (B, D, h, w).

    Args:
        tower: Of any kind.
        guide: Of a sparse one.
        num_tokens: Budget of a sparse one; None for its own.
    """

    def __init__(self, tower: Tower, guide: nn.Module | None = None, num_tokens: int | None = None) -> None:
        super().__init__()
        self.tower, self.guide, self.num_tokens = tower, guide, num_tokens

    def forward(self, pixels: Tensor) -> Tensor:
        tower: Any = self.tower
        if isinstance(tower, DenseTransformer):
            patch, extra = tower.config.teacher_patch_size, int(tower.config.has_cls_token)
            size = pixels.shape[-2] // patch, pixels.shape[-1] // patch
            return patch_map(tower.head.norm(tower(pixels).hidden_states[-1]), size, extra)
        if isinstance(tower, ReducedTower):
            return reduced_map(tower, pixels)
        output = tower(pixels, num_tokens=self.num_tokens, output_hidden_states=self.guide is not None, return_dict=True)
        if self.guide is not None:
            return self.guide(output, pixels)
        grid = tower.config.teacher_grid
        return dense_map(output, (grid, grid), norm=tower.head.norm)


def tower_of(config: SegmenterConfig) -> Tower:
    """The tower of a configuration, without weights."""
    inner = config.tower_config
    if isinstance(inner, ReducedTowerConfig):
        return ReducedTower(inner)
    assert isinstance(inner, SparseFormerConfig)
    return DenseTransformer(inner) if config.tower == "dense" else SparseFormerModel(inner)


def guide_of(config: SegmenterConfig) -> nn.Module | None:
    """The guide of a configuration, without weights; None where boxes alone make the map."""
    return None
