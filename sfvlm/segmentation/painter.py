"""One photo and the class names that a person gives, by a CLIP: what its dense tower and the sparse one see where.

photo, names -> each side's probabilities -> classes (H, W) of the photo's own size -> shares, and pictures in `overlays`
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..dense.guide import Guide
from ..dense.maps import resized
from ..dense.metrics import IGNORED
from ..dense.vocabulary import Vocabulary, Way, names_of, owners
from ..encoder.sparseformer import SparseFormerModel
from ..evaluate.texts import TextEncoder
from ..teachers.open import DenseTransformer
from .open_vocabulary import NamedMap
from .views import normalized, whole_view

# Of CLIP's 80 templates the seven that its authors found to do as well (openai/CLIP, Prompt_Engineering_for_ImageNet.ipynb).
TEMPLATES = (
    "itap of a {c}.", "a bad photo of the {c}.", "a origami {c}.", "a photo of the large {c}.", "a {c} in a video game.",
    "art of the {c}.", "a photo of the small {c}.",
)  # fmt: skip
LONGEST = 640  # pixels of a side: the maps have 14 cells, and more pixels of them say no more
MOST_CLASSES = 64


class Painted(NamedTuple):
    """What one side sees.

    Attributes:
        tokens: Image tokens.
        classes: (H, W) of the photo's size, or of a smaller copy of it; `IGNORED` where nothing is sure.
        shares: Of the photo, by class, the largest first.
    """

    tokens: int
    classes: NDArray[np.integer]
    shares: dict[str, float]


class Painter:
    """A CLIP, dense and sparse, to maps of classes.

    Args:
        dense: The CLIP's dense tower.
        text: Its text tower.
        sparse: A SparseFormer that was made from it.
        guide: The sparse one's, where it has one.

    Raises:
        ValueError: A tower shares no space with texts, or the sparse one is not of the teacher's size.
    """

    def __init__(
        self, dense: DenseTransformer, text: TextEncoder, sparse: SparseFormerModel, guide: Guide | None = None
    ) -> None:
        self.dense, self.text, self.sparse, self.guide = dense, text, sparse, guide
        if dense.config.embedding_size != sparse.config.embedding_size:
            raise ValueError(
                f"The sparse tower gives vectors of {sparse.config.embedding_size} numbers, and the dense one of "
                f"{dense.config.embedding_size}: name the CLIP that it was made from."
            )

    @torch.inference_mode()
    def paint(
        self,
        image: Image.Image,
        lines: Sequence[str],
        way: Way = "sclip",
        num_tokens: int | None = None,
        threshold: float = 0.0,
    ) -> dict[str, Painted]:
        """What each side sees, `"dense"` first.

        Args:
            image: The photo.
            lines: A class each; several names of one are parted by commas.
            way: How the last block is changed.
            num_tokens: Budget of the sparse side; None for its own.
            threshold: A pixel whose best class is less probable is left as it is.

        Raises:
            ValueError: There are not two classes, or too many, or there is no such budget.
        """
        names = tuple(names_of(line) for line in lines if line.strip(" ,;"))
        if not 2 <= len(names) <= MOST_CLASSES:
            raise ValueError(
                f"There are {len(names)} classes, and pixels are told apart by 2 to {MOST_CLASSES}: name them, one a line."
            )
        if num_tokens is not None:
            self.sparse.config.check_budget(num_tokens)
        listed, owner = owners(names)
        texts = self.text.classifier(listed, TEMPLATES)
        words = Vocabulary(texts, owner, len(names), IGNORED if threshold else None, threshold)
        sides: dict[str, tuple[Any, NamedMap, int]] = {
            "dense": (self.dense.config, NamedMap(self.dense, words, way), self.dense.config.teacher_grid**2),
            "sparse": (
                self.sparse.config,
                NamedMap(self.sparse, words, way, num_tokens, self.guide),
                num_tokens or self.sparse.config.budget,
            ),
        }
        size = shown_size(image)
        found = {}
        for side, (config, run, tokens) in sides.items():
            pixels = normalized(whole_view(image, config)[None], config)
            classes = words.decide(resized(run(pixels).float(), size))[0].numpy()
            found[side] = Painted(tokens, classes, shares_of(classes, [each[0] for each in names]))
        return found


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of a map of a photo: its own, but for a large one."""
    scale = min(1.0, LONGEST / max(image.size))
    return max(1, round(scale * image.height)), max(1, round(scale * image.width))


def shares_of(classes: NDArray[np.integer], names: Sequence[str]) -> dict[str, float]:
    """How much of a map each class covers, the largest first; those that cover none are left out."""
    shares = {name: float((classes == number).mean()) for number, name in enumerate(names)}
    return {name: share for name, share in sorted(shares.items(), key=lambda pair: -pair[1]) if share}


def agreement(painted: dict[str, Painted]) -> float:
    """Share of the pixels that dense and sparse call the same."""
    return float((painted["dense"].classes == painted["sparse"].classes).mean())
