"""The photos of a run as batches of views, each process its own part, and which photos were passed over on the way.

Selection --> ViewBatch: pixels (B, 3, S, S) uint8, index (B,), view (B,) --pixels_of--> (B, 3, S, S) float on the device
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..encoder.configuration import SparseFormerConfig
from ..hosts.reader import HostReader
from ..photos.batches import (
    EpochSampler,
    Selection,
    SkipLog,
    ViewBatch,
    ViewDataset,
    collate_views,
    shard_indices,
    view_loader,
)
from ..photos.views import normalize, view_settings
from .options import BootstrapOptions


class Skips:
    """Photos that were passed over: the first process writes them down, the others keep them until they can tell it.

    Args:
        path: Their file, which a resumed run continues.
        accelerator: Of this process.
    """

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self._log = SkipLog(path) if accelerator.is_main_process else None
        self._untold: list[Mapping[str, str]] = []

    def note(self, skipped: Sequence[Mapping[str, str]]) -> None:
        """On one process."""
        if self._log is not None:
            self._log.add(skipped)
        else:
            self._untold += skipped

    def tell(self) -> None:
        """On all processes at once: the first one writes down what the others kept."""
        told = gather_object(self._untold)
        self._untold = []
        if self._log is not None:
            self._log.add(told)

    @property
    def count(self) -> int:
        """How many the first process knows of."""
        return 0 if self._log is None else self._log.count


def photos_at_once(options: BootstrapOptions, accelerator: Accelerator) -> int:
    """How many photos a device has memory for: its part of a step."""
    return options.batch_size // accelerator.num_processes


def training_batches(
    photos: Selection,
    config: SparseFormerConfig,
    host: HostReader | None,
    options: BootstrapOptions,
    accelerator: Accelerator,
    skips: Skips,
    start: int,
) -> Iterator[ViewBatch]:
    """This process's part of the batch of each step from `start` on, without end."""
    views = ViewDataset(
        photos,
        config.image_size,
        training=True,
        seed=options.seed,
        num_views=options.cached_views or None,
        scale=options.crop_scale,
        interpolation=view_settings(config)["interpolation"],
        pad=_padding(host),
    )
    rank, world = accelerator.process_index, accelerator.num_processes
    sampler = EpochSampler(
        len(views), photos_at_once(options, accelerator), options.seed, rank, world, start_step=start
    )
    for batch in view_loader(views, sampler, options.workers, pin_memory=accelerator.device.type == "cuda"):
        skips.note(batch["skipped"])
        yield batch


def held_back_batches(
    photos: Selection,
    config: SparseFormerConfig,
    host: HostReader | None,
    at_once: int,
    accelerator: Accelerator,
    skips: Skips,
) -> Iterator[ViewBatch]:
    """This process's part of the photos, each once, as a tower sees them, or a host shows them to its own."""
    shown = view_settings(config)
    if host is not None:
        shown["squash"] = host.facts.squashes
    views = ViewDataset(photos, config.image_size, training=False, seed=0, **shown, pad=_padding(host))
    indices = shard_indices(len(views), accelerator.process_index, accelerator.num_processes)
    for start in range(0, len(indices), at_once):
        batch = collate_views([views[0, index] for index in indices[start : start + at_once]])
        skips.note(batch["skipped"])
        yield batch


def pixels_of(batch: ViewBatch, config: SparseFormerConfig, accelerator: Accelerator) -> Tensor:
    """Bytes as the student reads them, and its teacher: -> (B, 3, S, S) on the device."""
    pixels = batch["pixels"].to(accelerator.device, non_blocking=True)
    return normalize(pixels, config.image_mean, config.image_std)


def _padding(host: HostReader | None) -> tuple[float, ...] | None:
    """The colour of a host that pads its photos: bars are part of what its tower sees."""
    return None if host is None else host.facts.padding
