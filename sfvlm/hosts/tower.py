"""What a host asks of a tower, and our encoder as open_clip's `model.visual`.

    LLaVA, LLaVA-NeXT, LLaVA-OneVision    a `Tower`: hidden states of all layers, one row a token   -> sfvlm.swap
    open_clip                             `swap_open_clip(clip, tower)`: one vector a photo

A `SparseFormerModel` is a `Tower` as it is. Shapes: B batch, N tokens, D width.
Sources: transformers 5.23, `models/llava*/modeling_*.py` and `processing_*.py`; open_clip 3.3, `model.py`, `factory.py`.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from ..encoder.sparseformer import SparseFormerModel


class TowerConfig(Protocol):
    """What is read of a tower's configuration; a host's folder can only be saved when it is a registered PreTrainedConfig.

    Attributes:
        hidden_size: Width D of a token.
        num_hidden_layers: Blocks L, so that there are L + 1 hidden states.
        image_size: Side of the photos it was made for, in pixels.
        image_mean, image_std: How the pixels are normalised.
        squashes: Whether a photo is squashed to the square; else its middle is taken.
        has_cls_token: Whether a class token stands in front of the image tokens.
        budget: Image tokens N of a call, the class token not counted.
        patch_size: `image_size // patch_size` is the side of the token grid, for budgets that are square.
    """

    @property
    def hidden_size(self) -> int: ...

    @property
    def num_hidden_layers(self) -> int: ...

    @property
    def image_size(self) -> int: ...

    @property
    def image_mean(self) -> Sequence[float]: ...

    @property
    def image_std(self) -> Sequence[float]: ...

    @property
    def squashes(self) -> bool: ...

    @property
    def has_cls_token(self) -> bool: ...

    @property
    def budget(self) -> int: ...

    @property
    def patch_size(self) -> int: ...


class Tower(Protocol):
    """What transformers' LLaVA calls: a module with this configuration and this call.

    `hidden_states` holds the blocks' input and each block's output, (B, [1 +] N, D), in the tower's own dtype, which must
    be the projector's. The host asks by layer number (5.23) or by True (before), and writes its own `pooler_output` into
    the returned object. Parameters count as usual: nothing here stops gradients.
    """

    @property
    def config(self) -> TowerConfig: ...

    def __call__(
        self, pixel_values: Tensor, *, output_hidden_states: bool | int | list[int], return_dict: bool
    ) -> ModelOutput: ...


TOWER_FIELDS = (
    "hidden_size", "num_hidden_layers", "image_size", "image_mean", "image_std", "squashes", "has_cls_token", "budget",
    "patch_size",
)  # fmt: skip


def check_tower(tower: Any) -> None:
    """Raises ValueError unless it is a module whose configuration has every field of `TowerConfig`."""
    if not isinstance(tower, nn.Module):
        raise ValueError(f"A tower is a torch module, and this is a {type(tower).__name__}: open a folder first.")
    missing = [name for name in TOWER_FIELDS if not hasattr(getattr(tower, "config", None), name)]
    if missing:
        raise ValueError(f"{type(tower).__name__} is no tower: its configuration lacks {', '.join(missing)}.")


def check_dtype(tower: nn.Module, dtype: torch.dtype) -> None:
    """Raises ValueError if a host's dtype is not one that a tower computes in, or too narrow for one of its numbers."""
    if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"The host's projector holds {dtype} and the tower {next(tower.parameters()).dtype}, which cannot become that: "
            "load the host with tower, projector and output layer kept out of quantisation (sfvlm.hosts.quantized)."
        )
    limit = torch.finfo(dtype).max
    for name, parameter in tower.named_parameters():
        largest = parameter.detach().abs().max().item() if parameter.numel() else 0.0
        if not largest <= limit:
            raise ValueError(f"The tower's {name} holds {largest:g}, and the host's {dtype} ends at {limit:g}.")


