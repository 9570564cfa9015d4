"""Ranks class names for a photo, by a CLIP with its dense tower and with a sparse one."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..encoder.folder import open_student
from ..encoder.sparseformer import SparseFormerModel
from ..photos.views import tower_pixels
from ..teachers.open import DenseTransformer, open_teacher
from ..zoo.names import resolve
from .texts import fill, open_text_encoder

TEMPLATE = "a picture of a {c}"


class Ranker:
    """A CLIP and a sparse tower that was made from it.

    Args:
        clip: A teacher with a text tower, as `open_teacher` takes it.
        tower: SparseFormer folder or name of the zoo.

    Raises:
        ValueError: One cannot be opened, there is no text tower, or the two do not share a space.
    """

    def __init__(self, clip: str = "clip-tiny", tower: str | Path = "sparseformer-tiny-49") -> None:
        dense = open_teacher(clip).model  # first: it says in one sentence what cannot be opened
        text = open_text_encoder(clip)
        if text is None:
            raise ValueError(f"{clip} has no text tower, so that there are no class names to rank.")
        self.text, self.dense, self.sparse = text, dense, open_student(resolve(tower)).eval()
        ours, theirs = self.sparse.config.embedding_size, self.dense.config.embedding_size
        if ours != theirs:
            raise ValueError(
                f"{tower} gives vectors of {ours} numbers, and {clip} of {theirs}: it is not made from it."
            )

    @property
    def tokens(self) -> dict[str, int]:
        """Image tokens of each side."""
        return {"dense": self.dense.config.teacher_grid**2, "sparse": self.sparse.config.budget}

    @torch.no_grad()
    def rank(self, image: Image.Image, names: Sequence[str], template: str = TEMPLATE) -> dict[str, dict[str, float]]:
        """Probabilities of the names for each side, the likeliest first.

        Raises:
            ValueError: There are fewer than two names, or the template has no place for one.
        """
        names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
        if len(names) < 2:
            raise ValueError("Type at least two class names, one a line.")
        texts = self.text([fill(template, name) for name in names])  # (K, E)
        dense = self.dense(_pixels(image, self.dense)).pooled
        sparse = self.sparse(_pixels(image, self.sparse)).pooler_output
        pooled = {"dense": dense, "sparse": sparse}
        return {side: _ranked(each, texts, self.text.scale, names) for side, each in pooled.items()}


def _pixels(image: Image.Image, tower: DenseTransformer | SparseFormerModel) -> Tensor:
    """Each tower's own: a sparse one may have learned from other sizes than its CLIP."""
    return tower_pixels([image], tower.config, next(tower.parameters()))


def _ranked(pooled: Tensor, texts: Tensor, scale: float, names: list[str]) -> dict[str, float]:
    shares = (scale * F.normalize(pooled.float(), dim=-1) @ texts.T).softmax(-1)[0].tolist()
    return dict(sorted(zip(names, shares, strict=True), key=lambda each: -each[1]))
