"""The configuration of a SparseFormer, and the presets of the released ones.

The configuration decides; a name or a path never does. It travels in the folder's `config.json`.
"""

import math
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Self, get_args

from transformers.configuration_utils import PreTrainedConfig

from ..util.choices import Focusing

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
INCEPTION_MEAN, INCEPTION_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

CHOICE = ("even_share", "context_share", "context_blocks")  # how patches are chosen: no weight has a size of these
SIZES = (
    "image_size", "num_tokens", "teacher_patch_size", "teacher_grid", "glimpse_size", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "intermediate_size",
)  # fmt: skip
Pooling = Literal["cls", "attention", "mean"]
RESAMPLES = ("bicubic", "bilinear")
CROP_ROUNDINGS = ("down", "even")


def layer_from_end(layer: int, depth: int) -> int:
    """A hidden state of so many blocks, counted from the end as LLaVA does: -1 is after the last block."""
    return layer if layer < 0 else layer - depth - 1


def _check_type(name: str, value: Any, kind: Any) -> None:
    """Raises ValueError for a number, flag, text or triple that is none; bools are no numbers."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None and NoneType in kinds:
        return
    if bool in kinds and type(value) is not bool:
        raise ValueError(f"{name} is {value!r}; it is true or false.")
    if str in kinds and not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}; it is a text.")
    if int in kinds and type(value) is not int:
        raise ValueError(f"{name} is {value!r}; it is a whole number.")
    if float in kinds and not _is_number(value):
        raise ValueError(f"{name} is {value!r}; it is a number.")
    if tuple[float, ...] in kinds and not (
        isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))
    ):
        raise ValueError(f"{name} is {value!r}; it is three numbers.")
    if list[int] in kinds and not (isinstance(value, list | tuple) and all(type(each) is int for each in value)):
        raise ValueError(f"{name} is {value!r}; it is a list of whole numbers.")


def _is_number(value: Any) -> bool:
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


class SparseFormerConfig(PreTrainedConfig):
    """What a SparseFormer is made of. Sizes are in features, pixels or counts as the names say.

    Args:
        image_size: Side of the square photo the preprocessor makes; the encoder takes any size and aspect ratio.
        image_mean, image_std: Normalisation of the teacher.
        squash: Whether the preprocessor squashes a photo to the square, as SigLIP's does; else it takes the middle. None, in
            older files: where `pooling` is SigLIP's.
        crop_pct: Share of the resized photo's shortest side that the preprocessor keeps: below 1, it resizes to more than it keeps.
        resample: The filter it resizes with, one of `RESAMPLES`.
        crop_rounding: Where the middle lies when an odd number of pixels is left over: `"down"` as transformers puts it, which is
            what the preprocessor in a student's folder does, or `"even"` as torchvision does for open_clip and timm.
        num_tokens: The budget it was trained at, without the class token. A call may ask for another one.
        default_budget: Tokens of a call that asks for no number; None for `num_tokens`. A host calls without a number.
        focusing: `"inherited"` (glimpses through the teacher's own patch embedding), `"chosen"` (such of whole patches, which
            are chosen) or `"fresh"` (the paper's).
        conv_dim, focusing_size, num_focusing_steps, num_points, mixing_points, generator_size: The fresh focusing stage:
            early-conv width C, focusing width F, repeats, sampling points P, points after mixing, and the bottleneck of
            the generator of mixing weights.
        teacher_patch_size, teacher_grid: Patch side in pixels and patches a side of the teacher (inherited focusing).
        glimpse_size: Side of the grid of samples taken in a box, whatever its size; the patch size needs no resampled kernel.
        coarse_blocks: Leading cortex blocks of the first look, which decides where the second one goes; 0 for one look only.
        box_zoom: Share of the photo's side that the boxes of the closer look tile before any training.
        even_share: Share of the tokens that go to the best patch of each region of an even grid, where patches are chosen; the
            others go to the best of the rest.
        context_share: How many more patches are looked at, as a share of `num_tokens`, whatever the budget: the best of the
            rest, where patches are chosen. They go through the leading blocks beside the tokens, as their context, and are
            not handed over.
        context_blocks: How many blocks that is.
        proportional_attention: Whether tokens attend to each other as to all the patches they stand for, where patches are
            chosen (`sfvlm.encoder.blocks.ProportionalAttention`).
        box_shift, box_log_scale: Bounds of one refinement: in box sizes, and in log size. None: unbounded, as published.
        hidden_size ... layer_norm_eps: The cortex: width D, blocks, heads, MLP width, activation, norm epsilon.
        pre_norm: A norm before the first block, as CLIP has.
        pooling: How the photo becomes one vector: class token, attention pooling (SigLIP), or the mean token.
        projection_dim: Width of the shared image-text space, 0 without one.
        projection_bias: Whether that projection has a bias.
        num_classes: Outputs of a classifier behind the pooled vector, 0 without one.
        aligned_layers: Layers whose tokens a host was taught to read, as `hidden_states` is indexed from its end; None for a
            tower that was aligned to no host.
    """

    model_type = "sparseformer"
    base_config_key = "vision_config"

    image_size: int = 224
    image_mean: list[float] | tuple[float, ...] = CLIP_MEAN
    image_std: list[float] | tuple[float, ...] = CLIP_STD
    squash: bool | None = None
    crop_pct: float = 1.0
    resample: str = "bicubic"
    crop_rounding: str = "down"
    num_tokens: int = 49
    default_budget: int | None = None
    focusing: str = "inherited"

    conv_dim: int = 64
    focusing_size: int = 384
    num_focusing_steps: int = 4
    num_points: int = 16
    mixing_points: int = 32
    generator_size: int = 128

    teacher_patch_size: int = 16
    teacher_grid: int = 14
    glimpse_size: int = 16
    coarse_blocks: int = 2
    box_zoom: float = 1.0
    even_share: float = 1.0
    context_share: float = 0.0
    context_blocks: int = 0
    proportional_attention: bool = False
    box_shift: float | None = 0.5
    box_log_scale: float | None = 0.7

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    pre_norm: bool = True
    pooling: str = "cls"
    projection_dim: int = 512
    projection_bias: bool = False
    num_classes: int = 0
    aligned_layers: list[int] | None = None
    initializer_range: float = 0.02

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """AutoModel knows the model from the first configuration on, unpickled ones too."""
        from . import sparseformer  # noqa: F401  not before: see `sfvlm.registration`

        return super().__new__(cls)

    def __post_init__(self, **kwargs: Any) -> None:
        from transformers.activations import ACT2CLS

        super().__post_init__(**kwargs)
        for name, kind in SparseFormerConfig.__annotations__.items():
            _check_type(name, getattr(self, name), kind)
        for name in SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 1.")
        if self.default_budget is not None and self.default_budget < 1:
            raise ValueError(f"default_budget is {self.default_budget}; it is at least 1, or null for num_tokens.")
        if self.focusing not in get_args(Focusing):
            raise ValueError(f"focusing is {self.focusing!r}; it is one of {', '.join(get_args(Focusing))}.")
        if self.pooling not in ("cls", "attention", "mean"):
            raise ValueError(f"pooling is {self.pooling!r}; it is 'cls', 'attention' or 'mean'.")
        for name, known in (("resample", RESAMPLES), ("crop_rounding", CROP_ROUNDINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is {' or '.join(map(repr, known))}.")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct}, but a crop is more than 0 and at most 1.")
        if self.hidden_act not in ACT2CLS:
            raise ValueError(f"hidden_act is {self.hidden_act!r}; transformers knows {', '.join(sorted(ACT2CLS))}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}."
            )
        if self.focusing == "fresh" and (self.focusing_size % 64 or self.hidden_size % 4):
            raise ValueError(
                f"Fresh focusing has heads of 64 features: focusing_size {self.focusing_size} must be a multiple of 64, "
                f"and hidden_size {self.hidden_size} one of 4 (four box corners are encoded)."
            )
        if self.focusing == "inherited" and math.isqrt(self.num_tokens) ** 2 != self.num_tokens:
            raise ValueError(
                f"num_tokens is {self.num_tokens}; inherited focusing starts from a square grid: a square number."
            )
        self.check_choice()
        if self.focusing == "chosen" and self.coarse_blocks < 1:
            raise ValueError("coarse_blocks is 0, and patches are chosen by what the first look saw: 1 at least.")
        if self.focusing != "fresh" and self.coarse_blocks > self.num_hidden_layers:
            raise ValueError(
                f"coarse_blocks {self.coarse_blocks} exceeds the {self.num_hidden_layers} blocks of the cortex."
            )

    def check_choice(self) -> None:
        """Whether patches can be chosen so.

        Raises:
            ValueError: A share or number is out of its range.
        """
        if not 0 <= self.even_share <= 1:
            raise ValueError(f"even_share is {self.even_share}; it is a share of the tokens, from 0 to 1.")
        if self.context_share < 0:
            raise ValueError(f"context_share is {self.context_share}; it is a share of num_tokens, 0 for no context.")
        if not 0 <= self.context_blocks <= self.num_hidden_layers and self.focusing == "chosen":
            raise ValueError(
                f"context_blocks is {self.context_blocks}, and the cortex has {self.num_hidden_layers}: from 0 to so many."
            )

    def check_layers(self, layers: Sequence[int]) -> None:
        """Whether a host may read these layers, as `hidden_states` is indexed from either end.

        Raises:
            ValueError: The tower was aligned at others.
        """
        read = [layer_from_end(layer, self.num_hidden_layers) for layer in layers]
        if self.aligned_layers is not None and self.aligned_layers != read:
            raise ValueError(
                f"The host reads layer {', '.join(map(str, read))} of its tower, and this one was aligned at layer "
                f"{', '.join(map(str, self.aligned_layers))}: bootstrap one for this host (--host)."
            )

    def check_budget(self, num_tokens: int) -> None:
        """Whether a photo can become so many tokens.

        Raises:
            ValueError: It is none, or more than there are patches to choose from.
        """
        if num_tokens < 1:
            raise ValueError(f"num_tokens is {num_tokens}; a photo needs at least 1 token.")
        patches = self.teacher_grid**2
        if self.focusing == "chosen" and num_tokens > patches:
            raise ValueError(
                f"num_tokens is {num_tokens}, and there are {patches} patches to choose from: ask for {patches} at most."
            )

    def context_size(self, num_tokens: int) -> int:
        """How many more patches are looked at beside so many tokens: as many at any budget, while there are any left."""
        if self.focusing != "chosen" or not self.context_blocks:
            return 0
        return min(round(self.num_tokens * self.context_share), self.teacher_grid**2 - num_tokens)

    @property
    def has_cls_token(self) -> bool:
        """Whether the cortex carries a class token in front of the image tokens."""
        return self.pooling == "cls"

    @property
    def embedding_size(self) -> int:
        """Width of the pooled output."""
        return self.projection_dim or self.hidden_size

    @property
    def budget(self) -> int:
        """Tokens of a call that asks for no number, without the class token."""
        return self.default_budget or self.num_tokens

    @property
    def squashes(self) -> bool:
        """Whether a photo is squashed to the square; else its middle is taken."""
        return self.pooling == "attention" if self.squash is None else self.squash

    @property
    def patch_size(self) -> int:
        """Side in pixels of one cell when the budget's tokens tile the photo: hosts and servers count tokens by it."""
        return max(1, self.image_size // math.isqrt(self.budget))


def _official(width: int, depth: int, num_tokens: int, *, clip: bool) -> dict[str, Any]:
    shared = dict(
        focusing="fresh",
        num_tokens=num_tokens,
        focusing_size=width // 2,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        pre_norm=False,
        box_shift=None,
        box_log_scale=None,
    )
    if clip:
        return shared | dict(projection_dim=512 if width == 768 else 768, hidden_act="quick_gelu")
    head = dict(projection_dim=0, num_classes=1000, hidden_act="gelu")
    return shared | head | dict(image_mean=INCEPTION_MEAN, image_std=INCEPTION_STD)


# The four released bootstrapped models (showlab/sparseformer, `config.py`). Their names count the class token, `num_tokens`
# does not: 48 and 63 image tokens.
PRESETS: dict[str, dict[str, Any]] = {
    "sparseformer-augreg-base": _official(768, 8, 48, clip=False),
    "sparseformer-augreg-large": _official(1024, 16, 48, clip=False),
    "sparseformer-clip-base": _official(768, 8, 48, clip=True),
    "sparseformer-clip-large": _official(1024, 16, 63, clip=True),
}


def preset(name: str, **overrides: Any) -> SparseFormerConfig:
    """The configuration of a released model by name, with overrides.

    Raises:
        ValueError: The name is not one of `PRESETS`.
    """
    if name not in PRESETS:
        raise ValueError(f"No preset is named {name!r}; the presets are {', '.join(PRESETS)}.")
    return SparseFormerConfig(**(PRESETS[name] | overrides))
