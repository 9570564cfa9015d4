"""An original llava checkpoint's config.json: what it describes, and what of it transformers can hold.

The original package keeps one flat config.json: the language model's fields with `mm_*` fields between them. transformers
keeps one configuration each for host, language model and tower.

Source: haotian-liu/LLaVA, `llava/model/llava_arch.py`, `llava/mm_utils.py`; transformers 5.23, `models/llava*/`.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from ...util.errors import reason
from ...util.files import read_json

LANGUAGE_MODELS: dict[str, type[PreTrainedConfig]] = {
    "llava_llama": LlamaConfig,
    "llava": LlamaConfig,  # checkpoints from before the package knew other language models
    "llava_mistral": MistralConfig,
    "llava_qwen": Qwen2Config,
}
PROJECTORS = ("linear", "mlp2x_gelu")
SQUARE_PHOTOS = ("pad", "square", None)
# Of every configuration, so that they say nothing of a model; those that do are in the line after.
_GENERAL = PreTrainedConfig().to_dict().keys() - {"tie_word_embeddings"}
_EARLIER = {"rope_theta", "rope_scaling", "bos_token_id", "eos_token_id", "pad_token_id"}


@dataclass(frozen=True)
class Original:
    """What an original checkpoint's config.json says.

    Attributes:
        fields: The file's content.
        kind: The host that transformers has for it.
        text: The language model's configuration.
        left_out: Fields that no configuration of transformers knows.
        projector: One of `PROJECTORS`.
        tower: Name of its vision tower: a folder or hub id.
        layer: Which hidden state of the tower is read.
        strategy: "default" reads the patches, "full" the class token and the patches.
        pads: Whether a photo is padded to a square; else it is cropped.
        pinpoints: (height, width) in pixels that photos are brought to before they are cut into tiles.
        marks_photos: Whether a photo's tokens stand between <im_start> and <im_end>.
    """

    fields: dict[str, Any]
    kind: Literal["llava", "llava_next"]
    text: PreTrainedConfig
    left_out: tuple[str, ...]
    projector: str
    tower: str
    layer: int
    strategy: Literal["default", "full"]
    pads: bool
    pinpoints: tuple[tuple[int, int], ...]
    marks_photos: bool


def read_original(folder: Path) -> Original:
    """Reads config.json; refuses what is no original LLaVA, or has parts that transformers' LLaVA has not.

    Raises:
        ValueError: With the reason and, where there is one, the way out.
    """
    fields = _fields(folder)
    model_type = fields.get("model_type")
    if model_type not in LANGUAGE_MODELS:
        raise ValueError(
            f"{folder} is of type {model_type!r}; checkpoints of {', '.join(LANGUAGE_MODELS)} can be converted."
        )
    if fields.get("quantization_config"):
        raise ValueError(f"{folder} is quantised: convert the checkpoint it was made from, and quantise after.")
    if fields.get("s2"):
        raise ValueError(f"{folder} reads its tower at several scales (s2), which transformers' LLaVA does not.")
    projector = fields.get("mm_projector_type", "linear")
    if projector not in PROJECTORS:
        raise ValueError(
            f"{folder} has a projector of type {projector!r}; transformers' LLaVA holds {' and '.join(PROJECTORS)}."
        )
    select = fields.get("mm_vision_select_feature", "patch")
    if select not in ("patch", "cls_patch"):
        raise ValueError(f"{folder} selects {select!r} of its tower's tokens; 'patch' and 'cls_patch' are known.")
    layer = fields.get("mm_vision_select_layer", -2)
    if not isinstance(layer, int):
        raise ValueError(
            f"{folder} reads its tower at mm_vision_select_layer {layer!r}; one layer, such as -2, is known."
        )
    kind, pinpoints = _tiles(folder, fields)
    if kind == "llava_next" and select == "cls_patch":
        raise ValueError(f"{folder} reads class tokens of tiles (cls_patch), which cannot be put together as a grid.")
    text_kind = LANGUAGE_MODELS[model_type]
    text_fields = known_fields(text_kind, fields)
    return Original(
        fields=fields,
        kind=kind,
        text=_text_config(folder, text_kind, text_fields),
        left_out=tuple(sorted(name for name in fields.keys() - text_fields if not _described_elsewhere(name))),
        projector=projector,
        tower=str(fields["mm_vision_tower"]),
        layer=layer,
        strategy="default" if select == "patch" else "full",
        pads=fields.get("image_aspect_ratio") == "pad",
        pinpoints=pinpoints,
        marks_photos=bool(fields.get("mm_use_im_start_end", False)),
    )


def host_config(
    original: Original, vision: CLIPVisionConfig, image_token: int, rows: int, dtype: torch.dtype
) -> PreTrainedConfig:
    """transformers' configuration of the host.

    Args:
        original: From `read_original`.
        vision: The tower's.
        image_token: Id of the token that holds the places of a photo's tokens.
        rows: Of the embedding, after it was extended.
        dtype: What the language model is stored in.

    Raises:
        ValueError: The tower has not the width, layer or image size that the checkpoint asks for.
    """
    expected = original.fields.get("mm_hidden_size", vision.hidden_size)
    if vision.hidden_size != expected:
        raise ValueError(
            f"The checkpoint's projector reads tokens {expected} wide, and the tower {original.tower} gives "
            f"{vision.hidden_size}: name the tower it was trained on by --vision-tower."
        )
    depth = vision.num_hidden_layers
    if not -depth - 1 <= original.layer <= depth:
        raise ValueError(f"The checkpoint reads layer {original.layer} of its tower, which has {depth} blocks.")
    side, patch = cast(int, vision.image_size), cast(int, vision.patch_size)  # CLIP's photos and patches are square
    if broken := [size for size in original.pinpoints if size[0] % side or size[1] % side]:
        raise ValueError(f"The checkpoint's grid {list(broken[0])} is no multiple of its tower's {side} pixels.")
    text = original.text.to_dict() | {"vocab_size": rows}
    tied = bool(original.text.tie_word_embeddings)
    shared: dict[str, Any] = dict(
        vision_config=vision.to_dict(),
        text_config=text,
        image_token_index=image_token,
        image_seq_length=(side // patch) ** 2 + (original.strategy == "full"),
        projector_hidden_act="gelu" if original.projector == "mlp2x_gelu" else "linear",
        vision_feature_layer=original.layer,
        vision_feature_select_strategy=original.strategy,
        tie_word_embeddings=tied,
    )
    if original.kind == "llava_next":
        config: PreTrainedConfig = LlavaNextConfig(**shared, image_grid_pinpoints=[list(x) for x in original.pinpoints])
    else:
        config = LlavaConfig(**shared)
    config.dtype = dtype
    return config


def known_fields(kind: type[PreTrainedConfig], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a configuration class knows, by their names in this and in earlier versions of transformers."""
    known = (kind().to_dict().keys() - _GENERAL) | (_EARLIER if kind is not CLIPVisionConfig else set())
    return {name: value for name, value in fields.items() if name in known}


