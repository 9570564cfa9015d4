"""What a segmentation model is: the configuration of `sfvlm.segmentation.model.SparseFormerForSemanticSegmentation`.

Its import needs no more of transformers than `sfvlm.registration` allows.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

from transformers.configuration_utils import PreTrainedConfig

from ..alternatives.configuration import ReducedTowerConfig
from ..encoder.configuration import SparseFormerConfig

TowerKind = Literal["sparse", "dense", "reduced"]
MapKind = Literal["boxes", "guided"]


class SegmenterConfig(PreTrainedConfig):
    """A tower, how its tokens become a map, and a linear head; `num_labels`, `id2label` and `label2id` as transformers has them.

    Args:
        tower: `"sparse"` (a SparseFormer), `"dense"` (its teacher) or `"reduced"` (the teacher by one of the cheap ways).
        tower_config: The tower's own configuration.
        num_tokens: Budget of a call that asks for no number; None for the tower's own.
        map: `"boxes"` alone, or `"guided"` by what the photo shows between them. A dense tower is its own map.
        guide_config: What the guide is made of, where there is one.
        semantic_loss_ignore_index: Pixels of this index count for nothing in the loss.
        reduce_labels: Whether the masks it learned from have 0 for no class, as ADE20K: what its processor does with them.

    Raises:
        ValueError: The tower, the map or the guide contradict each other.
    """

    model_type = "sfvlm_segmenter"

    tower: str = "sparse"
    tower_config: dict[str, Any] | SparseFormerConfig | ReducedTowerConfig | None = None
    num_tokens: int | None = None
    map: str = "boxes"
    guide_config: dict[str, Any] | None = None
    semantic_loss_ignore_index: int = 255
    reduce_labels: bool = False
    initializer_range: float = 0.02

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """AutoModelForSemanticSegmentation knows the model from the first configuration on, unpickled ones too."""
        from . import model  # noqa: F401  not before: see `sfvlm.registration`

        return super().__new__(cls)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.tower not in get_args(TowerKind):
            raise ValueError(f"tower is {self.tower!r}; it is one of {', '.join(get_args(TowerKind))}.")
        if self.map not in get_args(MapKind):
            raise ValueError(f"map is {self.map!r}; it is one of {', '.join(get_args(MapKind))}.")
        if (self.map == "guided") != (self.guide_config is not None):
            raise ValueError(
                f"map is {self.map!r}, and guide_config is {self.guide_config!r}: a guided map has one, others none."
            )
        if self.map == "guided" and self.tower != "sparse":
            raise ValueError(f"map is 'guided', and the tower is {self.tower}: the guide is for sparse ones.")
        kind = ReducedTowerConfig if self.tower == "reduced" else SparseFormerConfig
        if not isinstance(self.tower_config, PreTrainedConfig):
            self.tower_config = kind.from_dict(dict(self.tower_config or {}))
        if self.num_tokens is not None:
            self.check_budget(self.num_tokens)

    def check_budget(self, num_tokens: int) -> None:
        """Whether a call may ask for so many tokens.

        Raises:
            ValueError: The tower has one number of its own, or none gives so many.
        """
        if self.tower != "sparse":
            raise ValueError(
                f"num_tokens is {num_tokens}, and a {self.tower} tower has one number of tokens: leave it out."
            )
        self.sparse.check_budget(num_tokens)

    @property
    def sparse(self) -> SparseFormerConfig:
        """Of the tower, or of the dense one that a reduced tower holds."""
        config = self.tower_config
        return config.dense if isinstance(config, ReducedTowerConfig) else config  # type: ignore[return-value]

    @property
    def hidden_size(self) -> int:
        return self.sparse.hidden_size

    @property
    def image_size(self) -> int:
        return self.sparse.image_size

    @property
    def image_mean(self) -> Sequence[float]:
        return self.sparse.image_mean

    @property
    def image_std(self) -> Sequence[float]:
        return self.sparse.image_std
