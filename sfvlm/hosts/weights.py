"""A host's tensors in its weight files: which are the tower's, their hash, and copies that keep every bit.

Tensors go from file to file as they are stored, never through a model: no other dtype, no renaming, quantised ones too.
A hash is over names, dtypes, shapes and bytes, so that it does not depend on how the tensors lie in files.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..zoo.weight_files import SAFE_INDEX, WeightFiles, read_tensors

TOWER_PREFIXES = ("vision_tower.", "model.vision_tower.")  # as saved by transformers' own classes, and by some versions
PROJECTOR_PREFIXES = ("multi_modal_projector.", "model.multi_modal_projector.")


def tower_prefix(weights: WeightFiles) -> str:
    """What the names of the tower's tensors begin with; ValueError if there is no tower, or two."""
    found = [prefix for prefix in TOWER_PREFIXES if any(name.startswith(prefix) for name in weights.where)]
    if len(found) != 1:
        raise ValueError(f"{weights.files[0].parent} holds {len(found)} vision towers in its weights; a host has one.")
    return found[0]


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
    (out / SAFE_INDEX).write_text(json.dumps(described, indent=2) + "\n")


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
