"""The guided map: every cell asks the tokens, by what it costs little to know of it. Learned from the teacher's own map alone.

    photo -> patches, embedded anew and narrow --------------+
    tokens, context, coarse look -> where their boxes lie --(+)--> attend to all of them, mix with neighbours --> what is missing
    tokens -> the nearest ones of each cell -----------------^---> first guess --(+ what is missing)--> map

No label is used. The map is in the space of the teacher's last layer, behind its last norm, whatever the encoder's stage is.

Shapes: B batch, N tokens, M context tokens, D width of the encoder, W of the guide, h x w cells of the map, T = N + M + tiles.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig

from ..encoder import roi
from ..encoder.configuration import SparseFormerConfig
from ..encoder.sparseformer import SparseFormerModel, SparseFormerOutput
from ..util.tensors import opened_strictly
from .maps import as_map, cell_centers, coverage, dense_map, image_tokens, nearness

GUIDE = "guide"  # its folder, in the one of its encoder


class GuideConfig(PreTrainedConfig):
    """What a guide is made of.

    Args:
        encoder_size: Width D of the encoder's tokens, and of the map.
        patch_size: Pixels of a cell's side, the teacher's.
        grid: Cells a side at the size that it was trained at.
        guide_size: Width W.
        attending_blocks, mixing_blocks: Blocks that attend to the tokens, and after them such as only mix neighbours.
        num_attention_heads: Of the former.
        kernel_size: Cells a side that mix.
        expansion: Of the width, inside a block.
        even_share, context_share, context_blocks: How the encoder is to choose its patches where a map is wanted, as in
            `SparseFormerConfig`: with one weight, more context for a map than for a host. None: as it does in any case.
    """

    model_type = "sfvlm_guide"

    encoder_size: int = 192
    patch_size: int = 16
    grid: int = 14
    guide_size: int = 128
    attending_blocks: int = 1
    mixing_blocks: int = 2
    num_attention_heads: int = 4
    kernel_size: int = 5
    expansion: int = 2
    even_share: float | None = None
    context_share: float | None = None
    context_blocks: int | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("encoder_size", "patch_size", "grid", "guide_size", "num_attention_heads", "expansion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 1.")
        if self.guide_size % self.num_attention_heads:
            raise ValueError(
                f"guide_size {self.guide_size} is not a multiple of num_attention_heads {self.num_attention_heads}."
            )
        if self.kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size is {self.kernel_size}; it is odd, for a cell has as many neighbours on each side."
            )

    @classmethod
    def of(cls, encoder: SparseFormerConfig, **overrides: Any) -> Self:
        """Of a guide for an encoder."""
        fields: dict[str, Any] = dict(
            encoder_size=encoder.hidden_size, patch_size=encoder.teacher_patch_size, grid=encoder.teacher_grid
        )
        return cls(**(fields | overrides))


@contextmanager
def choosing(model: SparseFormerModel, guide: "Guide") -> Iterator[None]:
    """Inside, the encoder chooses its patches as the guide was trained to read them."""
    config, names = model.config, ("even_share", "context_share", "context_blocks")
    before = {name: getattr(config, name) for name in names}
    asked = {name: getattr(guide.config, name) for name in names}
    try:
        for name, value in asked.items():
            if value is not None:
                setattr(config, name, value)
        config.check_choice()
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def guided_map(
    model: SparseFormerModel,
    guide: "Guide",
    pixels: Tensor,
    num_tokens: int | None = None,
    size: tuple[int, int] | None = None,
    **focus: Any,
) -> Tensor:
    """Photos to a map, by an encoder and its guide: (B, 3, H, W) -> (B, D, h, w).

    Args:
        model, guide: Frozen or not.
        pixels: Normalised as the encoder's preprocessor does.
        num_tokens: The budget, by default the model's own.
        size: Of the map; by default one cell for each patch of the teacher's.
        focus: `focus` and `focus_share` of the encoder. The map is of the whole photo, or of the rectangle if all tokens go there.
    """
    with choosing(model, guide):
        output: Any = model(pixels, num_tokens=num_tokens, return_dict=True, **focus)
    region = focus.get("focus") if focus.get("focus_share", 1.0) == 1.0 else None
    return guide(output, pixels, model.head.norm, size, region)


class Mixing(nn.Module):
    """Each cell and its neighbours: (B, h * w, W) -> (B, h * w, W)."""

    def __init__(self, config: GuideConfig) -> None:
        super().__init__()
        width, kernel = config.guide_size, config.kernel_size
        self.neighbours = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.expansion * width)
        self.fc2 = nn.Linear(config.expansion * width, width)

    def forward(self, cells: Tensor, size: tuple[int, int]) -> Tensor:
        near = self.neighbours(as_map(cells, size)).flatten(2).transpose(1, 2)
        return cells + self.fc2(F.gelu(self.fc1(self.norm(cells + near))))


class Attending(nn.Module):
    """Each cell asks the tokens: (B, h * w, W), (B, T, W) -> (B, h * w, W)."""

    def __init__(self, config: GuideConfig) -> None:
        super().__init__()
        width = config.guide_size
        self.num_heads = config.num_attention_heads
        self.norm_cells, self.norm_tokens = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, cells: Tensor, tokens: Tensor) -> Tensor:
        query = self.q(self.norm_cells(cells)).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.kv(self.norm_tokens(tokens)).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(query, key, value)
        return cells + self.proj(read.transpose(1, 2).flatten(2))


class Guide(PreTrainedModel):
    """Makes the map: `guide(output, pixels)` -> (B, D, h, w). Before any training, the map of the nearest tokens."""

    config_class = GuideConfig
    config: GuideConfig
    base_model_prefix = "guide"
    main_input_name = "pixels"
    mean: Tensor
    std: Tensor

    def __init__(self, config: GuideConfig) -> None:
        super().__init__(config)
        width, inner = config.encoder_size, config.guide_size
        self.patch = nn.Conv2d(3, inner, config.patch_size, stride=config.patch_size)
        self.positions = nn.Parameter(torch.empty(inner, config.grid, config.grid))
        names = ("tokens", "context", "coarse")
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in names})
        self.into = nn.ModuleDict({name: nn.Linear(width, inner) for name in names})
        self.attending = nn.ModuleList(Attending(config) for _ in range(config.attending_blocks))
        blocks = config.attending_blocks + config.mixing_blocks
        self.mixing = nn.ModuleList(Mixing(config) for _ in range(blocks))
        self.norm = nn.LayerNorm(inner)
        self.missing = nn.Linear(inner, width)
        self.first_guess = nn.Linear(width, width)
        # Of the teacher's map, a feature: the guide works on what is left, so that the few huge features do not drown the rest.
        self.register_buffer("mean", torch.empty(width))
        self.register_buffer("std", torch.empty(width))
        self.post_init()

    def forward(
        self,
        output: SparseFormerOutput,
        pixels: Tensor,
        norm: nn.Module,
        size: tuple[int, int] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """Makes the map.

        Args:
            output: Of the encoder, for these photos; at any budget, with or without a `focus`.
            pixels: (B, 3, H, W) the photos, as the encoder was given them.
            norm: The encoder's last norm, `model.head.norm`.
            size: (h, w) of the map; by default one cell for each `patch_size` pixels.
            region: (B, 4) or (1, 4), the part of the photo that the map is of, in fractions; the whole photo by default.

        Returns:
            (B, D, h, w), as the teacher's own map behind its last norm.
        """
        return self.unscaled(self.scaled(output, pixels, norm, size, region))

    def scaled(
        self,
        output: SparseFormerOutput,
        pixels: Tensor,
        norm: nn.Module,
        size: tuple[int, int] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """As `forward`, in units of each feature's spread over the teacher's maps: what is trained."""
        patch = self.config.patch_size
        if size is None:
            height, width = (max(1, round(side / patch)) for side in pixels.shape[-2:])
            size = (height, width)
        tokens, boxes = image_tokens(output)
        tokens = norm(tokens)
        seen: list[tuple[str, Tensor, Tensor]] = [("tokens", tokens, boxes)]
        if output.context_tokens is not None and output.context_rois is not None:
            seen.append(("context", output.context_tokens, output.context_rois))
        if output.coarse_tokens is not None and output.token_rois is not None:
            seen.append(("coarse", output.coarse_tokens, output.token_rois[0]))

        photo = self._photo(pixels, size, region)
        table = self.positions[None]
        if size != table.shape[-2:]:
            table = F.interpolate(table, size=size, mode="bilinear", align_corners=False)
        cells = (self.patch(photo.to(self.patch.weight.dtype)) + table).flatten(2).transpose(1, 2)  # (B, h * w, W)
        asked = []
        for name, states, rois in seen:
            inner = self.into[name](self.norms[name](states))  # (B, N, W)
            weights = nearness(rois, size, region) if name == "coarse" else coverage(rois, size, region)
            if name == "tokens":
                weights = weights + nearness(rois, size, region)
            cells = cells + weights.to(inner.dtype) @ inner
            places = roi.sample(self.positions.expand(len(rois), -1, -1, -1), roi.centers(rois)[:, :, None])[:, :, 0]
            asked.append(inner + places.to(inner.dtype))
        memory = torch.cat(asked, dim=1)
        for number, mixing in enumerate(self.mixing):
            if number < len(self.attending):
                cells = self.attending[number](cells, memory)
            cells = mixing(cells, size)
        # A linear layer of an average is the average of what the layer says of each token, of which there are fewer than cells.
        guess = self.first_guess((tokens - self.mean) / self.std)
        near = nearness(boxes, size, region).to(guess.dtype)
        return as_map(near @ guess + self.missing(self.norm(cells)), size)

    def scale(self, dense: Tensor) -> Tensor:
        """The teacher's map in the units of `scaled`: (B, D, h, w) -> (B, D, h, w)."""
        return (dense - self.mean[:, None, None]) / self.std[:, None, None]

    def unscaled(self, scaled: Tensor) -> Tensor:
        """The way back: (B, D, h, w) -> (B, D, h, w)."""
        return scaled * self.std[:, None, None] + self.mean[:, None, None]

    @torch.no_grad()
    def learn_scale(self, dense: Tensor) -> None:
        """Takes mean and spread of each feature from maps of the teacher: (B, D, h, w)."""
        flat = dense.float().transpose(0, 1).flatten(1)
        self.mean.copy_(flat.mean(dim=1))
        self.std.copy_(flat.std(dim=1).clamp(min=1e-6))

    def _photo(self, pixels: Tensor, size: tuple[int, int], region: Tensor | None) -> Tensor:
        """The part that the map is of, with `patch_size` pixels a cell: -> (B, 3, h * patch, w * patch)."""
        wanted = (size[0] * self.config.patch_size, size[1] * self.config.patch_size)
        if region is None:
            if pixels.shape[-2:] == wanted:
                return pixels
            resized = F.interpolate(pixels.float(), size=wanted, mode="bilinear", align_corners=False, antialias=True)
            return resized.to(pixels.dtype)
        points = cell_centers(wanted, pixels.device).expand(len(pixels), 1, -1, -1)
        corner, extent = region[:, None, None, :2].float(), roi.sizes(region.float())[:, None, None]
        sampled = roi.sample(pixels, corner + points * extent)  # (B, 1, pixels, 3)
        return sampled[:, 0].transpose(1, 2).unflatten(2, wanted)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Every parameter explicitly; the last layer of each block at zero, and the first guess as it is."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d):
            spread = std if isinstance(module, nn.Linear) else module.weight[0].numel() ** -0.5
            init.trunc_normal_(module.weight, std=spread)
            assert module.bias is not None
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Mixing):
            init.zeros_(module.fc2.weight)
        elif isinstance(module, Attending):
            init.zeros_(module.proj.weight)
        elif isinstance(module, Guide):
            init.trunc_normal_(module.positions, std=std)
            init.zeros_(module.missing.weight)
            init.copy_(module.first_guess.weight, torch.eye(self.config.encoder_size))
            init.zeros_(module.mean)
            init.ones_(module.std)


