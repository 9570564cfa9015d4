"""The cheap alternatives to a sparse tower, as towers: the same swap and the same evaluation run them.

    tower = reduce(open_teacher(host), "average", 49)          a method of `sfvlm.reduce_methods`
    swap(model, processor, tower)
    python scripts/swap_llava_tower.py --host H --tower reduce:average --num-tokens 49 --out DIR

A `ReducedTower` is a host's own dense tower and a way to few tokens; nothing is trained. Its folders open with
transformers' `from_pretrained` after `import sfvlm`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .blocks import AttentionPool, check_pixels
from .configuration import SparseFormerConfig, layer_from_end
from .reduce_methods import METHODS, check_count, method_named
from .teachers import DenseTransformer, Teacher, open_teacher

__all__ = ["METHODS", "REDUCE", "ReducedTower", "ReducedTowerConfig", "reduce", "reduce_host"]

REDUCE = "reduce:"  # in front of a method's name, where a tower is named


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

    def __post_init__(self, **kwargs: Any) -> None:
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


class ReducedTower(PreTrainedModel):
    """A dense tower that gives few tokens at every hidden state: `tower(pixel_values)`, as `sfvlm.tower.Tower` says."""

    config_class = ReducedTowerConfig
    config: ReducedTowerConfig
    base_model_prefix = "reduced"
    main_input_name = "pixel_values"
    # It attends by torch's SDPA whatever is asked for: a host's choice of kernels for its LLM never fails on the tower.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    # A host that is spread over devices keeps its tower on one.
    _no_split_modules = ["ReducedTower", "DenseTransformer", "Block"]  # noqa: RUF012

    def __init__(self, config: ReducedTowerConfig) -> None:
        super().__init__(config)
        self.dense = DenseTransformer(config.dense)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encodes photos.

        Args:
            pixel_values: (B, 3, H, W) normalised as the preprocessor does.
            output_hidden_states: Whether to return them, or which of them the host reads; all are returned then.
            return_dict: False for a plain tuple.
            _: What a host hands on to its tower without need.

        Returns:
            `hidden_states`: L + 1 of (B, [1 +] N, D); merging has more tokens before the layer that is read.
            `last_hidden_state` is the last of them, before the final norm. There is no pooled vector.

        Raises:
            ValueError: The pixels are not (B, 3, H, W) or have too few patches, or another layer is read than was said.
        """
        check_pixels(pixel_values)
        config, asked = self.config, output_hidden_states
        if not isinstance(asked, bool | None):
            config.check_layers([asked] if isinstance(asked, int) else asked)
        patch = config.dense.teacher_patch_size
        patches = (pixel_values.shape[-2] // patch) * (pixel_values.shape[-1] // patch)
        check_count(config.method, config.num_tokens, patches, config.read_state)
        method = METHODS[config.method]
        states = method.run(self.dense, pixel_values.to(self.dtype), config.num_tokens, config.read_state)
        # Layer 0 or -1 must not read as "no".
        wanted = config.output_hidden_states if asked is None else asked is not False
        output = BaseModelOutputWithPooling(last_hidden_state=states[-1], hidden_states=states if wanted else None)  # type: ignore[arg-type]
        as_tuple = not (config.return_dict if return_dict is None else return_dict)
        return output.to_tuple() if as_tuple else output

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises every parameter explicitly: LLaVA turns implicit initialisation off, meta construction skips it."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, AttentionPool):
            init.trunc_normal_(module.query, std=std)
        elif isinstance(module, DenseTransformer):
            init.trunc_normal_(module.positions, std=std)
            if module.cls_token is not None:
                init.trunc_normal_(module.cls_token, std=std)


def reduce(
    dense_or_teacher: DenseTransformer | Teacher, method: str, num_tokens: int, read_layer: int = -2
) -> ReducedTower:
    """A dense tower that gives few tokens, without any training.

    The tower holds the dense one itself, not a copy: moving one moves the other.

    Args:
        dense_or_teacher: Such as `open_teacher(host)`, which opens a LLaVA's own tower.
        method: One of `METHODS`.
        num_tokens: Image tokens N, without the class token.
        read_layer: The hidden state that the host reads: its `vision_feature_layer`.

    Raises:
        ValueError: The method is unknown or cannot give so many tokens, or there is no such layer.
    """
    dense = dense_or_teacher.model if isinstance(dense_or_teacher, Teacher) else dense_or_teacher
    config = ReducedTowerConfig(
        method=method, num_tokens=num_tokens, read_layer=read_layer, dense_config=dense.config.to_dict()
    )
    with torch.device("meta"):  # its tensors are the dense tower's
        tower = ReducedTower(config)
    tower.dense = dense
    return tower.eval()


def reduce_host(host: str | Path, method: str, num_tokens: int | None) -> ReducedTower:
    """A host's own tower with few tokens, for the layer that this host reads; of several the last.

    Args:
        host: A folder of a transformers LLaVA, LLaVA-NeXT or LLaVA-OneVision.
        method: One of `METHODS`.
        num_tokens: Image tokens of a photo or tile.

    Raises:
        ValueError: As `reduce`; or no number is given, or the folder is no host with a CLIP or SigLIP.
    """
    method_named(method)
    if num_tokens is None:
        raise ValueError(f"The method {method!r} has no budget of its own: give --num-tokens.")
    if not (Path(host) / "config.json").is_file():
        raise ValueError(f"The host {host} is no folder with a config.json.")
    teacher = open_teacher(host)
    layers = getattr(AutoConfig.from_pretrained(host), "vision_feature_layer", -1)
    depth = teacher.config.num_hidden_layers
    last = max(layer_from_end(layer, depth) for layer in ([layers] if isinstance(layers, int) else layers))
    return reduce(teacher, method, num_tokens, last)
