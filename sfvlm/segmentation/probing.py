"""Linear probes of frozen towers: maps of photos once, then a head for each, all by the same protocol.

photos with masks -> views, mirrored too -> map (M, D, h, w) -> sfvlm.dense.probe.fit_probe -> head
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..dense.masks import MaskedPhotos, Misfit
from ..dense.probe import LinearHead, ProbeOptions, fit_probe
from .views import normalized, whole_view


class Material(NamedTuple):
    """Photos to probe by.

    Attributes:
        pixels: (M, 3, S, S) uint8, the whole photos squashed.
        masks: M of (H, W) int64.
        skipped: {"key", "reason"} of each photo that could not be used.
    """

    pixels: Tensor
    masks: list[Tensor]
    skipped: list[dict[str, str]]


def material(photos: MaskedPhotos, config: Any) -> Material:
    """Reads photos as towers of a configuration see them.

    Raises:
        ValueError: None can be used.
    """
    pixels, masks, skipped = [], [], []
    for index in range(len(photos)):
        try:
            photo = photos[index]
        except Misfit as misfit:
            skipped.append({"key": misfit.key, "reason": f"{misfit.kind}: {misfit.why}"})
            continue
        pixels.append(whole_view(photo.image, config))
        masks.append(torch.from_numpy(photo.mask).long())
    if not pixels:
        raise ValueError(
            f"No photo of {', '.join(photos.origins)} can be used: {skipped[0]['key']}, {skipped[0]['reason']}."
        )
    return Material(torch.stack(pixels), masks, skipped)


@torch.inference_mode()
def maps_of(
    run: Callable[[Tensor], Tensor],
    pixels: Tensor,
    config: Any,
    *,
    batch_size: int,
    device: str | torch.device,
    title: str,
) -> Tensor:
    """Maps of photos, kept in 16 bits: (M, 3, S, S) uint8 -> (M, D, h, w)."""
    parts = []
    for start in tqdm(range(0, len(pixels), batch_size), desc=title, leave=False):
        parts.append(run(normalized(pixels[start : start + batch_size].to(device), config)).half())
    return torch.cat(parts)


def probe(
    run: Callable[[Tensor], Tensor],
    photos: Material,
    num_classes: int,
    config: Any,
    options: ProbeOptions,
    *,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    title: str = "maps",
) -> LinearHead:
    """A head for a frozen tower's maps, fitted to photos and to their mirror images."""
    shared: dict[str, Any] = dict(batch_size=batch_size, device=device)
    maps = maps_of(run, photos.pixels, config, title=title, **shared)
    mirrored = maps_of(run, photos.pixels.flip(3), config, title=f"{title}, mirrored", **shared)
    return fit_probe(maps.clone(), photos.masks, num_classes, options, mirrored=mirrored.clone())
