"""A SparseFormer as a Hugging Face folder: opened strictly, and the preprocessor that belongs into it."""

from pathlib import Path
from typing import Any

from PIL import Image
from transformers import CLIPImageProcessor, SiglipImageProcessor

from ..util.errors import reason
from ..util.files import read_json
from ..util.tensors import opened_strictly
from .configuration import SparseFormerConfig
from .sparseformer import SparseFormerModel


def open_config(folder: str | Path) -> SparseFormerConfig:
    """The configuration in a SparseFormer folder; ValueError if it is none."""
    path = Path(folder) / "config.json"
    kind = read_json(path).get("model_type") if path.is_file() else None
    if kind != SparseFormerConfig.model_type:
        found = f"its config.json says {kind!r}" if path.is_file() else "it holds no config.json"
        raise ValueError(f"{folder} is no SparseFormer folder: {found}.")
    try:
        return SparseFormerConfig.from_pretrained(folder)
    except Exception as error:  # transformers reads some fields itself, and each fails in its own way
        raise ValueError(f"{path} describes no SparseFormer: {reason(error)}") from error


def open_student(folder: str | Path) -> SparseFormerModel:
    """Opens a SparseFormer folder, strictly.

    Raises:
        ValueError: It is no such folder, or its tensors are not those of its configuration.
    """
    open_config(folder)
    return opened_strictly(SparseFormerModel, folder, "SparseFormer")


def image_processor(config: SparseFormerConfig) -> CLIPImageProcessor | SiglipImageProcessor:
    """The preprocessor of the teacher at the student's size, which squashes a photo to the square or crops it."""
    size, side = config.image_size, round(config.image_size / config.crop_pct)
    shared: dict[str, Any] = {
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "resample": Image.Resampling[config.resample.upper()],
    }
    square = {"height": side, "width": side}
    if config.squashes and side == size:
        return SiglipImageProcessor(size=square, **shared)
    resized = square if config.squashes else {"shortest_edge": side}
    return CLIPImageProcessor(size=resized, crop_size={"height": size, "width": size}, **shared)
