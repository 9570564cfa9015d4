"""What a dense tower with few tokens is: the configuration of `sfvlm.alternatives.towers.ReducedTower`.

Its import needs no more of transformers than `sfvlm.registration` allows.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

from transformers.configuration_utils import PreTrainedConfig

from ..encoder.configuration import SparseFormerConfig, layer_from_end


class ReducedTowerConfig(PreTrainedConfig):
    """A dense tower, a way to few tokens, and how many.

    Args:
        method: One of `METHODS`.
        num_tokens: Image tokens N, without the class token: a call always gives so many.
        read_layer: The hidden state a host reads, counted from the end: -1 is after the last block, -2 (LLaVA's) before it.
        dense_config: The dense tower's configuration, as `DenseTransformer` reads it.

    Raises:
        ValueError: The method is unknown or cannot give so many tokens, or no block comes before the layer.
    """

    model_type = "sfvlm_reduced"
    base_config_key = "vision_config"

    method: str = "average"
    num_tokens: int = 49
    read_layer: int = -2
    dense_config: dict[str, Any] | SparseFormerConfig | None = None
    initializer_range: float = 0.02

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """AutoModel knows the model from the first configuration on, unpickled ones too."""
        from . import towers  # noqa: F401  not before: see `sfvlm.registration`

        return super().__new__(cls)

    def __post_init__(self, **kwargs: Any) -> None:
        from .methods import check_count

        super().__post_init__(**kwargs)
        if not isinstance(self.dense_config, SparseFormerConfig):
            self.dense_config = SparseFormerConfig.from_dict(dict(self.dense_config or {}))
        depth = self.num_hidden_layers
        if not 1 <= self.read_state <= depth:
            raise ValueError(
                f"read_layer is {self.read_layer}, and the dense tower's {depth} blocks give layers -1 to -{depth}."
            )
        self.read_layer = self.read_state - depth - 1
        check_count(self.method, self.num_tokens, self.dense.teacher_grid**2, self.read_state)

    @property
    def dense(self) -> SparseFormerConfig:
        """The dense tower's configuration."""
        assert isinstance(self.dense_config, SparseFormerConfig)
        return self.dense_config

    @property
    def read_state(self) -> int:
        """The hidden state that is read, counted from the front: 0 is the blocks' input."""
        return self.read_layer if self.read_layer >= 0 else self.num_hidden_layers + 1 + self.read_layer

    @property
    def hidden_size(self) -> int:
        return self.dense.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.dense.num_hidden_layers

    @property
    def image_size(self) -> int:
        return self.dense.image_size

    @property
    def image_mean(self) -> Sequence[float]:
        return self.dense.image_mean

    @property
    def image_std(self) -> Sequence[float]:
        return self.dense.image_std

    @property
    def squashes(self) -> bool:
        return self.dense.squashes

    @property
    def crop_pct(self) -> float:
        return self.dense.crop_pct

    @property
    def resample(self) -> str:
        return self.dense.resample

    @property
    def crop_rounding(self) -> str:
        return self.dense.crop_rounding

    @property
    def has_cls_token(self) -> bool:
        return self.dense.has_cls_token

    @property
    def budget(self) -> int:
        """Image tokens of a call."""
        return self.num_tokens

    @property
    def patch_size(self) -> int:
        """Side in pixels of one cell when the tokens tile the photo."""
        return max(1, self.image_size // math.isqrt(self.num_tokens))

    def check_layers(self, layers: Sequence[int]) -> None:
        """Whether a host may read these layers, several of which it would concatenate.

        Raises:
            ValueError: The tokens were chosen for another layer, or merge so that there are others at another one.
        """
        from .methods import METHODS

        method, ours = METHODS[self.method], self.read_layer
        theirs = {layer_from_end(layer, self.num_hidden_layers) for layer in layers}
        fits = theirs == {ours} if method.schedule else ours in theirs or not method.choosing
        if not fits:
            read = " and ".join(map(str, sorted(theirs)))
            way_out = f"reduce it with read_layer={max(theirs)}" if len(theirs) == 1 else "use another method"
            raise ValueError(
                f"The host reads layer {read} of its tower, and the method {self.method!r} of this one gives the "
                f"{self.num_tokens} tokens of layer {ours}: {way_out}."
            )
