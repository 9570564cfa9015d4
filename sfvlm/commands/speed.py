"""The command behind `eval/speed.py`: hosts, or random models of published sizes, to a table of what they cost."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from ..chat import check_host, open_host
from ..cli import say
from ..images import Photos, open_photos, readable
from ..results import short_names
from ..speed import Row, cost_table, machine, write_costs
from ..speed_hosts import (
    PROMPT,
    Subject,
    check_numbers,
    encoder_facts,
    host_facts,
    host_subject,
    measure_encoders,
    measure_hosts,
)
from ..speed_shapes import clip_encoders, open_shape, shape_named

FEWEST_PHOTOS = 16  # that take turns


@dataclass(frozen=True)
class SpeedCommand:
    """Time LLaVAs beside the first of them, part by part; or without any, the CLIP-large preset beside CLIP ViT-L/14-336."""

    host: list[str] = field(default_factory=list)
    """Hosts, transformers LLaVA, LLaVA-NeXT or LLaVA-OneVision, swapped or not: folders, hub ids or names of the zoo."""
    shape: str | None = None
    """Instead of hosts: 7b, a random LLaVA-1.5-7B beside the same with 49 sparse tokens and with 64 that are picked by
    class attention; made for a GPU (about 15 GB in bfloat16). tiny: a few blocks, to see it run."""
    photos: list[str] = field(default_factory=list)
    """What hosts are shown: folders, images or tar shards; default rendered scenes."""
    prompt: str = PROMPT
    """What hosts are asked of every photo."""
    new_tokens: int = 32
    """Words of every reply."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """Photos at once."""
    repeats: int = 5
    """Timed runs of each side."""
    warmups: int = 1
    """Runs of each side before those."""
    threads: int = 1
    """CPU threads."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of all sides; default a host's own, bfloat16 for a shape, but float32 on a CPU and for encoders."""
    device: str | None = None
    """Default cuda where there is one."""
    out: Path | None = None
    """Also write JSON there."""


def speed_command(command: SpeedCommand) -> None:
    """Measures every batch size, prints a table for each and writes the results."""
    device = _check(command)
    torch.set_num_threads(command.threads)
    try:
        rows = _measure(command, device)
    except torch.OutOfMemoryError as error:
        sizes = ", ".join(map(str, command.batch_sizes))
        raise ValueError(
            f"The memory of {device} is too small for batches of {sizes}: give fewer or smaller ones."
        ) from error
    if command.out is not None:
        settings = asdict(command) | {"out": str(command.out), "command": shlex.join(sys.argv)}
        write_costs(command.out, rows, {"settings": settings, "machine": machine(device)})
        say(f"\nWrote {command.out}.")


def _check(command: SpeedCommand) -> torch.device:
    """What can be said before anything large is read; returns the device."""
    check_numbers(
        repeats=command.repeats, threads=command.threads, **{"batch size": min(command.batch_sizes, default=0)}
    )
    if command.warmups < 0:
        raise ValueError(f"--warmups is {command.warmups}; it must be 0 or more.")
    if command.host and command.shape is not None:
        raise ValueError("Give --host for hosts, or --shape for random models, not both.")
    if command.photos and not command.host:
        raise ValueError("--photos are shown to hosts: give --host too.")
    if command.out is not None and (command.out.is_dir() or not command.out.parent.is_dir()):
        raise ValueError(f"--out is {command.out}; it must be a file in a folder that exists.")
    if command.new_tokens < 2:
        raise ValueError(f"--new-tokens is {command.new_tokens}; the time of a further token needs at least 2.")
    if command.shape is not None:
        shape_named(command.shape)
    for source in command.host:
        check_host(source)
    try:
        device = torch.device(command.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"The device {command.device!r} cannot be used: {reason}") from error
    return device


def _measure(command: SpeedCommand, device: torch.device) -> list[Row]:
    """Opens both sides and measures them at every batch size."""
    turns: dict[str, int] = {"repeats": command.repeats, "warmups": command.warmups}
    measure: Callable[[int], list[Row]]
    if command.host or command.shape is not None:
        subjects = _subjects(command, device)
        facts = [host_facts(subject) for subject in subjects]
        measure = partial(measure_hosts, subjects, facts=facts, new_tokens=command.new_tokens, **turns)
    else:
        encoders = clip_encoders(getattr(torch, command.dtype or "float32"), device)
        measure = partial(measure_encoders, encoders, facts=[encoder_facts(encoder) for encoder in encoders], **turns)
    rows: list[Row] = []
    for batch_size in command.batch_sizes:
        measured = measure(batch_size)
        say(cost_table(measured) + "\n")
        rows += measured
    say(f"Medians (and extremes) of {command.repeats} in turns; x: how many times less than {rows[0]['model']}.")
    return rows


def _subjects(command: SpeedCommand, device: torch.device) -> list[Subject]:
    """The hosts, all in memory at once."""
    largest = max(command.batch_sizes)
    if command.shape is not None:
        dtype = command.dtype or ("float32" if device.type == "cpu" else "bfloat16")
        return open_shape(command.shape, dtype=getattr(torch, dtype), device=device, batch_size=largest)
    count = max(FEWEST_PHOTOS, largest)
    photos = _readable(open_photos(command.photos or f"scenes:{count}"), count)
    subjects = []
    for source, name in zip(command.host, short_names(command.host), strict=True):
        host = open_host(source, dtype=command.dtype, device=str(device))
        host.model.requires_grad_(False)
        subjects.append(host_subject(host, name, photos, command.prompt))
    return subjects


def _readable(photos: Photos, count: int) -> list[Image.Image]:
    """The first photos that can be read.

    Raises:
        ValueError: None can.
    """
    found = [photo.image for photo in islice(readable(photos), count)]
    if not found:
        raise ValueError(f"None of the {len(photos)} photos of {', '.join(photos.origins)} can be read.")
    return found
