"""Maps from class names alone: a CLIP, dense or sparse, and its text tower. Nothing is trained.

names -> texts in templates -> `Vocabulary`
pixels -> tower -> its last block changed (sfvlm.dense.vocabulary) -> map in the space of texts -> cosines (B, T, h, w)
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..alternatives.methods import grid_of
from ..dense.maps import cell_centers, dense_map, patch_map
from ..dense.vocabulary import Vocabulary, Way, block_of, last_block, owners, shared_space
from ..encoder import roi
from ..encoder.sparseformer import SparseFormerModel, SparseFormerOutput
from ..evaluate.texts import TextEncoder, imagenet_templates
from ..teachers.open import DenseTransformer
from .names import Names


def vocabulary(text: TextEncoder, names: Names, *, threshold: float = 0.0, scale: float = 40.0) -> Vocabulary:
    """Class names as a text tower has them, in CLIP's 80 templates; class 0 is the background where there is a threshold."""
    listed, owner = owners(names)
    background = 0 if threshold else None
    return Vocabulary(text.classifier(listed, imagenet_templates()), owner, len(names), background, threshold, scale)


class NamedMap(nn.Module):
    """How near each cell is to each name: (B, 3, H, W) -> (B, T, h, w).

    Args:
        tower: A CLIP's dense tower, or a SparseFormer made from it.
        vocabulary: Of the same CLIP's text tower.
        way: How the last block is changed.
        num_tokens: Budget of a sparse tower; None for its own.

    Raises:
        ValueError: The tower shares no space with texts.
    """

    def __init__(
        self,
        tower: DenseTransformer | SparseFormerModel,
        vocabulary: Vocabulary,
        way: Way,
        num_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.tower, self.vocabulary, self.num_tokens = tower, vocabulary, num_tokens
        self.way: Way = way
        self.has_cls_token = tower.config.has_cls_token
        shared_space(tower.head, torch.zeros(1, 1, tower.config.hidden_size, device=next(tower.parameters()).device))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vocabulary.similarities(self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """The map in the space of texts: (B, 3, H, W) -> (B, E, h, w)."""
        tower, config = self.tower, self.tower.config
        grid = config.teacher_grid
        if isinstance(tower, DenseTransformer):
            size = grid_of(config, pixels)
            hidden = tower(pixels).hidden_states[-2]
            centers = cell_centers(size, pixels.device)[None] * torch.tensor(size[::-1], device=pixels.device)
            return patch_map(self._vectors(hidden, centers, None), size)
        output: Any = tower(pixels, num_tokens=self.num_tokens, output_hidden_states=True, return_dict=True)
        boxes, hidden = output.token_rois[-1], output.hidden_states[-2]
        bias = None
        if tower.proportional is not None:
            proportion = tower.proportional([hidden.shape[1]] * config.num_hidden_layers)[-1]
            bias = None if proportion is None else proportion.bias
        vectors = self._vectors(hidden, roi.centers(boxes) * grid, bias)
        return dense_map(SparseFormerOutput(last_hidden_state=vectors, token_rois=output.token_rois), (grid, grid))

    def _vectors(self, hidden: Tensor, centers: Tensor, bias: Tensor | None) -> Tensor:
        """Each token in the space of texts: (B, [1 +] N, D) -> (B, N, E)."""
        tower = self.tower
        tokens = last_block(block_of(tower), hidden, self.way, centers, int(self.has_cls_token), bias)
        return shared_space(tower.head, tokens)
