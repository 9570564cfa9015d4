"""Random models of published sizes, to measure what they cost without their weights: no checkpoint is read.

    open_shape("7b")    LLaVA-1.5-7B; the same with a SparseFormer of 49 tokens; the same with 64 tokens picked by class attention
    CLIPS["clip-b16"]   a CLIP alone, for `sfvlm.speed.encoders`

The hosts of a shape share one language model and projector. Sizes: llava-hf/llava-1.5-7b-hf, openai/clip-vit-base-patch16,
openai/clip-vit-large-patch14-336 (`config.json`).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
)

from ..alternatives.configuration import ReducedTowerConfig
from ..encoder.configuration import SparseFormerConfig
from ..teachers.student import student_config
from .hosts import Subject

# Fields of transformers' CLIPVisionConfig.
CLIPS: dict[str, dict[str, Any]] = {
    "clip-b16": dict(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=224,
        patch_size=16, hidden_act="quick_gelu", projection_dim=512,
    ),
    "clip-l14-336": dict(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, hidden_act="quick_gelu", projection_dim=768,
    ),
}  # fmt: skip
CGROUP = Path("/sys/fs/cgroup")  # of the container
TEXT_WORDS = 40  # of a prompt, around the photo
READ_LAYER = -2


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaVA-1.5: fields of transformers' CLIPVisionConfig and LlamaConfig, and the small budgets beside it."""

    name: str
    vision: dict[str, Any]
    text: dict[str, Any]
    sparse_tokens: int
    picked_tokens: int


SHAPES = {
    "7b": Shape(
        "llava-1.5-7b",
        CLIPS["clip-l14-336"],
        dict(
            vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-5,
        ),
        sparse_tokens=49,
        picked_tokens=64,
    ),
    "tiny": Shape(
        "llava-tiny",
        dict(
            hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2, image_size=84,
            patch_size=14, hidden_act="quick_gelu", projection_dim=16,
        ),
        dict(
            vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5,
        ),
        sparse_tokens=9,
        picked_tokens=16,
    ),
}  # fmt: skip


def shape_named(name: str) -> Shape:
    """The shape of that name.

    Raises:
        ValueError: There is none.
    """
    if name not in SHAPES:
        raise ValueError(f"There is no shape {name!r}; the shapes are {', '.join(SHAPES)}.")
    return SHAPES[name]


