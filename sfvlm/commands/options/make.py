"""The flags of `sfvlm make`."""

from dataclasses import dataclass
from pathlib import Path

from ...make.recipe import Recipe


@dataclass(frozen=True)
class MakeCommand(Recipe):
    """Make a LLaVA read few tokens a photo, from your LLaVA and your photos, and write a report of what that is worth.

    Without flags: the shipped LLaVA on rendered scenes, in a few minutes. Whatever ends it, the same command goes on.
    """

    out: Path = Path("runs/make")
    """Folder to write: the tower, the LLaVA with it, the measurements, and report.html."""
