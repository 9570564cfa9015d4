"""SparseFormer, whole and in data-flow order: a photo becomes a few dozen tokens that chose where to look.

    pixels -> focusing (look, decide where to look closer, look again) -> cortex (the teacher's blocks) -> pooled vector, tokens

Shapes: B batch, N tokens (49), P sampling points, C early-conv width, F focusing width, D cortex width, H x W photo.
Chosen focusing has the shapes of inherited; as many more patches (for a host half as many) go through leading blocks beside the tokens.

| stage | inherited, CLIP ViT-L/14 at 336 px | fresh, preset sparseformer-clip-base |
|---|---|---|
| pixel_values | B x 3 x 336 x 336 | B x 3 x 224 x 224 |
| early_conv | | B x 64 x 56 x 56 |
| glimpses | B x 49 x 3 x 14 x 14 | |
| token_rois[-1] | B x 49 x 4 | B x 48 x 4 |
| sampling_points[-1] | B x 49 x 16 x 2 | B x 48 x 16 x 2 |
| focusing block (x 4) | | B x 48 x 384 |
| focusing | B x 49 x 1024 | B x 48 x 768 |
| hidden_states[0] | B x 50 x 1024 | B x 49 x 768 |
| hidden_states[-1] | B x 50 x 1024 | B x 49 x 768 |
| pooler_output | B x 768 | B x 512 |
| blocks | 24 | 8 |
| tokens the teacher would have used | 577 | 197 |
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from . import roi
from .accelerate import accelerate, example_pixels
from .blocks import (
    AttentionPool,
    Block,
    Head,
    Proportion,
    ProportionalAttention,
    as_asked,
    block_sizes,
    check_pixels,
    wants_hidden_states,
)
from .configuration import SparseFormerConfig
from .focusing import FOCUSING, init_focusing
from .fresh import FreshFocusing


@dataclass
class SparseFormerOutput(ModelOutput):
    """What the encoder returns.

    Attributes:
        last_hidden_state: (B, 1 + N, D) tokens after the last block, before the final norm; the class token first.
        pooler_output: (B, projection_dim or D) the photo as one vector, in the teacher's image-text space.
        hidden_states: L + 1 of (B, 1 + N, D): the cortex's input, then the output of each of its L blocks.
        token_rois: (B, N, 4) boxes, as they started and after every refinement; float32 fractions of the image.
        sampling_points: (B, N, P, 2) where each look read the photo, in the same fractions.
        logits: (B, num_classes) of the teacher's classifier, where it has one.
        saliency: (B, patches) how much of the teacher's attention each of its patches will get: the log of it, but for a
            constant. Only where patches are chosen by it.
        cells: (B, N) which of the teacher's patches each token is, row by row. Only where patches are chosen.
        context_rois: (B, M, 4) boxes of the patches that were looked at beside them. Only where patches are chosen.
        context_tokens: (B, M, D) what these were after the last block that they went through.
        coarse_tokens: (B, tiles, D) what the first look saw, in the boxes of `token_rois[0]`; none where there is one look only.
        dense_map: (B, D, h, w) the teacher's map as a guide makes it of all that, scaled; only while both are trained together
            (`sfvlm.dense.together`).
    """

    # In transformers' order: its pipelines take the first one for the tokens.
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    token_rois: tuple[Tensor, ...] | None = None
    sampling_points: tuple[Tensor, ...] | None = None
    logits: Tensor | None = None
    saliency: Tensor | None = None
    cells: Tensor | None = None
    context_rois: Tensor | None = None
    context_tokens: Tensor | None = None
    coarse_tokens: Tensor | None = None
    dense_map: Tensor | None = None


def _constant(number: int) -> int:
    """The same number, counted up: torch.compile then takes it as a constant, where it would trace a symbol."""
    count = 0
    while count < number:
        count += 1
    return count


class SparseFormerModel(PreTrainedModel):
    """A sparse image encoder: `model(pixel_values, num_tokens=49)` -> `SparseFormerOutput`."""

    config_class = SparseFormerConfig
    config: SparseFormerConfig
    base_model_prefix = "sparseformer"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    # It attends by torch's SDPA whatever is asked for: a host's choice of kernels for its LLM never fails on the tower.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    # A host that is spread over devices keeps its tower on one: the class token and the blocks meet in one tensor.
    _no_split_modules = ["SparseFormerModel", "Block", "FreshFocusing", "InheritedFocusing", "ChosenFocusing"]  # noqa: RUF012

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self._focus: tuple[Tensor | None, float] = (None, 1.0)
        self.focusing = FOCUSING[config.focusing](config)
        self.cls_token = nn.Parameter(torch.empty(config.hidden_size)) if config.has_cls_token else None
        self.pre_norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.pre_norm else nn.Identity()
        )
        self.blocks = nn.ModuleList(Block(*block_sizes(config)) for _ in range(config.num_hidden_layers))
        proportional = config.focusing == "chosen" and config.proportional_attention
        self.proportional = ProportionalAttention(config) if proportional else None
        self.head = Head(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        num_tokens: int | None = None,
        output_hidden_states: bool | int | None = None,
        return_dict: bool | None = None,
        focus: Tensor | None = None,
        focus_share: float = 1.0,
        **_: Any,
    ) -> SparseFormerOutput | tuple[Tensor, ...]:
        """Encodes photos.

        Args:
            pixel_values: (B, 3, H, W) normalised as the preprocessor does; any size from 16 pixels, any aspect ratio.
            num_tokens: The budget for this call, the configuration's `budget` by default.
            output_hidden_states: Also return the tokens after every block.
            return_dict: False for a plain tuple; the configuration's by default.
            focus: (B, 4) or (1, 4), a rectangle of each photo in fractions of it, which the boxes start in and stay
                near: what lies in it is seen as a photo of its own. Give more pixels than usual to see more.
            focus_share: Share of the tokens that go there; the others see the whole photo.
            _: What a host hands on to its tower without need, such as LLaVA-OneVision's `vision_aspect_ratio` for videos.

        Raises:
            ValueError: The pixels are not (B, 3, H, W), the budget is not positive, or a rectangle is none.
        """
        check_pixels(pixel_values)
        count = self.config.budget if num_tokens is None else num_tokens
        self.config.check_budget(count)
        count = _constant(count)
        pixels = pixel_values.to(self.dtype)
        focus, share = self._focus if focus is None else (focus, focus_share)
        frames = None if focus is None else roi.focus_frames(focus.to(pixels.device), pixels.shape[0], count, share)

        if isinstance(self.focusing, FreshFocusing):
            focused = self.focusing(pixels, count, frames)
        else:
            focused = self.focusing(pixels, count, self._first_blocks, frames)
        hidden = self._enter(focused.tokens)  # (B, 1 + N, D)
        own, hidden_states = hidden.shape[1], [hidden]
        if focused.context is not None:
            hidden = torch.cat([hidden, self.pre_norm(focused.context)], dim=1)  # (B, 1 + N + its own, D)
        with_context = min(self.config.context_blocks, len(self.blocks))
        lengths = [hidden.shape[1]] * with_context + [own] * (len(self.blocks) - with_context)
        proportions = [None] * len(lengths) if self.proportional is None else self.proportional(lengths)
        context = hidden[:, own:]
        for number, block in enumerate(self.blocks):
            hidden = self._run(block, hidden[:, : lengths[number]], proportions[number])
            hidden_states.append(hidden[:, :own])
            context = hidden[:, own:] if hidden.shape[1] > own else context
        hidden = hidden[:, :own]
        pooled, logits = self.head(hidden)

        wanted = wants_hidden_states(self.config, output_hidden_states)
        output = SparseFormerOutput(
            last_hidden_state=hidden,
            pooler_output=pooled,
            hidden_states=tuple(hidden_states) if wanted else None,
            token_rois=focused.token_rois,
            sampling_points=focused.sampling_points,
            logits=logits,
            saliency=focused.saliency,
            cells=focused.cells,
            context_rois=focused.context_rois,
            context_tokens=None if focused.context is None else context,
            coarse_tokens=focused.coarse,
        )
        return as_asked(self.config, return_dict, output)

    @contextmanager
    def focused_on(self, focus: Tensor, share: float = 1.0) -> Iterator[None]:
        """Inside, calls without a `focus` of their own take this one: for hosts, which hand on the pixels alone.

        Args:
            focus: (B, 4) or (1, 4), as in `forward`.
            share: Share of the tokens that go there.
        """
        before, self._focus = self._focus, (focus, share)
        try:
            yield
        finally:
            self._focus = before

    def accelerate(
        self, how: str | None = None, *, pixels: Tensor | None = None, num_tokens: int | None = None
    ) -> "SparseFormerModel":
        """The same model, faster on this machine for calls of that size; this one stays as it is.

        Args:
            how: A way of `sfvlm.encoder.accelerate.HOWS`; by default the fastest that loses no precision.
            pixels: (B, 3, H, W), a batch as it will come; by default one rendered scene of the model's own size.
            num_tokens: Budget of the calls; by default the model's own.

        Raises:
            ValueError: As `sfvlm.encoder.accelerate.accelerate`: it cannot be done here or to this model, or loses too much.
        """
        if pixels is None:
            pixels = example_pixels(self.config)
        return accelerate(self, how, pixels.to(self.device, self.dtype), num_tokens=num_tokens)

    def _enter(self, tokens: Tensor) -> Tensor:
        """Puts the class token in front and applies CLIP's first norm: (B, N, D) -> (B, 1 + N, D)."""
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        return self.pre_norm(tokens)

    def _first_blocks(self, tokens: Tensor) -> Tensor:
        """The coarse pass, through blocks shared with the main one: (B, N, D) -> (B, N, D)."""
        hidden = self._enter(tokens)
        for block in self.blocks[: self.config.coarse_blocks]:
            hidden = self._run(block, hidden)
        return hidden[:, int(self.config.has_cls_token) :]

    def _run(self, block: nn.Module, hidden: Tensor, proportion: Proportion | None = None) -> Tensor:
        if self.gradient_checkpointing and self.training:
            # Reentrant checkpointing follows the gradient of tensors that it is given, and of none inside a tuple.
            return self._gradient_checkpointing_func(
                lambda hidden, *parts: block(hidden, Proportion(*parts) if parts else None), hidden, *(proportion or ())
            )
        return block(hidden, proportion)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises every parameter explicitly: LLaVA turns implicit initialisation off, meta construction skips it.

        Called for children before parents, so a parent may overrule; not at all (for code outside transformers) for
        modules without parameters of their own.

        | tensors | distribution |
        |---|---|
        | linear, kernels, embeddings | truncated normal, `initializer_range`; biases zero |
        | early conv | Kaiming, fan out |
        | norms | one and zero |
        | of proportional attention | query zero, power one |
        | of focusing | `init_focusing` |
        """
        if init_focusing(module, self.config):
            return
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, AttentionPool):
            init.trunc_normal_(module.query, std=std)
        elif isinstance(module, ProportionalAttention):
            init.zeros_(module.query)
            init.ones_(module.power)
        elif isinstance(module, SparseFormerModel) and module.cls_token is not None:
            init.trunc_normal_(module.cls_token, std=std)


AutoModel.register(SparseFormerConfig, SparseFormerModel, exist_ok=True)
