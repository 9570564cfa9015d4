"""What a teacher's own preprocessor does to a photo: transformers', open_clip's and timm's fields to ours.

Every field stands on one of three lists: honoured, harmless, or, as one that is on neither list, refused by its name.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..encoder.configuration import CLIP_MEAN, CLIP_STD, RESAMPLES
from ..util.errors import reason
from ..util.files import read_json

Triple = tuple[float, ...]
_ANY = object()
_PILLOW = {int(each): each.name.lower() for each in Image.Resampling}

# By field, the values with which it changes nothing, beside null; `_ANY`: it never does.
_TRANSFORMERS_HONOURED = (
    "size", "default_to_square", "crop_size", "do_center_crop", "resample", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
)  # fmt: skip
_TRANSFORMERS_HARMLESS: dict[str, Any] = {
    "do_resize": _ANY,  # decides, in `of_transformers`
    "do_convert_rgb": (True, False),  # photos are always made RGB, and the library fails at others where it does not
    "do_pad": (True, False),  # to the largest of a batch of equals; what a LLaVA pads is a matter of its host
    "pad_size": (),
    "use_square_size": (False,),
    "data_format": ("channels_first",),
    "input_data_format": _ANY,  # of arrays, and photos are none
    "return_tensors": _ANY,
    "device": _ANY,
    "disable_grouping": _ANY,
    "image_processor_type": _ANY,  # decides, in `_PROCESSORS`
    "feature_extractor_type": _ANY,
    "processor_class": _ANY,
    "_processor_class": _ANY,
    "_valid_processor_keys": _ANY,
    "transformers_version": _ANY,
    "image_seq_length": _ANY,  # tokens of a host
    "image_grid_pinpoints": _ANY,  # tiles of a host
    "aspect_ratio_setting": _ANY,
    "vision_aspect_ratio": _ANY,
}  # fmt: skip
_PROCESSORS = ("CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor", "BitImageProcessor")
_OF_HOSTS = ("LlavaImageProcessor", "LlavaNextImageProcessor", "LlavaOnevisionImageProcessor")
_OPEN_CLIP_HONOURED = ("mean", "std", "interpolation", "resize_mode")
_OPEN_CLIP_HARMLESS = {
    "mode": ("RGB",),
    "size": _ANY,
    "fill_color": _ANY,
}  # the model's size; only the longest side is padded
_TIMM_HONOURED = ("mean", "std", "crop_pct", "crop_mode", "interpolation", "input_size")
_TIMM_HARMLESS: dict[str, Any] = dict.fromkeys(
    (
        "url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag", "custom_load",  # where from
        "test_input_size", "test_crop_pct", "min_input_size", "fixed_input_size",  # only on demand
        "num_classes", "label_offset", "label_names", "label_descriptions", "first_conv", "classifier", "pool_size",
        "test_pool_size",  # the tensors decide
        "license", "description", "origin_url", "paper_name", "paper_ids", "notes",
    ),
    _ANY,
)  # fmt: skip


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes pixels, as the fields of `SparseFormerConfig` of the same names say it."""

    image_mean: Triple
    image_std: Triple
    squash: bool
    crop_pct: float
    resample: str
    crop_rounding: str


