"""The flags of `sfvlm boxes`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BoxesCommand:
    """Draw where the tokens looked: the photo, then its boxes after each step."""

    model: str
    """A SparseFormer: folder, hub id, or name of `sfvlm zoo`."""
    photo: str
    """An image file, or scenes:1:SEED for a rendered one."""
    out: Path
    """The picture to write."""
    num_tokens: int | None = None
    """Budget; default the model's."""
    points: bool = False
    """Also draw the sampling points."""