def _fields(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file() or (folder / "non_lora_trainables.bin").is_file():
        raise ValueError(
            f"{folder} holds LoRA weights: merge them into their base first, with the llava package's "
            "scripts/merge_lora_weights.py, and convert what that writes."
        )
    if not path.is_file():
        raise ValueError(f"{folder} is no folder with a config.json, so that it is no checkpoint.")
    fields = read_json(path)
    if "mm_vision_tower" not in fields:
        if "vision_config" in fields:
            raise ValueError(f"{folder} is in transformers' layout already: there is nothing to convert.")
        raise ValueError(f"{path} names no mm_vision_tower, so that it is no checkpoint of the llava package.")
    return fields


def _tiles(folder: Path, fields: dict[str, Any]) -> tuple[Literal["llava", "llava_next"], tuple[tuple[int, int], ...]]:
    """The kind of host, and its grids as (height, width): the original package writes them as (width, height)."""
    aspect, merge = fields.get("image_aspect_ratio"), fields.get("mm_patch_merge_type", "flat")
    if aspect in SQUARE_PHOTOS:
        return "llava", ()
    if aspect != "anyres":
        raise ValueError(
            f"{folder} takes photos by image_aspect_ratio {aspect!r}; 'pad', 'square' and 'anyres' can be converted."
        )
    if merge != "spatial_unpad":
        raise ValueError(
            f"{folder} puts tiles together by mm_patch_merge_type {merge!r}; transformers' LLaVA-NeXT does so by "
            "'spatial_unpad' alone."
        )
    pinpoints = fields.get("image_grid_pinpoints")
    try:
        pairs: Any = ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints
        return "llava_next", tuple((int(height), int(width)) for width, height in pairs)
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"{folder} has image_grid_pinpoints {pinpoints!r}, which is no list of sizes.") from error


def _text_config(folder: Path, kind: type[PreTrainedConfig], fields: dict[str, Any]) -> PreTrainedConfig:
    padding = fields.get("pad_token_id")
    if padding is not None and not 0 <= padding < fields.get("vocab_size", 0):
        fields = fields | {"pad_token_id": None}  # old LLaMA files say -1
    try:
        return kind(**fields)
    except Exception as error:  # transformers' checks of fields raise several kinds
        raise ValueError(f"{folder / 'config.json'} describes no {kind.__name__}: {reason(error)}") from error


def _described_elsewhere(name: str) -> bool:
    """Whether a field is read here, or is of the training and of the file itself."""
    read = ("image_aspect_ratio", "image_grid_pinpoints", "model_type", "torch_dtype", "dtype", "_name_or_path")
    return name in read or name in _GENERAL or re.match("mm_|s2", name) is not None
