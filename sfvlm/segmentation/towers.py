"""Any tower as a map of the photo: sparse, dense or reduced, by one call.

MapOf: pixels (B, 3, H, W) -> map (B, D, h, w), after the tower's last norm
"""

from typing import Any

from torch import Tensor, nn

from ..alternatives.configuration import ReducedTowerConfig
from ..alternatives.methods import grid_of
from ..alternatives.towers import ReducedTower
from ..dense.guide import Guide, GuideConfig, guided_map
from ..dense.maps import dense_map, reduced_map, teacher_map
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

    def __init__(self, tower: Tower, guide: Guide | None = None, num_tokens: int | None = None) -> None:
        super().__init__()
        self.tower, self.guide, self.num_tokens = tower, guide, num_tokens

    def forward(self, pixels: Tensor) -> Tensor:
        tower: Any = self.tower
        if isinstance(tower, DenseTransformer):
            return teacher_map(tower, pixels)
        if isinstance(tower, ReducedTower):
            return reduced_map(tower, pixels, grid_of(tower.config.dense, pixels))
        if self.guide is not None:
            return guided_map(tower, self.guide, pixels, self.num_tokens)
        output = tower(pixels, num_tokens=self.num_tokens, return_dict=True)
        grid = tower.config.teacher_grid
        return dense_map(output, (grid, grid), norm=tower.head.norm)


def tower_of(config: SegmenterConfig) -> Tower:
    """The tower of a configuration, without weights."""
    inner = config.tower_config
    if isinstance(inner, ReducedTowerConfig):
        return ReducedTower(inner)
    assert isinstance(inner, SparseFormerConfig)
    return DenseTransformer(inner) if config.tower == "dense" else SparseFormerModel(inner)


def guide_of(config: SegmenterConfig) -> Guide | None:
    """The guide of a configuration, without weights; None where boxes alone make the map."""
    return None if config.guide_config is None else Guide(GuideConfig.from_dict(dict(config.guide_config)))
