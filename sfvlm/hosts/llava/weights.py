"""An original llava checkpoint's tensors, renamed from file to file: the whole model is never in memory.

The tables below are all there is of names. What they do not name is an error, and so is a tensor of transformers' model
that nothing fills.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration, PreTrainedConfig

from ...zoo.weight_files import SAFE_INDEX, WeightFiles, holds_weights, open_weights, read_tensor

Shapes = dict[str, tuple[int, ...]]  # of every tensor of transformers' model, by its name as written
SHARD_BYTES = 5_000_000_000
TOWER_IN_CHECKPOINT = "model.vision_tower.vision_tower."

# Original -> written; the first that fits. What is written are the names of released llava-hf checkpoints, which transformers
# reads in every version.
NAMES = (
    (f"{TOWER_IN_CHECKPOINT}vision_model.", "vision_tower.vision_model."),
    (TOWER_IN_CHECKPOINT, "vision_tower.vision_model."),  # as saved under transformers 5
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.mm_projector.", "multi_modal_projector.linear_1."),  # of type linear
    ("model.image_newline", "image_newline"),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
TOWER_NAMES = (("vision_model.", "vision_tower.vision_model."), ("", "vision_tower.vision_model."))
# transformers' module -> written
_MODULES = (
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
# Endings of names that are dropped on purpose, and why.
DROPPED = {
    "rotary_emb.inv_freq": "computed from the configuration",
    "embeddings.position_ids": "computed from the configuration",
}
# Beginnings of names of a whole CLIP, which a tower is taken from.
DROPPED_OF_CLIP = {
    "text_model.": "of CLIP's text tower",
    "text_projection.": "of CLIP's text tower",
    "visual_projection.": "LLaVA reads no pooled vector",
    "logit_scale": "of CLIP's contrast",
}


class Renamed(NamedTuple):
    """How the tensors of a set of files are written: old name -> new name, and old name -> reason where dropped."""

    names: dict[str, str]
    dropped: dict[str, str]


def open_checkpoint(folder: Path) -> WeightFiles:
    """The weight files of a folder, in safetensors or pickled.

    Raises:
        ValueError: There are none; one is missing or damaged; a pickle holds other things than tensors.
    """
    if (folder / "mm_projector.bin").is_file() and not holds_weights(folder):
        raise ValueError(
            f"{folder} holds a projector alone (mm_projector.bin): open it with its language model in the llava package "
            "(--model-base), save that model whole, and convert what was saved."
        )
    return open_weights(folder, pickles=True)


def rename_checkpoint(weights: WeightFiles, config: PreTrainedConfig, shapes: Shapes) -> Renamed:
    """The checkpoint's own tensors: language model, projector, newline, and the tower where it holds one.

    Raises:
        ValueError: A tensor is unknown.
    """
    dropped = _computed(weights)
    if config.model_type == "llava" and "model.image_newline" in weights.where:
        dropped["model.image_newline"] = "photos are not cut into tiles"
    if config.tie_word_embeddings and "lm_head.weight" in weights.where:
        if not torch.equal(read_tensor(weights, "lm_head.weight"), read_tensor(weights, "model.embed_tokens.weight")):
            raise ValueError("config.json ties lm_head to the embedding, but the checkpoint's two tensors differ.")
        dropped["lm_head.weight"] = "tied to the embedding"
    return _renamed(weights, NAMES, dropped, shapes)


def rename_tower(weights: WeightFiles, shapes: Shapes) -> Renamed:
    """The tensors of a tower's own folder, which may be a whole CLIP.

    Raises:
        ValueError: A tensor is unknown.
    """
    dropped = _computed(weights)
    for name in weights.where:
        for beginning, reason in DROPPED_OF_CLIP.items():
            if name.startswith(beginning):
                dropped[name] = reason
    return _renamed(weights, TOWER_NAMES, dropped, shapes)


def expected_shapes(config: PreTrainedConfig) -> Shapes:
    """Name as written -> shape, of every tensor that transformers' model of this configuration has."""
    kind = LlavaNextForConditionalGeneration if config.model_type == "llava_next" else LlavaForConditionalGeneration
    with torch.device("meta"):
        model = kind(config)  # type: ignore[arg-type]
    shapes = {_written(name, _MODULES): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["language_model.lm_head.weight"]
    return shapes


def check_complete(sources: Iterable[Renamed], made: Iterable[str], shapes: Shapes) -> None:
    """Raises ValueError unless every tensor of transformers' model comes once, from a source or made."""
    found = Counter([*made, *(new for renamed in sources for new in renamed.names.values())])
    for problem, names in (
        ("lacks", sorted(shapes.keys() - found.keys())),
        ("holds twice", sorted(name for name, count in found.items() if count > 1)),
    ):
        if names:
            raise ValueError(
                f"The checkpoint {problem} {len(names)} of the tensors that its config.json describes: "
                f"{', '.join(names[:4])}{' ...' if len(names) > 4 else ''}."
            )


class ShardWriter:
    """Writes tensors to safetensors files of at most `SHARD_BYTES`, holding no more than one file's in memory.

    Args:
        folder: An existing folder.
        shapes: What is to be written: name -> shape.
    """

    def __init__(self, folder: Path, shapes: Shapes) -> None:
        self._folder, self._shapes = folder, shapes
        self._tensors: dict[str, Tensor] = {}
        self._parts: list[list[str]] = []
        self._bytes, self._total = 0, 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes one tensor; ValueError if its shape is another one."""
        if tuple(tensor.shape) != self._shapes[name]:
            raise ValueError(
                f"The tensor {name} is {tuple(tensor.shape)}, and config.json makes it {self._shapes[name]}."
            )
        tensor = tensor.contiguous()
        size = tensor.numel() * tensor.element_size()
        if self._tensors and self._bytes + size > SHARD_BYTES:
            self._flush()
        if tensor.untyped_storage().nbytes() != size:  # a view: safetensors refuses two of one storage
            tensor = tensor.clone()
        self._tensors[name] = tensor
        self._bytes += size
        self._total += size

    def close(self) -> None:
        """Writes what is left, and the index where there are several files."""
        self._flush()
        count, weight_map = len(self._parts), {}
        if count == 1:
            self._part(1).rename(self._folder / "model.safetensors")
            return
        for number, names in enumerate(self._parts, start=1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors"
            self._part(number).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        described = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
        (self._folder / SAFE_INDEX).write_text(json.dumps(described, indent=2) + "\n")

    def _flush(self) -> None:
        self._parts.append(list(self._tensors))
        save_file(self._tensors, self._part(len(self._parts)), metadata={"format": "pt"})
        self._tensors, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"


def _computed(weights: WeightFiles) -> dict[str, str]:
    return {name: reason for name in weights.where for ending, reason in DROPPED.items() if name.endswith(ending)}


def _renamed(
    weights: WeightFiles, table: tuple[tuple[str, str], ...], dropped: dict[str, str], shapes: Shapes
) -> Renamed:
    names = {name: _written(name, table) for name in weights.where if name not in dropped}
    if unknown := sorted(name for name, new in names.items() if new not in shapes):
        raise ValueError(
            f"{weights.files[0].parent} holds {len(unknown)} tensors that are unknown or not of the model that config.json "
            f"describes: {', '.join(unknown[:4])}{' ...' if len(unknown) > 4 else ''}."
        )
    return Renamed(names, dropped)


def _written(name: str, table: tuple[tuple[str, str], ...]) -> str:
    return next((new + name.removeprefix(old) for old, new in table if name.startswith(old)), name)
