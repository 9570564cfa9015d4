"""The cheap alternatives to a sparse tower, as towers: the same swap and the same evaluation run them.

    tower = reduce(open_teacher(host), "average", 49)          a method of `sfvlm.alternatives.methods`
    swap(model, processor, tower)
    python scripts/swap_llava_tower.py --host H --tower reduce:average --num-tokens 49 --out DIR

A `ReducedTower` is a host's own dense tower and a way to few tokens; nothing is trained. Its folders open with
transformers' `from_pretrained` after `import sfvlm`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..encoder.blocks import AttentionPool, as_asked, check_pixels, wants_hidden_states
from ..encoder.configuration import layer_from_end
from ..teachers.open import DenseTransformer, Teacher, open_teacher
from .configuration import ReducedTowerConfig
from .methods import METHODS, check_count, method_named

__all__ = ["METHODS", "REDUCE", "ReducedTower", "ReducedTowerConfig", "reduce", "reduce_host"]

REDUCE = "reduce:"  # in front of a method's name, where a tower is named


@dataclass
class ReducedOutput(BaseModelOutputWithPooling):
    """What such a tower returns: transformers' own, and where each patch went."""

    places: Tensor | None = None


class ReducedTower(PreTrainedModel):
    """A dense tower that gives few tokens at every hidden state: `tower(pixel_values)`, as `sfvlm.hosts.tower.Tower` says."""

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
    ) -> ReducedOutput | tuple[Any, ...]:
        """Encodes photos.

        Args:
            pixel_values: (B, 3, H, W) normalised as the preprocessor does.
            output_hidden_states: Whether to return them, or which of them the host reads; all are returned then.
            return_dict: False for a plain tuple.
            _: What a host hands on to its tower without need.

        Returns:
            `hidden_states`: L + 1 of (B, [1 +] N, D); merging has more tokens before the layer that is read.
            `last_hidden_state` is the last of them, before the final norm. There is no pooled vector. `places`: (B, patches) which
            of the tokens each patch became a part of, -1 where it was dropped; none where they are a grid, row by row.

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
        kept = method.run(self.dense, pixel_values.to(self.dtype), config.num_tokens, config.read_state)
        states = kept.states
        wanted = wants_hidden_states(config, asked)
        output = ReducedOutput(
            last_hidden_state=states[-1],  # type: ignore[arg-type]
            hidden_states=states if wanted else None,  # type: ignore[arg-type]
            places=kept.places,
        )
        return as_asked(config, return_dict, output)

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


AutoModel.register(ReducedTowerConfig, ReducedTower, exist_ok=True)


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


def reduce_host(host: str | Path, method: str, num_tokens: int | None, teacher: Teacher | None = None) -> ReducedTower:
    """A host's own tower with few tokens, for the layer that this host reads; of several the last.

    Args:
        host: A folder of a transformers LLaVA, LLaVA-NeXT or LLaVA-OneVision.
        method: One of `METHODS`.
        num_tokens: Image tokens of a photo or tile.
        teacher: The host's own tower, where it is open already; the reduced one then holds that one, and no copy.

    Raises:
        ValueError: As `reduce`; or no number is given, or the folder is no host with a CLIP or SigLIP.
    """
    method_named(method)
    if num_tokens is None:
        raise ValueError(f"The method {method!r} has no budget of its own: give --num-tokens.")
    if not (Path(host) / "config.json").is_file():
        raise ValueError(f"The host {host} is no folder with a config.json.")
    teacher = teacher or open_teacher(host)
    layers = getattr(AutoConfig.from_pretrained(host), "vision_feature_layer", -1)
    depth = teacher.config.num_hidden_layers
    last = max(layer_from_end(layer, depth) for layer in ([layers] if isinstance(layers, int) else layers))
    return reduce(teacher, method, num_tokens, last)
