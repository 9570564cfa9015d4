"""What a run will take, said before it begins: time from one batch of replies timed here, and room on the disk."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..alternatives.costs import macs
from ..bootstrap.checkpoints import list_checkpoints
from ..bootstrap.options import BootstrapOptions
from ..bootstrap.run import CHECKPOINTS
from ..bootstrap.targets.interview import LONGEST_ANSWER
from ..encoder.sparseformer import SparseFormerModel
from ..speed.hosts import host_subject, reply
from ..teachers.open import DenseTransformer
from .bench import DENSE, Bench
from .examples import LONGEST_ANSWER as LONGEST_SHOWN
from .examples import QUESTIONS, SHOWN
from .measures import NEW_TOKENS, REPEATS, TURNS
from .place import Place
from .tower import Fit

USUAL_ANSWER = LONGEST_ANSWER // 2  # tokens: most answers are short, and a batch is as long as its longest one
BACKWARD = 2  # forwards that going back takes: one through frozen blocks, two through those that are trained


@dataclass(frozen=True)
class Pace:
    """Seconds that this machine takes for the dense LLaVA, a photo at a time of a batch of several."""

    encode: float
    prefill: float
    word: float


def measure_pace(bench: Bench, images: Sequence[Image.Image]) -> Pace:
    """Times one batch of replies, after another one to warm up."""
    batch = 16 if bench.dense.model.device.type == "cuda" else 4
    subject = host_subject(bench.dense, DENSE, images)
    for turn in range(2):
        measures, _ = reply(subject, batch, turn, 4)
    return Pace(*(measures[f"{name}_seconds"] / batch for name in ("encode", "prefill", "token")))


def seconds_left(pace: Pace, fit: Fit, options: BootstrapOptions, learned: int, held_back: int, place: Place) -> float:
    """About how long a run will take from where it is.

    Args:
        pace: Of this machine.
        fit: Which towers there are.
        options: Of the bootstrap.
        learned: Photos that are learned from.
        held_back: Photos that are measured on.
        place: What is done already.
    """
    ways, read = len(fit.alternatives) + 2, pace.encode + pace.prefill
    asked = read + TURNS * USUAL_ANSWER * pace.word
    left = 0.0
    if not place.is_done("tower"):
        checkpoints = list_checkpoints(place.tower / CHECKPOINTS)
        begun = int(checkpoints[-1].name.rpartition("-")[2]) if checkpoints else 0
        share = student_share(fit)
        step = pace.encode * (1 + (1 + BACKWARD) * share) + pace.prefill * (2 + BACKWARD)
        left += (options.steps - begun) * options.batch_size * step + (0 if begun else learned * asked)
    if not place.is_done("fidelity"):
        left += held_back * (asked + ways * read)
    if not place.is_done("speed"):
        left += (1 + REPEATS) * ways * (read + NEW_TOKENS * pace.word)
    if not place.is_done("examples"):
        left += SHOWN * QUESTIONS * 2 * (read + LONGEST_SHOWN * pace.word)
    return left


def student_share(fit: Fit) -> float:
    """The new tower's multiply-adds as a share of the dense one's."""
    with torch.device("meta"):  # only counted
        dense, sparse = DenseTransformer(fit.teacher.config), SparseFormerModel(fit.config)
    return macs(sparse, fit.config.image_size) / macs(dense, fit.teacher.config.image_size)


def check_room(host: Path, place: Place) -> None:
    """Raises ValueError if the disk has no room for what is certain to be written: a copy of the LLaVA."""
    if place.llava.exists():
        return
    needed = sum(file.stat().st_size for file in host.iterdir() if file.is_file())
    free = shutil.disk_usage(place.folder).free
    if free < needed:
        raise ValueError(
            f"{place.folder} gets a copy of the LLaVA, {needed / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB left: free some, or "
            "give another --out. The same command goes on."
        )


def in_words(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours / 24:.1f} days"
