"""Weights in half precision, and a LLaVA stored without its tower: how the shipped models fit into the package.

    store_half           a folder -> the same with 16-bit weights, which still opens in float32
    store_without_tower  a LLaVA and the stored CLIP its tower comes from -> the LLaVA's other tensors and `tower.json`
    assemble             both again -> a folder for stock `LlavaForConditionalGeneration.from_pretrained`

The weights are 16-bit, `config.json` says `"dtype": "float32"`: transformers' `from_pretrained` follows the configuration, so
that the models compute in float32 unless `dtype=torch.float16` is asked for.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..util.files import replacing, write_json, write_text

WEIGHTS_FILE = "model.safetensors"
TOWER_FILE = "tower.json"

# What belongs to a model besides its weights: configuration, tokenizer, chat template, model card.
_COPIED = (".json", ".jinja", ".txt", ".model", ".md")
# A box in half precision is off by up to half a pixel.
_EXACT = ("token_roi.weight",)
_ANCHOR = "embeddings.patch_embedding.weight"


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def store_half(folder: Path, out: Path) -> None:
    """Writes a model folder's files to `out`, weights in half precision (but boxes), loading in float32 by default.

    Raises:
        ValueError: It holds no weights, or a number too large for half precision; or `out` is something else than a model.
    """
    _write(folder, _halved(folder), out, None)


def store_without_tower(llava: Path, clip: Path, out: Path) -> None:
    """Writes a LLaVA to `out` without its tower, which is the vision tower of `clip`, a folder from `store_half`.

    `tower.json` names `clip`'s folder and the sha256 of its weights file.

    Raises:
        ValueError: The towers differ in a tensor or in a bit of one, once both are in half precision; or as `store_half`.
    """
    tensors, ours = _halved(llava), load_file(clip / WEIGHTS_FILE)
    prefix, clip_prefix = _tower_prefix(tensors, llava), _tower_prefix(ours, clip)
    tower = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
    wanted = {key.removeprefix(clip_prefix): ours[key] for key in ours if key.startswith(clip_prefix)}
    different = sorted(tower.keys() ^ wanted.keys()) or sorted(
        key for key, tensor in tower.items() if not _same_bits(tensor, wanted[key])
    )
    if different:
        raise ValueError(
            f"The tower of {llava} is not that of {clip}: {len(different)} of {len(wanted)} tensors differ, the first "
            f"{different[0]}; train the LLaVA on {clip.name}, frozen, and store {clip.name} with store_half first."
        )
    described = {
        "tower": clip.name,
        "sha256": file_sha256(clip / WEIGHTS_FILE),
        "prefix": prefix,
        "tower_prefix": clip_prefix,
    }
    _write(llava, tensors, out, described)


def tower_of(stored: Path) -> str | None:
    """The name of the CLIP whose tower a stored LLaVA lacks; None for a folder that lacks nothing."""
    path = stored / TOWER_FILE
    return json.loads(path.read_text())["tower"] if path.is_file() else None


def assemble(stored: Path, clip: Path, out: Path) -> None:
    """Puts a folder from `store_without_tower` and the tower of `clip` together again, into the folder `out`.

    Raises:
        ValueError: `clip` is not the one that the LLaVA was stored with.
    """
    described = json.loads((stored / TOWER_FILE).read_text())
    found = file_sha256(clip / WEIGHTS_FILE)
    if found != described["sha256"]:
        raise ValueError(
            f"{stored.name} was stored with another {clip.name} (weights sha256 {described['sha256'][:16]}, here "
            f"{found[:16]}): install sfvlm again, or store {stored.name} again."
        )
    tensors, prefix = load_file(stored / WEIGHTS_FILE), described["tower_prefix"]
    for key, tensor in load_file(clip / WEIGHTS_FILE).items():
        if key.startswith(prefix):
            tensors[described["prefix"] + key.removeprefix(prefix)] = tensor
    _copy_files(stored, out)
    _save(tensors, out)


def _write(folder: Path, tensors: dict[str, Tensor], out: Path, tower: dict[str, str] | None) -> None:
    """Makes the stored folder, in the place of an older one."""
    if out.exists() and not (out / "config.json").is_file():
        raise ValueError(f"{out} exists and is no model folder, so it is not replaced: remove it, or choose another.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.mkdir()
        _copy_files(folder, temporary)
        _save(tensors, temporary)
        if tower is not None:
            write_json(temporary / TOWER_FILE, tower)


def _halved(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files, floating ones in half precision."""
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no model folder: it needs a config.json and .safetensors weights.")
    tensors = {key: tensor for file in files for key, tensor in load_file(file).items()}
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or key.endswith(_EXACT):
            continue
        tensors[key] = tensor.half()
        if not tensors[key].isfinite().all():
            largest = tensor.abs().max().item()
            raise ValueError(f"{key} of {folder} reaches {largest:g}; half precision ends at 65504.")
    return tensors


def _tower_prefix(tensors: dict[str, Tensor], folder: Path) -> str:
    prefixes = [key.removesuffix(_ANCHOR) for key in tensors if key.endswith(_ANCHOR)]
    if len(prefixes) != 1 or not prefixes[0]:
        raise ValueError(f"{folder} holds {len(prefixes)} CLIP vision towers beside other tensors; it must be one.")
    return prefixes[0]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same half-precision numbers, signs of zeros included."""
    if one.dtype != torch.float16 or other.dtype != torch.float16 or one.shape != other.shape:
        return False
    return torch.equal(one.view(torch.int16), other.view(torch.int16))


def _copy_files(folder: Path, out: Path) -> None:
    """Copies what is not weights; the configuration says float32."""
    for file in sorted(folder.iterdir()):
        is_index = file.name.endswith(".index.json")
        if file.is_file() and file.suffix in _COPIED and not is_index and file.name != TOWER_FILE:
            shutil.copyfile(file, out / file.name)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.pop("torch_dtype", None)
        if "dtype" in part or part is config:
            part["dtype"] = "float32"
    write_text(out / "config.json", json.dumps(config, indent=2) + "\n")


def _save(tensors: dict[str, Tensor], out: Path) -> None:
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, out / WEIGHTS_FILE, metadata={"format": "pt"})
