"""A model folder's weight files, in safetensors or pickled: which tensors they hold, and those tensors as they are stored.

    folder -> the files that `from_pretrained` would read -> names and where each is -> tensors, one at a time

A whole file comes before shards, and safetensors before pickles. What else lies in the folder may be another model's. Code in a
pickle is not run.
"""

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ..util.errors import reason, shortened
from ..util.files import check_content, read_json

SAFE, PICKLE = "model.safetensors", "pytorch_model.bin"
SAFE_INDEX = f"{SAFE}.index.json"
# Where trainings keep a model's tensors beside their own state: PyTorch Lightning, timm, open_clip, DeepSpeed.
NESTED = ("state_dict", "model", "module", "state_dict_ema", "model_ema")


class WeightFiles(NamedTuple):
    """The weight files of a folder, and which one holds each tensor."""

    files: tuple[Path, ...]
    where: dict[str, Path]


def holds_weights(folder: Path) -> bool:
    """Whether a folder has weight files, whole or listed by an index."""
    return any(file.is_file() for name in (SAFE, PICKLE) for file in (folder / name, _index(folder / name)))


def open_weights(folder: Path, *, pickles: bool = False) -> WeightFiles:
    """Finds the weight files of a folder, and reads the names in all of them.

    Args:
        folder: Of a model.
        pickles: Whether pickled weights will do, where there are none in safetensors.

    Raises:
        ValueError: There are none, one is missing or damaged, none holds a tensor that the index lists, or a pickle holds other
            things than tensors.
    """
    whole = _whole_file(folder, pickles)
    if whole.is_file():
        return WeightFiles((whole,), dict.fromkeys(_open(whole)[0], whole))
    index = _index(whole)
    listed = read_index(index)
    files = tuple(folder / name for name in sorted(set(listed.values())))
    where: dict[str, Path] = {}
    for file in files:
        if not file.is_file():
            raise ValueError(f"The weight file {file} is missing, which {index.name} lists.")
        for name in _open(file)[0]:
            if where.setdefault(name, file) != file and folder / listed.get(name, "") == file:
                where[name] = file  # other files may hold older copies
    if lost := sorted(listed.keys() - where.keys()):
        raise ValueError(f"{folder} lacks {len(lost)} tensors that {index.name} lists; the first is {lost[0]}.")
    return WeightFiles(files, where)


def read_index(path: Path) -> dict[str, str]:
    """Which file holds each tensor, by their names; ValueError if the index lists none."""
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise ValueError(f"The index {path} does not list which file holds each tensor (weight_map).")
    return listed


def read_tensors(weights: WeightFiles, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors as stored, in sorted order, one at a time; files stay open meanwhile, mapped where they can be."""
    readers: dict[Path, Callable[[str], Tensor]] = {}
    for name in sorted(names):
        file = weights.where[name]
        if file not in readers:
            readers[file] = _open(file)[1]
        yield name, readers[file](name)


def read_tensor(weights: WeightFiles, name: str) -> Tensor:
    """One tensor; ValueError if there is none of that name."""
    if name not in weights.where:
        raise ValueError(f"{weights.files[0].parent} lacks the tensor {name}.")
    return next(read_tensors(weights, [name]))[1]


def _whole_file(folder: Path, pickles: bool) -> Path:
    """The one file that holds the weights, or that would if they were not in shards."""
    for whole in (folder / name for name in ((SAFE, PICKLE) if pickles else (SAFE,))):
        if whole.is_file() or _index(whole).is_file():
            return whole
    if pickles:
        raise ValueError(f"{folder} holds no weights: neither {SAFE} nor {PICKLE}, whole or in shards.")
    raise ValueError(f"{folder} holds no {SAFE}; convert pickled weights with transformers first.")


def _index(whole: Path) -> Path:
    return whole.with_name(f"{whole.name}.index.json")


def _open(file: Path) -> tuple[list[str], Callable[[str], Tensor]]:
    """The names of a file's tensors, and what reads one of them."""
    is_safe = file.suffix == ".safetensors"
    check_content(file)
    try:
        if is_safe:
            opened = safe_open(file, framework="pt")
            return list(opened.keys()), opened.get_tensor
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # each reader raises its own kinds for a damaged file
        kind = "safetensors" if is_safe else "a pickle of tensors alone"
        # Around what is wrong, torch tells how to run the code of a pickle all the same.
        told = str(error).rpartition("WeightsUnpickler error: ")[2]
        why = re.split(r" Please use|\s+Check the documentation", told)[0]
        raise ValueError(f"{file} cannot be read as {kind}: {shortened(why) or reason(error)}") from error
    tensors = _tensors_in(state, file)
    return list(tensors), tensors.__getitem__


def _tensors_in(state: Any, file: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, which a training may have put under one name beside others.

    Raises:
        ValueError: There are other things than tensors by name, or tensors under several names.
    """
    if _are_tensors(state):
        return state
    named = {name: state[name] for name in NESTED if _are_tensors(state.get(name))} if isinstance(state, dict) else {}
    if len(named) > 1:
        raise ValueError(f"{file} holds tensors under the names {', '.join(named)}: save one of them alone.")
    if not named:
        raise ValueError(
            f"{file} cannot be read as a pickle of tensors alone: it holds other things than tensors by name."
        )
    return next(iter(named.values()))


def _are_tensors(state: Any) -> bool:
    return isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    )