class OpenClipVisual(nn.Module):
    """Our encoder behind the interface of open_clip's `model.visual`: (B, 3, H, W) -> (B, embed_dim).

    Everything of ours lies under `tower.`: a CLIP checkpoint that is loaded with open_clip's `strict=False` finds no tensor
    of its own name and shape here, where it would overwrite one silently.

    Args:
        tower: A SparseFormer with a projection into the image-text space.
        num_tokens: The budget; default the tower's.
        output_tokens: Return (pooled, tokens) as CoCa reads it; CLIP and CustomTextCLIP want the pooled vector alone.

    Raises:
        ValueError: A photo cannot become so many tokens, or the tower sees less of it than open_clip shows.
    """

    def __init__(self, tower: SparseFormerModel, num_tokens: int | None = None, *, output_tokens: bool = False) -> None:
        super().__init__()
        config = tower.config
        self.tower, self.output_tokens = tower, output_tokens
        self.num_tokens = config.budget if num_tokens is None else num_tokens
        config.check_budget(self.num_tokens)
        if config.crop_pct != 1:
            raise ValueError(
                f"The tower sees {config.crop_pct:.3f} of a photo's shortest side (crop_pct), and open_clip's preprocessing shows "
                "all of it: bootstrap it from a teacher that does."
            )
        self.image_size = config.image_size
        self.output_dim = config.embedding_size
        self.image_mean, self.image_std = tuple(config.image_mean), tuple(config.image_std)
        self.preprocess_cfg = {
            "size": config.image_size,
            "mode": "RGB",
            "mean": self.image_mean,
            "std": self.image_std,
            "interpolation": config.resample,
            "resize_mode": "squash" if config.squashes else "shortest",
            "fill_color": 0,
        }

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        output = self.tower(x, self.num_tokens)
        if not self.output_tokens:
            return output.pooler_output
        tokens = self.tower.head.norm(output.last_hidden_state)
        return output.pooler_output, tokens[:, int(self.tower.config.has_cls_token) :]  # (B, E), (B, N, D)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        stop_early: bool = False,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        output_fmt: str = "NCHW",
        output_extra_tokens: bool = False,
    ) -> dict[str, Any]:
        """Tokens after the asked blocks, as open_clip's own towers return them; `stop_early` is for their speed alone.

        Raises:
            ValueError: NCHW was asked for, and the tokens are no square grid.
        """
        from open_clip.utils import feature_take_indices

        side = round(self.num_tokens**0.5)
        if output_fmt == "NCHW" and side * side != self.num_tokens:
            raise ValueError(f"{self.num_tokens} tokens are no square grid: ask for output_fmt='NLC', not 'NCHW'.")
        output = self.tower(x, self.num_tokens, output_hidden_states=True)
        taken, _ = feature_take_indices(len(self.tower.blocks), indices)
        states = [output.hidden_states[1 + index] for index in taken]
        if normalize_intermediates:
            states = [self.tower.head.norm(state) for state in states]
        prefix = int(self.tower.config.has_cls_token)
        tokens = [state[:, prefix:] for state in states]  # (B, N, D)
        if output_fmt == "NCHW":
            tokens = [state.transpose(1, 2).unflatten(2, (side, side)).contiguous() for state in tokens]
        found: dict[str, Any] = {"image_intermediates": tokens}
        if prefix and output_extra_tokens:
            found["image_intermediates_prefix"] = [state[:, :prefix] for state in states]
        return found if intermediates_only else found | {"image_features": output.pooler_output}

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freezes all but the last so many groups: focusing, each block (the last with the final norm), projection.

        `freeze_bn_stats` has nothing to freeze here.
        """
        tower, head = self.tower, self.tower.head
        pooling = [] if head.attention_pool is None else [head.attention_pool]
        start = [tower.focusing, tower.pre_norm] + ([] if tower.cls_token is None else [tower.cls_token])
        groups: list[list[Any]] = [start, *([block] for block in tower.blocks)]
        groups[-1] += [head.norm, *pooling]
        if head.projection is not None:
            groups.append([head.projection])
        self.requires_grad_(False)
        for group in groups[-unlocked_groups:] if unlocked_groups else []:
            for part in group:
                part.requires_grad_(True)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            self.tower.gradient_checkpointing_enable()
        else:
            self.tower.gradient_checkpointing_disable()

    def no_weight_decay(self) -> set[str]:
        """Tensors that open_clip's optimizer leaves without decay though they are no vectors: positions and boxes."""
        names = {name for name, _ in self.named_parameters()}
        return names & {"tower.cls_token", "tower.focusing.positions", "tower.focusing.token_roi.weight"}

    def apply(self, fn: Any) -> "OpenClipVisual":
        """As in torch; but the tower stays of one dtype, where open_clip's low precision casts linear layers alone."""
        super().apply(fn)
        self.tower.to(self.tower.blocks[0].mlp.fc1.weight.dtype)  # type: ignore[union-attr]
        return self


def _columns(projection: Tensor | nn.Linear) -> int:
    """The width of what open_clip's projection gives, which is a matrix or a layer."""
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]


def swap_open_clip(clip: Any, tower: SparseFormerModel, num_tokens: int | None = None) -> nn.Module:
    """Puts the tower into an open_clip model as its `visual`, preprocessing included, and returns the dense one.

        dense = swap_open_clip(clip, tower)
        preprocessing = open_clip.transform.PreprocessCfg(**clip.visual.preprocess_cfg)
        transform = open_clip.transform.image_transform_v2(preprocessing, is_train=False)

    `clip.visual = dense` restores. The tower moves to the dense tower's device and dtype, in place.

    Raises:
        ValueError: The tower's vector is not in the CLIP's image-text space: another width, or no projection. Or a photo
            cannot become so many tokens.
    """
    dense = clip.visual
    ours = tower.config.embedding_size
    text = getattr(clip, "text", clip)  # towers from timm do not say, and text towers do
    theirs = getattr(dense, "output_dim", None) or getattr(text, "output_dim", None) or _columns(text.text_projection)
    if ours != theirs:
        raise ValueError(
            f"The tower gives a vector of {ours} dimensions, and this CLIP's image-text space has {theirs}: use a tower "
            "that was bootstrapped from this CLIP."
        )
    if getattr(dense, "proj", None) is not None and not tower.config.projection_dim:
        raise ValueError(
            f"The tower has no projection into the image-text space of {theirs} dimensions (it may come from a LLaVA, which "
            "keeps none): use a tower that was bootstrapped from this CLIP."
        )
    # In open_clip's low precision only these layers are cast; positions and norms stay float32.
    weight = next(module.weight for module in dense.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    cast(nn.Module, tower).to(device=weight.device, dtype=weight.dtype).train(clip.training)
    clip.visual = OpenClipVisual(tower, num_tokens, output_tokens=bool(getattr(dense, "output_tokens", False)))
    return dense