def of_transformers(folder: Path, image_size: int, *, siglip: bool, hosted: bool) -> Preprocessing:
    """The preprocessor in a model's folder, which file of it transformers reads; the model's usual one where there is none.

    Args:
        folder: Of the model.
        image_size: Side of the photos that the model takes.
        siglip: Whether it is a SigLIP; else it is a CLIP.
        hosted: Whether it is a LLaVA's, which may pad photos or cut them into tiles: what a host does beside is not its tower's.

    Raises:
        ValueError: It cannot be read, has a field that is not honoured, or makes photos of another size.
    """
    from transformers import CLIPImageProcessor, SiglipImageProcessor

    usual = SiglipImageProcessor if siglip else CLIPImageProcessor
    written, path = _written_for_transformers(folder)
    if not written:
        warnings.warn(
            f"{folder} holds no settings of an image processor: photos are made as {usual.__name__} makes them.",
            stacklevel=2,
        )
    _check_fields(written, _TRANSFORMERS_HONOURED, _TRANSFORMERS_HARMLESS, path)
    named = written.get("image_processor_type") or written.get("feature_extractor_type") or usual.__name__
    kind = str(named).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    known = (*_PROCESSORS, *(_OF_HOSTS if hosted else ()))
    if kind not in known:
        raise ValueError(f"{path} is of a {named} (image_processor_type), and known are {', '.join(known)}.")
    try:
        processor = _transformers_processor(kind, written)
        sizes = {name: _sizes(getattr(processor, name, None)) for name in ("size", "crop_size")}
    except Exception as error:  # transformers checks each field in its own way
        raise ValueError(f"{path} cannot be read: {reason(error)}") from error
    for name in ("do_center_crop", "do_rescale", "do_normalize", "default_to_square"):
        if getattr(processor, name, None) not in (None, True, False):
            raise ValueError(f"{path} has {name} {getattr(processor, name)!r}; it is true or false.")
    if kind == "LlavaImageProcessor" and processor.do_pad:
        warnings.warn(
            f"{path} pads photos (do_pad), which its host does and its tower does not: as a teacher it sees them unpadded, and padded "
            "where it is given as --host.",
            stacklevel=2,
        )
    if processor.do_resize is not True:
        raise ValueError(f"{path} has do_resize {processor.do_resize!r}, and photos are always resized: make it true.")

    scale = 255 * (_number(processor.rescale_factor, "rescale_factor", path) if processor.do_rescale else 1)
    scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-6) else scale
    mean, std = (0.0,) * 3, (1.0,) * 3
    if processor.do_normalize:
        mean, std = (
            _three(getattr(type(processor) if written.get(name) is None else processor, name), name, path)
            for name in ("image_mean", "image_std")
        )
    squash, side = _resized_side(written, sizes, image_size, path)
    tiles = getattr(processor, "image_grid_pinpoints", None) is not None  # which are square anyhow
    return Preprocessing(
        image_mean=tuple(each / scale for each in mean),  # of pixels that are divided by 255
        image_std=_positive(tuple(each / scale for each in std), "image_std", path),
        squash=squash,
        crop_pct=_kept(processor, written, sizes, side, image_size, path, squash=squash, tiles=tiles),
        resample=_resample(processor.resample, "resample", path),
        crop_rounding="down",
    )


def of_open_clip(visual: Any, source: str) -> Preprocessing:
    """The preprocessing that open_clip keeps with a vision tower.

    Raises:
        ValueError: It has a field that is not honoured.
    """
    described = dict(getattr(visual, "preprocess_cfg", None) or {})
    if source.startswith("local-dir:"):  # open_clip leaves out what it does not know
        path = Path(source.removeprefix("local-dir:")) / "open_clip_config.json"
        written = read_json(path).get("preprocess_cfg") or {}
        described = {**(written if isinstance(written, dict) else {}), **described}
    where = f"The preprocess_cfg of {source!r}"
    _check_fields(described, _OPEN_CLIP_HONOURED, _OPEN_CLIP_HARMLESS, where)
    mode = described.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):
        raise ValueError(
            f"{where} has resize_mode {mode!r}, and photos are cropped ('shortest') or squashed ('squash')."
        )
    # Only in training does open_clip draw the filter.
    drawn = described.get("interpolation") in (None, "", "random")
    filter_name = "bicubic" if drawn else described["interpolation"]
    return Preprocessing(
        image_mean=_three(described.get("mean") or CLIP_MEAN, "mean", where),
        image_std=_positive(_three(described.get("std") or CLIP_STD, "std", where), "std", where),
        squash=mode == "squash",
        crop_pct=1.0,
        resample=_resample(filter_name, "interpolation", where),
        crop_rounding="even",
    )


def of_timm(described: Mapping[str, Any], image_size: int, source: str) -> Preprocessing:
    """The preprocessing in a timm model's `pretrained_cfg`, as timm's own transform for evaluation reads it.

    Raises:
        ValueError: It has a field that is not honoured.
    """
    where = f"The pretrained_cfg of {source!r}"
    _check_fields(described, _TIMM_HONOURED, _TIMM_HARMLESS, where)
    mode = described.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ValueError(f"{where} has crop_mode {mode!r}, and photos are cropped ('center') or squashed ('squash').")
    channels = (described.get("input_size") or (3,))[0]
    if channels != 3:
        raise ValueError(f"{where} has input_size {tuple(described['input_size'])}, and photos have 3 channels.")
    share = _number(described.get("crop_pct") or 0.875, "crop_pct", where)
    side = math.floor(image_size / share)
    if side < image_size:
        raise ValueError(f"{where} has crop_pct {share}, and a crop is at most 1: more would be padded.")
    return Preprocessing(
        image_mean=_three(described.get("mean"), "mean", where),
        image_std=_positive(_three(described.get("std"), "std", where), "std", where),
        squash=mode == "squash",
        crop_pct=image_size / side,
        resample=_resample(described.get("interpolation") or "bicubic", "interpolation", where),
        crop_rounding="even",
    )


