"""What a host expects of its tower, read from its configuration and processor.

Tokens are counted as the host's own model hands them on (transformers, `models/llava*/modeling_*.py`), and photos are described
as its processor shows them, once: bootstrapping, its evaluation and the measure of fidelity all go by it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from ..encoder.configuration import layer_from_end
from ..photos.views import padded

Way = Literal["middle", "squashed", "padded"]
HOSTS = ("llava", "llava_next", "llava_onevision")
CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # dense towers, and the class tokens they have


@dataclass(frozen=True)
class HostFacts:
    """What a host expects of its tower, read from its configuration and processor.

    Attributes:
        kind: One of `HOSTS`.
        width: Of a token at one layer, as the projector reads it.
        depth: Blocks of the dense tower.
        layers: Which hidden states are read, counted from the end (-1: after the last block); several are concatenated.
        tokens: Of a photo, or of a tile where photos are cut into tiles; the class token included where it is read.
        reads_cls: Whether the class token is one of them.
        loses_patch: Whether the first patch is none of them: it is left out where a tower without class token is read as if it
            had one (vision_feature_select_strategy "default").
        image_size: Side of a photo or tile in pixels.
        mean, std: How the processor normalises.
        pinpoints: Sizes in pixels that photos are brought to before they are cut into tiles.
        way: How the processor makes a photo square: it takes the middle, squashes all of it, or pads it first, as LLaVA-1.5
            does, in the mean colour. Where there are tiles, this is how the overview that comes with them is made.
        resample: The filter that it resizes with, by Pillow's name in small letters.
        crop_pct: Share of the resized side that its crop keeps.
    """

    kind: str
    width: int
    depth: int
    layers: tuple[int, ...]
    tokens: int
    reads_cls: bool
    loses_patch: bool
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pinpoints: tuple[tuple[int, int], ...]
    way: Way
    resample: str
    crop_pct: float

    @property
    def tiles(self) -> bool:
        """Whether photos are cut into tiles whose tokens are put together as one grid."""
        return self.kind != "llava"

    @property
    def squashes(self) -> bool:
        """Whether all of a photo is squashed to the square."""
        return self.way == "squashed"

    @property
    def padding(self) -> tuple[float, ...] | None:
        """The colour that a photo is padded in; None where it is not."""
        return self.mean if self.way == "padded" else None

    def shown(self, image: Image.Image, squashes: bool) -> Image.Image:
        """A photo such that a view of it shows what the host's processor does.

        Args:
            image: Any photo.
            squashes: Whether the view squashes it to a square; else it takes the middle.
        """
        if self.padding is not None:
            return padded(image, self.padding)
        if self.squashes == squashes:
            return image
        if self.squashes:
            return image.resize((self.image_size, self.image_size), Image.Resampling[self.resample.upper()])
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side))


def read_host(config: Any, processor: Any) -> HostFacts:
    """Reads a host's demands from its transformers configuration and processor.

    Raises:
        ValueError: It is not one of the known hosts, its tower is neither CLIP nor SigLIP or has no such layer as it reads,
            or its photos are not square or not normalised.
    """
    if config.model_type not in HOSTS:
        raise ValueError(f"The host is of type {config.model_type!r}; a tower can be put into {', '.join(HOSTS)}.")
    vision = config.vision_config
    if vision.model_type not in CLASS_TOKENS:
        hint = "; it was swapped before: undo that first" if hasattr(vision, "budget") else ""
        raise ValueError(
            f"The host's tower is of type {vision.model_type!r}; CLIP and SigLIP towers can be replaced{hint}."
        )
    if not hasattr(processor, "image_processor"):
        raise ValueError(f"A {type(processor).__name__} makes no photos: open the host's processor by AutoProcessor.")
    photos = processor.image_processor
    if not getattr(photos, "do_normalize", True):
        raise ValueError("The host's processor does not normalise photos (do_normalize), as a tower's are.")
    factor = getattr(photos, "rescale_factor", None)
    if not getattr(photos, "do_rescale", True) or (factor is not None and abs(255 * factor - 1) > 1e-3):
        raise ValueError(
            "The host's processor does not bring pixels from 0 ... 255 to 0 ... 1 (do_rescale "
            f"{getattr(photos, 'do_rescale', True)}, rescale_factor {factor}), as a tower's are."
        )
    depth, chosen = vision.num_hidden_layers, config.vision_feature_layer
    chosen = [chosen] if isinstance(chosen, int) else list(chosen)
    outside = [layer for layer in chosen if not -depth - 1 <= layer <= depth]
    if outside or not chosen:
        raise ValueError(
            f"The host reads layer {outside or chosen} of its tower (vision_feature_layer), which has {depth} blocks."
        )
    for name in ("image_mean", "image_std"):
        if len(getattr(photos, name, None) or ()) != 3:
            raise ValueError(f"The host's processor has {name} {getattr(photos, name, None)}; it is three numbers.")
    side = _side_of_photos(photos, vision.image_size)
    if side != vision.image_size:
        raise ValueError(
            f"The host's processor makes photos of {side} pixels a side, and its tower reads {vision.image_size} (image_size): one of "
            "the two is another host's."
        )
    mean = tuple(map(float, photos.image_mean))
    has_class_token, first_is_lost = bool(CLASS_TOKENS[vision.model_type]), _loses_first(config)
    return HostFacts(
        kind=config.model_type,
        width=vision.hidden_size,
        depth=depth,
        layers=tuple(layer_from_end(layer, depth) for layer in chosen),
        reads_cls=has_class_token and not first_is_lost,
        loses_patch=not has_class_token and first_is_lost,
        tokens=dense_tokens(config),
        image_size=side,
        mean=mean,
        std=tuple(map(float, photos.image_std)),
        pinpoints=tuple((height, width) for height, width in getattr(config, "image_grid_pinpoints", ())),
        way=_way_of_photos(config.model_type, photos),
        resample=_filter_of_photos(photos),
        crop_pct=_share_of_photos(photos, side),
    )


def dense_tokens(config: Any) -> int:
    """Tokens of a photo, or of a tile, that a host of this configuration reads from its own CLIP or SigLIP tower."""
    vision = config.vision_config
    return (vision.image_size // vision.patch_size) ** 2 + CLASS_TOKENS[vision.model_type] - _loses_first(config)


def _loses_first(config: Any) -> bool:
    return config.vision_feature_select_strategy == "default"


def _side_of_photos(image_processor: Any, tile: int) -> int:
    """Side of the squares that a processor makes, in pixels."""
    size = dict(image_processor.size or {})
    cropped = dict(image_processor.crop_size or {}) if getattr(image_processor, "do_center_crop", False) else {}
    found = cropped or size
    if {"height", "width"} <= found.keys() and found["height"] == found["width"]:
        return found["height"]
    if "image_grid_pinpoints" in image_processor.__dict__ and "shortest_edge" in found:  # tiles are square anyhow
        return tile
    raise ValueError(f"The host's processor makes photos of {found}, and not squares of one size.")


def _way_of_photos(kind: str, image_processor: Any) -> Way:
    """How a processor makes photos square."""
    if kind != "llava":  # the overview is resized to one square; padding is a matter of tiles there
        return "squashed"
    if getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square"):
        return "padded"
    size = dict(image_processor.size or {})
    return "squashed" if size.get("height") is not None else "middle"


def _filter_of_photos(image_processor: Any) -> str:
    """The name of the filter that a processor resizes with."""
    given = getattr(image_processor, "resample", None)
    try:
        return Image.Resampling(3 if given is None else int(given)).name.lower()
    except (ValueError, TypeError):
        raise ValueError(f"The host's processor has resample {given!r}, which is none of Pillow's filters.") from None


def _share_of_photos(image_processor: Any, side: int) -> float:
    """Share of the resized side that a processor's crop keeps; tiles are resized to what they keep."""
    size = dict(image_processor.size or {})
    resized = size.get("shortest_edge") or size.get("height")
    cropped = (
        getattr(image_processor, "do_center_crop", False) and "image_grid_pinpoints" not in image_processor.__dict__
    )
    return side / resized if cropped and resized else 1.0