def open_guide(folder: Path, encoder: SparseFormerConfig) -> Guide | None:
    """The guide in a SparseFormer's folder, in 32 bits whatever it is kept in; None where there is none.

    Raises:
        ValueError: Its tensors are not those of its configuration, or it is of an encoder of another width.
    """
    folder = folder / GUIDE
    if not (folder / "config.json").is_file():
        return None
    guide: Guide = opened_strictly(Guide, folder, "guide")
    if guide.config.encoder_size != encoder.hidden_size:
        raise ValueError(
            f"The guide in {folder} is of an encoder of {guide.config.encoder_size} features, and this one has "
            f"{encoder.hidden_size}: train one for it (scripts/train_guide.py)."
        )
    return guide.float()


class Backbone(nn.Module):
    """A SparseFormer as backbones of mmsegmentation are called: photos (B, 3, H, W) -> a tuple of one map (B, D, h, w).

    Args:
        model: The encoder.
        guide: Makes the map in place of `dense_map`.
        num_tokens: The budget, by default the model's own.
    """

    def __init__(self, model: SparseFormerModel, guide: Guide | None = None, num_tokens: int | None = None) -> None:
        super().__init__()
        self.model, self.guide, self.num_tokens = model, guide, num_tokens

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        if self.guide is not None:
            return (guided_map(self.model, self.guide, pixels, self.num_tokens),)
        output: Any = self.model(pixels, num_tokens=self.num_tokens, return_dict=True)
        grid = self.model.config.teacher_grid
        return (dense_map(output, (grid, grid), norm=self.model.head.norm),)
