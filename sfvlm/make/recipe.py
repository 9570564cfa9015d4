"""What is to be made, and of what: the recipe of a run, whose fields are the flags of its command too."""

import shlex
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

# Without photos: the shipped LLaVA, and rendered scenes of a seed that nothing else in the project uses. About six minutes on
# two cores.
SHIPPED, SCENES, QUICK_STEPS, QUICK_BATCH, QUICK_HELD_BACK = "llava-tiny", "scenes:500:5150", 120, 16, 60
STEPS, BATCH, HELD_BACK = 2000, 32, 100
FEWEST_PHOTOS = 20
# How fast photos are decoded, and where the work is done, changes nothing that is measured but times.
FREE = ("workers",)


@dataclass(frozen=True)
class Recipe:
    """Make a LLaVA read few tokens a photo, from your LLaVA and your photos, and write a report of what that is worth."""

    host: str = SHIPPED
    """A transformers LLaVA, LLaVA-NeXT or LLaVA-OneVision with its dense tower: folder, hub id or name of the zoo."""
    photos: list[str] = field(default_factory=list)
    """Your photos: folders, tar shards, Hugging Face datasets on disk, or scenes:COUNT. None: rendered scenes, for the shipped
    LLaVA alone."""
    num_tokens: int = 49
    """Tokens a photo becomes, or a tile where the LLaVA cuts photos into tiles."""
    steps: int | None = None
    """Steps of training; default 2000, without photos 120."""
    batch_size: int | None = None
    """Photos a step; default 32, without photos 16."""
    most_photos: int = 10_000
    """Learn from so many of the photos at most: the LLaVA is asked about each of them first. 0: all."""
    held_back: int | None = None
    """Photos that are measured on and never learned from; default 100, without photos 60; at most a fifth of all."""
    prompts: Path | None = None
    """File of what your LLaVA is asked, one prompt a line; default general prompts."""
    alternatives: list[str] = field(default_factory=list)
    """Cheap ways to as few tokens, measured beside; none given: every one that gives so many: resolution, larger-patch, stride,
    average, cls-attention, diversity, random, merging, merging-decreasing, merging-gradual."""
    precision: Literal["no", "bf16", "fp16"] | None = None
    """Of training; default bf16 on a GPU that has it."""
    workers: int = 1
    """Processes that decode photos."""
    seed: int = 0
    """Of everything that is drawn."""
    cpu: bool = False
    """Stay on the CPU though there is a GPU."""

    def completed(self) -> "Recipe":
        """The same with every default filled in that depends on what else is asked.

        Raises:
            ValueError: There are no photos, or a number is out of its range.
        """
        if not self.photos and self.host != SHIPPED:
            raise ValueError(f"There are no photos for {self.host} to learn from: give --photos FOLDER.")
        quick = not self.photos
        whole = replace(
            self,
            photos=self.photos or [SCENES],
            steps=_or(self.steps, QUICK_STEPS if quick else STEPS),
            batch_size=_or(self.batch_size, QUICK_BATCH if quick else BATCH),
            held_back=_or(self.held_back, QUICK_HELD_BACK if quick else HELD_BACK),
        )
        least = {"num_tokens": 1, "steps": 1, "batch_size": 1, "most_photos": 0, "held_back": 1, "workers": 0}
        for name, number in least.items():
            if getattr(whole, name) < number:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {getattr(whole, name)}; it must be at least {number}.")
        return whole

    def binding(self) -> dict[str, Any]:
        """As JSON gives it back, without what a later run in the same folder may change."""
        asked = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in FREE}
        return asked | {"prompts": None if self.prompts is None else str(self.prompts)}

    def command(self, out: Path) -> str:
        """The command that makes this in a folder."""
        words = ["sfvlm", "make"]
        for each in fields(self):
            value = getattr(self, each.name)
            if value == getattr(_DEFAULT, each.name) or value is None:
                continue
            listed = value if isinstance(value, list) else [value]
            words += [f"--{each.name.replace('_', '-')}", *([] if value is True else map(str, listed))]
        return shlex.join([*words, "--out", str(out)])


_DEFAULT = Recipe()


def _or(given: int | None, default: int) -> int:
    return default if given is None else given
