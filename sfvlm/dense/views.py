"""What a guide learns from: views of photos, what the frozen encoder saw of each, and the teacher's map. Made once, kept in files.

    photos -> views (3, S, S) --+-- encoder, at the budget of its chunk --> tokens, context, coarse look, their boxes --+--> chunk
                                +-- teacher --> its map (D, h, w) -----------------------------------------------------+

Encoder and teacher are frozen, so a guide can pass over the same views often, at a small part of the price. A chunk is one file of
views at one budget, whole or absent: an interrupted run makes those that are missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..encoder.sparseformer import SparseFormerModel, SparseFormerOutput
from ..photos.batches import EpochSampler, SkipLog, ViewDataset, collate_views
from ..photos.sources import SomePhotos
from ..photos.views import normalize, view_settings
from ..teachers.open import DenseTransformer
from ..util.files import make_folder, read_json, replacing, write_json
from .guide import Guide, choosing
from .maps import image_tokens, teacher_map

CHUNK = 128  # views of a file
AT_ONCE = 32  # that encoder and teacher see at once
KEPT = ("context_tokens", "context_rois", "coarse_tokens")


@dataclass(frozen=True)
class Lesson:
    """A batch of views at one budget.

    Attributes:
        pixels: (B, 3, S, S) uint8.
        teacher: (B, D, h, w) its map.
        seen: What the encoder saw: tokens behind its last norm, boxes, context, coarse look.
    """

    pixels: Tensor
    teacher: Tensor
    seen: SparseFormerOutput

    def part(self, index: Tensor) -> "Lesson":
        """Some of its views."""
        kept = {name: None if value is None else value[index] for name, value in _tensors(self.seen).items()}
        return Lesson(self.pixels[index], self.teacher[index], _output(kept))

    def on(self, device: torch.device) -> SparseFormerOutput:
        """What was seen, on a device and in 32 bits."""
        kept = {
            name: None if value is None else value.to(device).float() for name, value in _tensors(self.seen).items()
        }
        return _output(kept)


def chunk_budgets(views: int, budgets: Sequence[int], own: int) -> list[int]:
    """The budget of each chunk of so many views: every second one and the last, which measures, the model's own; the others in turn.

    Raises:
        ValueError: There are too few views for one chunk to learn from and one to measure on.
    """
    chunks = views // CHUNK
    if chunks < 2:
        raise ValueError(
            f"views is {views}; a guide needs {2 * CHUNK} at least: {CHUNK} to learn from, as many to measure on."
        )
    others = [budget for budget in budgets if budget != own] or [own]
    turns = [own if number % 2 == 0 else others[number // 2 % len(others)] for number in range(chunks - 1)]
    return [*turns, own]


@torch.no_grad()
def make_lessons(
    photos: SomePhotos,
    model: SparseFormerModel,
    dense: DenseTransformer,
    guide: Guide,
    budgets: Sequence[int],
    folder: Path,
    *,
    key: Mapping[str, Any],
    seed: int,
    scale: tuple[float, float],
    report: Callable[[int], None] | None = None,
) -> None:
    """Writes the chunks that are missing in a folder.

    Args:
        photos: Seen in the order of `EpochSampler`.
        model, dense: Frozen, on one device.
        guide: Says how the encoder is to choose its patches for a map.
        budgets: Of each chunk.
        folder: Made if missing. Unreadable photos are listed in its `skipped.jsonl`.
        key: What the chunks depend on.
        seed, scale: Of the views.
        report: Is told how many views were made.

    Raises:
        ValueError: The folder holds chunks of something else; what differs is named.
    """
    make_folder(folder)
    described = folder / "key.json"
    if described.exists():
        old = read_json(described)
        if different := sorted(name for name in old.keys() | key.keys() if old.get(name) != key.get(name)):
            raise ValueError(
                f"The views in {folder} were made with other settings ({', '.join(different)}): remove that folder."
            )
    else:
        write_json(described, dict(key))
    config, device = model.config, next(model.parameters()).device
    views = ViewDataset(
        photos,  # type: ignore[arg-type]
        config.image_size,
        training=True,
        seed=seed,
        scale=scale,
        interpolation=view_settings(config)["interpolation"],
    )
    sampler, skips = EpochSampler(len(views), AT_ONCE, seed), SkipLog(folder / "skipped.jsonl")
    for number, budget in enumerate(budgets):
        path = chunk_path(folder, number)
        if not path.exists():
            parts = []
            for step in range(number * CHUNK // AT_ONCE, (number + 1) * CHUNK // AT_ONCE):
                batch = collate_views([views[item] for item in sampler.batch(step)])
                skips.add(batch["skipped"])
                parts.append(_see(batch["pixels"].to(device), model, dense, guide, budget))
            with replacing(path) as temporary:
                save_file({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, temporary)
        if report is not None:
            report((number + 1) * CHUNK)


def chunk_path(folder: Path, number: int) -> Path:
    """The file of a chunk."""
    return folder / f"{number:05d}.safetensors"


def read_lesson(folder: Path, number: int) -> Lesson:
    """A chunk, on the CPU."""
    tensors = load_file(chunk_path(folder, number))
    seen = {name: tensors.get(name) for name in ("tokens", "boxes", "first_boxes", *KEPT)}
    return Lesson(tensors["pixels"], tensors["teacher"], _output(seen))


def _see(
    pixels: Tensor, model: SparseFormerModel, dense: DenseTransformer, guide: Guide, budget: int
) -> dict[str, Tensor]:
    """What is kept of some views, in 16 bits where it is no box and no pixel."""
    photos = normalize(pixels, model.config.image_mean, model.config.image_std).to(model.dtype)
    with choosing(model, guide):
        output: Any = model(photos, num_tokens=budget, return_dict=True)
    tokens, boxes = image_tokens(output)
    output.last_hidden_state = model.head.norm(tokens)
    found = _tensors(output) | {"pixels": pixels, "teacher": teacher_map(dense, photos)}
    half = ("tokens", "teacher", "context_tokens", "coarse_tokens")
    return {
        name: (value.half() if name in half else value).contiguous().cpu()
        for name, value in found.items()
        if value is not None
    }


def _tensors(output: SparseFormerOutput) -> dict[str, Tensor | None]:
    assert output.token_rois is not None and output.last_hidden_state is not None
    kept = {name: getattr(output, name) for name in KEPT}
    first = output.token_rois[0] if output.coarse_tokens is not None else None
    return {"tokens": output.last_hidden_state, "boxes": output.token_rois[-1], "first_boxes": first, **kept}


def _output(tensors: Mapping[str, Tensor | None]) -> SparseFormerOutput:
    first, boxes = tensors["first_boxes"], tensors["boxes"]
    assert boxes is not None
    rois = (boxes,) if first is None else (first, boxes)
    kept: dict[str, Any] = {name: tensors[name] for name in KEPT}
    return SparseFormerOutput(last_hidden_state=tensors["tokens"], token_rois=rois, **kept)