def _written_for_transformers(folder: Path) -> tuple[dict[str, Any], Path]:
    """The settings of a folder's image processor and their file: of a whole processor before those that stand alone."""
    whole, alone = folder / "processor_config.json", folder / "preprocessor_config.json"
    nested = read_json(whole).get("image_processor") if whole.is_file() else None
    if nested is not None and not isinstance(nested, dict):
        raise ValueError(f"{whole} has image_processor {nested!r}; it is a JSON object.")
    if nested is not None or not alone.is_file():
        return nested or {}, whole
    return read_json(alone), alone


def _transformers_processor(kind: str, written: dict[str, Any]) -> Any:
    import transformers

    # Older files hold all sides of a size, of which one is no null.
    fields = {
        name: _sizes(value) if name in ("size", "crop_size") and isinstance(value, dict) else value
        for name, value in written.items()
    }
    return getattr(transformers, kind).from_dict(fields)


def _check_fields(
    given: Mapping[str, Any], honoured: tuple[str, ...], harmless: Mapping[str, Any], where: object
) -> None:
    for name, value in given.items():
        if name in honoured or value is None:
            continue
        allowed = harmless.get(name, ())
        if allowed is not _ANY and not any(
            value is each or (value == each and isinstance(value, str)) for each in allowed
        ):
            told = f"; it must be {' or '.join(map(repr, allowed))}" if allowed else ""
            raise ValueError(
                f"{where} has {name} {value!r}, which is not honoured{told}: remove the field, or change it."
            )


def _resized_side(
    written: dict[str, Any], sizes: dict[str, dict[str, int]], image_size: int, path: Path
) -> tuple[bool, int]:
    """Whether a photo is squashed, and to which side it is resized."""
    size = sizes["size"]
    squash = "height" in size
    if written.get("size") is None:
        return squash, image_size
    if size.keys() == {"shortest_edge"}:
        return False, size["shortest_edge"]
    if size.keys() == {"height", "width"} and size["height"] == size["width"]:
        return True, size["height"]
    raise ValueError(
        f"{path} has size {size}, and photos are resized by their shortest_edge alone, or to a square of height and width."
    )


def _kept(
    processor: Any,
    written: dict[str, Any],
    sizes: dict[str, dict[str, int]],
    side: int,
    image_size: int,
    path: Path,
    *,
    squash: bool,
    tiles: bool,
) -> float:
    """Share of the resized side that is kept."""
    crop, name = sizes["crop_size"], "crop_size"
    if not processor.do_center_crop:
        crop, name = {"height": side, "width": side}, "size"
        if not squash and not tiles:
            raise ValueError(f"{path} has do_center_crop {processor.do_center_crop!r}, so that photos are no squares.")
    elif written.get("crop_size") is None:
        crop = {"height": image_size, "width": image_size}
    if crop != {"height": image_size, "width": image_size}:
        raise ValueError(
            f"{path} makes photos of {crop} ({name}), and the model takes squares of {image_size} pixels (image_size in config.json)."
        )
    if side < image_size:
        raise ValueError(
            f"{path} resizes to {side} pixels and crops {image_size} of them, so that photos would be padded."
        )
    return image_size / side


def _sizes(size: Any) -> dict[str, int]:
    """The sides that a size of transformers names, of which versions keep those that are null.

    Raises:
        ValueError: One is no number of pixels.
    """
    named = {name: side for name, side in dict(size or {}).items() if side is not None}
    if any(type(side) is not int or side < 1 for side in named.values()):
        raise ValueError(f"a size is {named}, and sides are whole numbers of pixels")
    return named


def _resample(value: Any, field: str, where: object) -> str:
    """A filter's name, given by that or by Pillow's number."""
    name = _PILLOW.get(value, value) if isinstance(value, int) else value
    if name not in RESAMPLES:
        raise ValueError(f"{where} has {field} {name!r}, and photos are resized {' or '.join(RESAMPLES)}.")
    return str(name)


def _number(value: Any, field: str, where: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{where} has {field} {value!r}; it is a number above 0.")
    return float(value)


def _three(value: Any, field: str, where: object) -> Triple:
    """Three numbers, or one for all three."""
    values = value if isinstance(value, list | tuple) else (value,) * 3
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3 or any(
        isinstance(each, bool) or not isinstance(each, int | float) or not math.isfinite(each) for each in values
    ):
        raise ValueError(f"{where} has {field} {value!r}; it is three numbers, or one for all.")
    return tuple(map(float, values))


def _positive(values: Triple, field: str, where: object) -> Triple:
    if min(values) <= 0:
        raise ValueError(f"{where} has {field} {list(values)}, by which pixels are divided: numbers above 0.")
    return values