def open_shape(name: str, *, dtype: torch.dtype, device: str | torch.device, batch_size: int = 1) -> list[Subject]:
    """Makes the hosts of a shape with random weights: the dense one, the sparse one, and the one that picks tokens.

    Args:
        name: One of `SHAPES`.
        dtype: Of all weights but the boxes, which are float32 always; they are made in it, where they are to be.
        device: Where that is.
        batch_size: Replies at once, for the memory that their cache needs.

    Raises:
        ValueError: There is no such shape, or less memory than it needs.
    """
    shape, device = shape_named(name), torch.device(device)
    needed, free = needed_memory(shape, dtype, batch_size), free_memory(device)
    if free is not None and needed > free:
        raise ValueError(
            f"The shape {name!r} in {str(dtype).removeprefix('torch.')} needs {needed / 1e9:.1f} GB on {device} for its "
            f"weights and the cache of {batch_size} at once, and {free / 1e9:.1f} GB are free: take another device."
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with device:
            dense = AutoModelForImageTextToText.from_config(_dense_config(shape), dtype=dtype)
            towers = [AutoModel.from_config(config, dtype=dtype) for config in _tower_configs(shape)]
    hosts = [dense, *(_with_tower(dense, tower) for tower in towers)]
    names = (shape.name, f"{shape.name}-{shape.sparse_tokens}", f"{shape.name}-cls-attention-{shape.picked_tokens}")
    counts = ((shape.vision["image_size"] // shape.vision["patch_size"]) ** 2, shape.sparse_tokens, shape.picked_tokens)
    return [
        _subject(title, f"shape:{name}", host.eval().requires_grad_(False), count)
        for title, host, count in zip(names, hosts, counts, strict=True)
    ]


def needed_memory(shape: Shape, dtype: torch.dtype, batch_size: int) -> int:
    """Bytes of all weights of a shape, and of the dense host's cache for so many replies; nothing is allocated."""
    with torch.device("meta"):
        dense: nn.Module = AutoModelForImageTextToText.from_config(_dense_config(shape))
        models = [dense, *(AutoModel.from_config(config) for config in _tower_configs(shape))]
    weights = sum(parameter.numel() for model in models for parameter in model.parameters())
    tokens = (shape.vision["image_size"] // shape.vision["patch_size"]) ** 2 + TEXT_WORDS
    width = shape.text["hidden_size"] // shape.text["num_attention_heads"] * shape.text["num_key_value_heads"]
    cache = 2 * shape.text["num_hidden_layers"] * width * tokens * batch_size
    return (weights + cache) * dtype.itemsize


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device, or None where that is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    facts = Path("/proc/meminfo")
    if device.type != "cpu" or not facts.exists():
        return None
    lines = dict(line.split(":", 1) for line in facts.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit = CGROUP / "memory.max"
    if limit.exists() and (allowed := limit.read_text().strip()) != "max":  # a container's own limit
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used = int((CGROUP / "memory.current").read_text()) - int(counts["inactive_file"])  # files read give way
        free = min(free, int(allowed) - used)
    return free


def _dense_config(shape: Shape) -> LlavaConfig:
    """Of the dense host; the word that stands for image tokens is the last of its vocabulary."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**shape.vision).to_dict(),
        text_config=LlamaConfig(**shape.text).to_dict(),
        image_token_index=shape.text["vocab_size"] - 1,
        vision_feature_layer=READ_LAYER,
        vision_feature_select_strategy="default",
    )


def _tower_configs(shape: Shape) -> Sequence[PreTrainedConfig]:
    """Of the sparse tower, and of the dense one that picks tokens; both from the dense tower's sizes."""
    dense = dense_config(shape.vision | {"projection_dim": 0})
    picked = ReducedTowerConfig(
        method="cls-attention", num_tokens=shape.picked_tokens, read_layer=READ_LAYER, dense_config=dense.to_dict()
    )
    return student_config(dense, num_tokens=shape.sparse_tokens, for_host=True), picked


def dense_config(vision: dict[str, Any]) -> SparseFormerConfig:
    """What a `DenseTransformer` of these sizes, fields of transformers' CLIPVisionConfig, is made of."""
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "hidden_act",
        "projection_dim",
    )  # fmt: skip
    return SparseFormerConfig(
        teacher_patch_size=vision["patch_size"],
        teacher_grid=vision["image_size"] // vision["patch_size"],
        **{name: vision[name] for name in names},
    )


def _with_tower(dense: Any, tower: Any) -> Any:
    """Another host of the same projector and language model: they are shared, not copied."""
    config = copy.deepcopy(dense.config)
    config.vision_config = tower.config
    with torch.device("meta"):
        host = type(dense)(config)
    host.model.vision_tower = tower
    host.model.multi_modal_projector = dense.model.multi_modal_projector
    host.model.language_model = dense.model.language_model
    host.lm_head = dense.lm_head
    return host


def _subject(name: str, source: str, model: Any, image_tokens: int) -> Subject:
    """A host that reads random pixels and words, the photo's tokens amid the words."""
    side, placeholder = model.config.vision_config.image_size, model.config.image_token_id

    def inputs(count: int, turn: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(turn)
        words = torch.randint(placeholder, (count, TEXT_WORDS), generator=generator)
        photo = torch.full((count, image_tokens), placeholder)
        ids = torch.cat([words[:, : TEXT_WORDS // 2], photo, words[:, TEXT_WORDS // 2 :]], dim=1).to(model.device)
        pixels = torch.randn(count, 3, side, side, generator=generator).to(model.device, model.dtype)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}

    return Subject(name, source, model, inputs, is_prepared=True)
