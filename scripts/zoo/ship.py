"""Puts trained models into the package, in half precision. Their cards are written by hand, there, and stay."""

import json
from dataclasses import dataclass
from pathlib import Path

from sfvlm.util.files import write_json
from sfvlm.zoo.names import WEIGHTS, shipped
from sfvlm.zoo.packing import store_half, store_without_tower

CARD = "README.md"
PATHS = ("teacher", "started_from", "source", "leave_out", "host_prompts", "teacher_cache")
LIMIT = 45_000_000  # bytes, all together


@dataclass(frozen=True)
class ShipOptions:
    """Put trained models into the package."""

    clip: Path | None = None
    """Folder of the trained CLIP."""
    llava: Path | None = None
    """Folder of the LLaVA trained on it; its tower is not stored again."""
    sparseformer: Path | None = None
    """Folder of the SparseFormer bootstrapped from it."""


def name_without_folders(folder: Path) -> None:
    """The files that a folder's `bootstrap.json` and `inheritance.json` name, by their names alone: where they lay is nobody's
    business."""
    described, inherited = folder / "bootstrap.json", folder / "inheritance.json"
    facts = json.loads(described.read_text(encoding="utf-8"))
    facts["photos"] = [_last(source) for source in facts["photos"]]
    for part in (facts, facts.get("host") or {}, facts["options"]):
        part |= {name: _last(part[name]) for name in PATHS if part.get(name)}
    write_json(described, facts)
    origin = json.loads(inherited.read_text(encoding="utf-8"))
    write_json(inherited, origin | {name: _last(origin[name]) for name in ("teacher", "earlier") if origin[name]})


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def ship(options: ShipOptions) -> None:
    """Stores the given models. A card that describes an earlier one has to be written anew.

    Raises:
        ValueError: All shipped models together are too large; or as the functions of `sfvlm.zoo.packing`.
    """
    cards = {folder: (folder / CARD).read_bytes() for folder in WEIGHTS.iterdir() if (folder / CARD).is_file()}
    if options.clip is not None:
        store_half(options.clip, WEIGHTS / "clip-tiny")
    if options.llava is not None:
        store_without_tower(options.llava, WEIGHTS / "clip-tiny", WEIGHTS / "llava-tiny")
    if options.sparseformer is not None:
        store_half(options.sparseformer, WEIGHTS / "sparseformer-tiny-49")
        name_without_folders(WEIGHTS / "sparseformer-tiny-49")
    for folder, card in cards.items():
        (folder / CARD).write_bytes(card)
    sizes = shipped()
    print("\n".join(f"{name:24} {size / 1e6:5.1f} MB" for name, size in sizes.items()))
    if sum(sizes.values()) > LIMIT:
        raise ValueError(f"The shipped models take {sum(sizes.values())} bytes; the package has room for {LIMIT}.")
