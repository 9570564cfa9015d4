"""Maps from class names alone: a CLIP, dense or sparse, and its text tower. Nothing is trained.

names -> texts in templates -> `Vocabulary`
pixels -> tower -> its last block changed (sfvlm.dense.vocabulary) -> map in the space of texts -> cosines (B, T, h, w)
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..alternatives.methods import grid_of
from ..dense.guide import Guide, choosing
from ..dense.maps import as_map, cell_centers, coverage, dense_map, nearness, patch_map
from ..dense.vocabulary import Vocabulary, Way, block_of, last_block, owners, shared_space
from ..encoder import roi
from ..encoder.sparseformer import SparseFormerModel, SparseFormerOutput
from ..evaluate.texts import Template, TextEncoder, imagenet_templates
from ..teachers.open import DenseTransformer
from .names import Names

SHARPNESS = 10.0  # of cosines between a guide's cells and its map in the tokens' boxes
DISTANCE = 0.25  # how much of the distance between them counts beside


def vocabulary(
    text: TextEncoder, names: Names, *, threshold: float = 0.0, templates: tuple[Template, ...] | None = None
) -> Vocabulary:
    """Class names as a text tower has them, by default in CLIP's 80 templates; class 0 is the background where there is a threshold."""
    listed, owner = owners(names)
    texts = text.classifier(listed, templates or imagenet_templates())
    return Vocabulary(texts, owner, len(names), 0 if threshold else None, threshold)


def spread(vectors: Tensor, boxes: Tensor, dense: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """Each cell the mean of the tokens that lie in what is most like it, by a map of the photo.

    Args:
        vectors: (B, N, E), one a token.
        boxes: (B, N, 4), where they look.
        dense: (B, D, h, w) of any width: a guide's, which says what belongs together.
        sharpness: Of the cosines.

    Returns:
        (B, E, h, w).
    """
    size = (dense.shape[-2], dense.shape[-1])
    flat = dense.float().flatten(2).transpose(1, 2)  # (B, h * w, D)
    flat = F.normalize(flat - flat.mean(dim=1, keepdim=True), dim=-1)
    cover = coverage(boxes, size)  # (B, h * w, N)
    held = cover / cover.sum(dim=1, keepdim=True).clamp(min=1e-6)
    tokens = F.normalize(held.mT @ flat, dim=-1)  # (B, N, D) what lies in each box
    alike = sharpness * flat @ tokens.mT + nearness(boxes, size).clamp(min=1e-6).log() * DISTANCE
    return as_map(alike.softmax(dim=-1).to(vectors.dtype) @ vectors, size)


class NamedMap(nn.Module):
    """How near each cell is to each name: (B, 3, H, W) -> (B, T, h, w).

    Args:
        tower: A CLIP's dense tower, or a SparseFormer made from it.
        vocabulary: Of the same CLIP's text tower.
        way: How the last block is changed.
        num_tokens: Budget of a sparse tower; None for its own.
        beside: Another way of the same tower, budget and guide: what the tower said of the last photos is asked of it once for both.
        guide: Of a sparse tower: its map says which tokens each cell belongs to, and itself what is there. Without one, boxes alone do.

    Raises:
        ValueError: The tower shares no space with texts.
    """

    def __init__(
        self,
        tower: DenseTransformer | SparseFormerModel,
        vocabulary: Vocabulary,
        way: Way,
        num_tokens: int | None = None,
        guide: Guide | None = None,
        beside: "NamedMap | None" = None,
    ) -> None:
        super().__init__()
        self._last: list[tuple[Tensor, Any]] = [] if beside is None else beside._last
        self.tower, self.vocabulary, self.num_tokens, self.guide = tower, vocabulary, num_tokens, guide
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
            hidden = self._said(pixels, lambda: tower(pixels).hidden_states[-2])
            centers = cell_centers(size, pixels.device)[None] * torch.tensor(size[::-1], device=pixels.device)
            return patch_map(self._vectors(hidden, centers, None), size)
        guide = self.guide

        def say() -> tuple[Any, Tensor | None]:
            with nullcontext() if guide is None else choosing(tower, guide):
                output = tower(pixels, num_tokens=self.num_tokens, output_hidden_states=True, return_dict=True)
            return output, None if guide is None else guide(output, pixels, tower.head.norm)

        output, guided = self._said(pixels, say)
        boxes, hidden = output.token_rois[-1], output.hidden_states[-2]
        bias = None
        if tower.proportional is not None:
            proportion = tower.proportional([hidden.shape[1]] * config.num_hidden_layers)[-1]
            bias = None if proportion is None else proportion.bias
        vectors = self._vectors(hidden, roi.centers(boxes) * grid, bias)
        if guided is None:
            return dense_map(SparseFormerOutput(last_hidden_state=vectors, token_rois=output.token_rois), (grid, grid))
        # Two witnesses, of one weight: the tokens, spread over what is like them; and what the guide takes the teacher's own last
        # layer to say of the cell, which needs no token there.
        assert tower.head.projection is not None  # or `shared_space` would have refused the tower
        cells = tower.head.projection(guided.flatten(2).transpose(1, 2)).float()
        return F.normalize(spread(vectors, boxes, guided), dim=1) + as_map(
            F.normalize(cells, dim=-1), (guided.shape[-2], guided.shape[-1])
        )

    def _said(self, pixels: Tensor, say: Callable[[], Any]) -> Any:
        """What the tower says of these photos, once for all ways that are beside each other."""
        if not self._last or self._last[0][0] is not pixels:
            self._last[:] = [(pixels, say())]
        return self._last[0][1]

    def _vectors(self, hidden: Tensor, centers: Tensor, bias: Tensor | None) -> Tensor:
        """Each token in the space of texts: (B, [1 +] N, D) -> (B, N, E)."""
        tower = self.tower
        tokens = last_block(block_of(tower), hidden, self.way, centers, int(self.has_cls_token), bias)
        return shared_space(tower.head, tokens)
