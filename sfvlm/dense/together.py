"""A guide that is trained together with its encoder: inside of it while a bootstrap runs, beside it afterwards.

encoder(pixels) -> output --guide--> output.dense_map, in the units of `Guide.scaled`
"""

from typing import Any

import torch
from torch import nn

from ..encoder.sparseformer import SparseFormerModel, SparseFormerOutput
from ..photos.batches import Selection, ViewDataset, collate_views
from ..photos.views import normalize, view_settings
from ..teachers.open import DenseTransformer
from .guide import Guide, GuideConfig
from .maps import teacher_map

MEASURED = 64  # photos that say how far each feature of the teacher's map spreads


def attach_guide(student: SparseFormerModel, dense: DenseTransformer, photos: Selection, seed: int) -> Guide:
    """Puts a new guide into a student, in place: its parameters are the student's, and each output has its map.

    Args:
        student: To be trained.
        dense: The teacher, on the CPU.
        photos: Some of them say how far each feature of the teacher's map spreads; every process takes the same ones.
        seed: Of the guide's weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        guide = Guide(GuideConfig.of(student.config))
    config = student.config
    views = ViewDataset(photos, config.image_size, training=False, seed=0, **view_settings(config))
    batch = collate_views([views[0, index] for index in range(min(MEASURED, len(photos)))])
    with torch.no_grad():
        pixels = normalize(batch["pixels"], config.image_mean, config.image_std)
        guide.learn_scale(torch.cat([teacher_map(dense, part) for part in pixels.split(16)]))
    student.guide = guide  # type: ignore[assignment]
    student.register_forward_hook(_make_map, with_kwargs=True)
    return guide


def detach_guide(student: SparseFormerModel) -> Guide | None:
    """Takes the guide out of a student, in place; None where it has none."""
    guide: Any = getattr(student, "guide", None)
    if guide is not None:
        del student.guide
    return guide


def _make_map(student: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: SparseFormerOutput) -> None:
    guide: Any = getattr(student, "guide", None)
    if guide is None:  # it was taken out, and this was not
        return
    pixels = inputs[0] if inputs else named["pixel_values"]
    output.dense_map = guide.scaled(output, pixels, student.head.norm)
