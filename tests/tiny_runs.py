"""Short runs of the bootstrap on tiny models, in this process or as a command."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from sfvlm.bootstrap.options import BootstrapOptions
from sfvlm.bootstrap.run import bootstrap
from sfvlm.photos.batches import Selection
from sfvlm.photos.sources import open_photos
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config

SCRIPT = Path(__file__).parents[1] / "scripts" / "bootstrap_clip.py"
QUICK = dict(
    steps=6, batch_size=4, workers=0, held_back=2, eval_every=3, save_every=2, log_every=1, cpu=True, learning_rate=1e-3
)
TURNS = [("Is there a dog in the photo?", "yes"), ("What color is the biggest object?", "a red circle")]


def run(teacher: Path, photos: Path, out: Path, resume: bool = False, stop_after: int | None = None, **changes: object):
    """The finished weights of a student of 4 tokens; None of a run that stopped before."""
    opened = open_teacher(teacher)
    of_student = {name: changes.pop(name) for name in ("focusing", "image_size", "num_tokens") if name in changes}
    tuned_blocks = changes.pop("tuned_blocks", 2)
    student, report = inherit(
        opened, student_config(opened.config, **({"num_tokens": 4, "focusing": "inherited"} | of_student)), tuned_blocks
    )
    options = BootstrapOptions(**(QUICK | changes))
    bootstrap(opened, student, report, open_photos(photos), out, options, resume=resume, stop_after=stop_after)
    return load_file(out / "model.safetensors") if (out / "model.safetensors").exists() else None


def lines(out: Path) -> list[dict[str, float]]:
    """Of metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """To the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def command(teacher: Path, photos: Path, out: Path, *more: str) -> list[str]:
    """The words of such a run as a process of its own."""
    flags = ["--teacher", teacher, "--photos", photos, "--out", out, "--num-tokens", "4", "--batch-size", "4"]
    quick = "--held-back 2 --workers 1 --cpu --save-every 2 --log-every 1 --eval-every 0".split()
    return [sys.executable, str(SCRIPT), *map(str, flags), *quick, *more]


def photos_of(folder: Path, count: int = 8) -> Selection:
    """The first of a folder."""
    photos = open_photos(folder)
    return Selection(photos, range(min(count, len(photos))))
