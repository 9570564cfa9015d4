"""What the original `llava` package asks of a vision tower, written down, and whether a tower fits a host of it.

Sources: haotian-liu/LLaVA 1.2.2.post1 and LLaVA-VL/LLaVA-NeXT 1.7.0.dev0, both of which are called `llava`; the files named
below are inside that package. Shapes: B batch, N tokens, D width.
"""

import ast
import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ...encoder.configuration import SparseFormerConfig

FEATURES = ("patch", "cls_patch")


class ImageProcessor(Protocol):
    """What is read of a tower's `image_processor`.

    Attributes:
        image_mean: Fills the borders of padded photos (mm_utils.py `process_images`, train/train.py).
        size: `["shortest_edge"]`, the side of the whole photo beside its tiles (mm_utils.py `process_anyres_image`). A
            plain dict: LLaVA-NeXT takes anything else for a pair of numbers.
        crop_size: `["height"]`, the side of a tile (the same), and of what stands for no photo (train/train.py).
    """

    image_mean: Any
    size: dict[str, int]
    crop_size: dict[str, int]

    def preprocess(self, images: Any, return_tensors: str | None = None) -> Any:
        """`["pixel_values"]` is (1, 3, side, side) of one photo, (B, 3, side, side) of several."""
        ...

    def __call__(self, images: Any, return_tensors: str | None = None) -> Any: ...


class VisionTower(Protocol):
    """Every member that either package touches, beside those of a torch module.

    Attributes:
        is_loaded: Whether `load_model` was called (model/builder.py); until then there are no parameters.
        image_processor: From `load_model` on (model/builder.py, train/train.py).
        select_layer, select_feature: The hidden state that is read, and "patch" or "cls_patch" (inside towers only).
    """

    is_loaded: bool
    image_processor: ImageProcessor
    select_layer: int
    select_feature: str

    def load_model(self, device_map: Any = None) -> None:
        """Opens the weights; a second call does nothing (model/builder.py, model/llava_arch.py)."""
        ...

    def __call__(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """(B, 3, H, W) -> (B, N, D), or a list of (3, H, W) -> a list of (1, N, D) (model/llava_arch.py `encode_images`)."""
        ...

    def feature_select(self, image_forward_outs: Any) -> Tensor:
        """The tokens of an encoder's output (inside towers only)."""
        ...

    @property
    def config(self) -> Any:
        """With `image_size`, `patch_size`, `hidden_size`, loaded or not (model/llava_arch.py, mm projectors of NeXT)."""
        ...

    @property
    def hidden_size(self) -> int:
        """Becomes the host's `mm_hidden_size` (model/llava_arch.py; resamplers of NeXT)."""
        ...

    @property
    def image_size(self) -> int:
        """Side of a tile in pixels (NeXT, model/llava_arch.py)."""
        ...

    @property
    def num_patches(self) -> int:
        """Tokens of a photo, for the room that is left to the answer (serve/model_worker.py)."""
        ...

    @property
    def num_patches_per_side(self) -> int:
        """Side of the square that the tokens of a tile make (model/llava_arch.py: spatial merge; NeXT: videos)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters (inside towers only)."""
        ...

    @property
    def device(self) -> torch.device:
        """Of the parameters (inside towers only)."""
        ...

    @property
    def dummy_feature(self) -> Tensor:
        """(1, D) zeros (nowhere in these versions; forks use it for turns without a photo)."""
        ...


def check_fit(args: Any, tower: SparseFormerConfig) -> None:
    """Raises ValueError unless a host of this configuration can read this tower's tokens.

    Args:
        args: The host's configuration, or the training script's arguments, which say less.
        tower: The tower's configuration.
    """
    layer, feature = getattr(args, "mm_vision_select_layer", None), selected_feature(args)
    if not isinstance(layer, int):
        raise ValueError(f"mm_vision_select_layer is {layer!r}; a tower is read at one layer, such as -2.")
    depth = tower.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"The host reads layer {layer} of its tower, and this one has only {depth} blocks.")
    tower.check_layers([layer])
    if feature not in FEATURES:
        raise ValueError(f"mm_vision_select_feature is {feature!r}; a sparse tower gives {' or '.join(FEATURES)}.")
    if feature == "cls_patch" and not tower.has_cls_token:
        raise ValueError("The host reads the class token (cls_patch), and the tower has none.")
    if getattr(args, "s2", False):
        raise ValueError("The host reads its tower at several scales (s2), which a sparse tower does not do.")
    width = getattr(args, "mm_hidden_size", None)
    if width is not None and width != tower.hidden_size:
        raise ValueError(
            f"The host's projector reads tokens {width} wide, and the tower's are {tower.hidden_size} wide: bootstrap the "
            "tower from the host's own."
        )
    if "anyres" in (getattr(args, "image_aspect_ratio", None) or ""):
        _check_tiles(args, tower)


def _check_tiles(args: Any, tower: SparseFormerConfig) -> None:
    """Raises ValueError unless photos can be cut into tiles of this tower, and its tokens be put together again."""
    side = tower.image_size
    for size in pinpoints(args):
        if size[0] % side or size[1] % side:
            raise ValueError(
                f"The host brings photos to {size[0]} x {size[1]} pixels (image_grid_pinpoints), and the tower's tiles have "
                f"{side}: write multiples of {side} into the host's config.json, or run it with --tower, which rescales them."
            )
    if (getattr(args, "mm_patch_merge_type", None) or "flat").startswith("spatial"):
        grid_side(tower)
        if selected_feature(args) == "cls_patch":
            raise ValueError(
                f"The host puts tiles together as grids (mm_patch_merge_type), and the class token with {tower.budget} image "
                "tokens is none: it takes mm_vision_select_feature 'patch' alone."
            )


def pinpoints(args: Any) -> list[tuple[int, int]]:
    """The sizes in pixels that photos are brought to; none where they are counted in tiles, as "(1x1),...,(6x6)"."""
    given = getattr(args, "image_grid_pinpoints", None) or []
    if isinstance(given, str) and "x" in given:
        return []
    try:
        found = ast.literal_eval(given) if isinstance(given, str) else given
        return [(int(width), int(height)) for width, height in found]
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f"image_grid_pinpoints is {given!r}; it is a list of sizes in pixels, such as [[336, 672], [672, 336]]."
        ) from error


def selected_feature(args: Any) -> str:
    return getattr(args, "mm_vision_select_feature", "patch")


def grid_side(tower: SparseFormerConfig) -> int:
    side = math.isqrt(tower.budget)
    if side * side != tower.budget or tower.image_size // tower.patch_size != side:
        raise ValueError(
            f"Tiles are put together as square grids, and {tower.budget} tokens on {tower.image_size} pixels are none: try "
            f"{side**2} or {(side + 1) ** 2} tokens, or mm_patch_merge_type 'flat'."
        )
    return side
