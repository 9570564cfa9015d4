"""A host's weight files: which tensors are the tower's, their hash, and copies that keep every bit.

Tensors go from file to file as they are stored, never through a model: no other dtype, no renaming, quantised ones too.
A hash is over names, dtypes, shapes and bytes, so that it does not depend on how the tensors lie in files.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import reason
from .files import read_json

INDEX = "model.safetensors.index.json"
TOWER_PREFIXES = ("vision_tower.", "model.vision_tower.")  # as saved by transformers' own classes, and by some versions
PROJECTOR_PREFIXES = ("multi_modal_projector.", "model.multi_modal_projector.")


class WeightFiles(NamedTuple):
    """The weight files of a folder, and which one holds each tensor."""

    files: tuple[Path, ...]
    where: dict[str, Path]

    @property
    def tower_prefix(self) -> str:
        """What the names of the tower's tensors begin with; ValueError if there is no tower, or two."""
        found = [prefix for prefix in TOWER_PREFIXES if any(name.startswith(prefix) for name in self.where)]
        if len(found) != 1:
            raise ValueError(f"{self.files[0].parent} holds {len(found)} vision towers in its weights; a host has one.")
        return found[0]


def read_index(path: Path) -> dict[str, str]:
    """Which file holds each tensor, by their names; ValueError if the index lists none."""
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"The index {path} lists no tensors (weight_map).")
    return listed


def open_weights(folder: Path) -> WeightFiles:
    """Finds the weight files that `from_pretrained` reads, and reads the names in all of them.

    Raises:
        ValueError: There are none in safetensors, one is missing or damaged, or none holds a tensor that the index lists.
    """
    single, index = folder / "model.safetensors", folder / INDEX
    if single.is_file():
        files, expected = [single], None
    elif index.is_file():
        expected = read_index(index)
        files = [folder / name for name in sorted(set(expected.values()))]
    else:
        raise ValueError(f"{folder} holds no model.safetensors; convert pickled weights with transformers first.")
    where: dict[str, Path] = {}
    for file in files:
        if not file.is_file():
            raise ValueError(f"The weight file {file} is missing, which {INDEX} lists.")
        try:
            with safe_open(file, framework="pt") as opened:
                where |= dict.fromkeys(opened.keys(), file)
        except Exception as error:  # safetensors raises its own untyped error for a damaged file
            raise ValueError(f"{file} cannot be read as safetensors: {reason(error)}.") from error
    if expected is not None and (lost := sorted(expected.keys() - where.keys())):
        raise ValueError(f"{folder} lacks {len(lost)} tensors that {INDEX} lists; the first is {lost[0]}.")
    return WeightFiles(tuple(files), where)


def read_tensors(weights: WeightFiles, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors as stored, in sorted order, one at a time."""
    current: Path | None = None
    opened: Any = None
    for name in sorted(names):
        file = weights.where[name]
        if file != current:  # one file stays open: names of a file come together mostly
            current, opened = file, safe_open(file, framework="pt")
        yield name, opened.get_tensor(name)


def bytes_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, dtypes, shapes and bytes; the tensors come in sorted order."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_weights(weights: WeightFiles, keep: Callable[[str], bool], added: dict[str, Tensor], out: Path) -> None:
    """Writes the kept tensors, file by file, and the added ones in a last file, with an index.

    Args:
        weights: What is copied.
        keep: Which names of it.
        added: More tensors.
        out: An existing folder.
    """
    groups = [
        [name for name in sorted(weights.where) if weights.where[name] == file and keep(name)] for file in weights.files
    ]
    groups = [names for names in groups if names]
    count, total, weight_map = len(groups) + 1, 0, {}
    for number, names in enumerate([*groups, sorted(added)], start=1):
        tensors = added if number == count else dict(read_tensors(weights, names))
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file(tensors, out / file, metadata={"format": "pt"})
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        weight_map |= dict.fromkeys(names, file)
    described = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (out / INDEX).write_text(json.dumps(described, indent=2) + "\n")


def parts(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by part: tower, projector, and language model with its output layer and everything else."""
    found: dict[str, list[str]] = {"vision_tower": [], "multi_modal_projector": [], "language_model": []}
    for name in names:
        if name.startswith(TOWER_PREFIXES):
            found["vision_tower"].append(name)
        elif name.startswith(PROJECTOR_PREFIXES):
            found["multi_modal_projector"].append(name)
        else:
            found["language_model"].append(name)
    return found
