"""The flags of `sfvlm focus`."""

from dataclasses import dataclass
from pathlib import Path

from ...util.choices import SCENE_TEST_SEED


@dataclass(frozen=True)
class FocusCommand:
    """Ask about objects of rendered scenes, with the boxes sent to what is asked about and without."""

    host: str = "llava-tiny"
    """A LLaVA with its dense tower, or a folder that was swapped."""
    tower: str | None = None
    """SparseFormer folder or name; default the shipped one for the shipped host, or the one inside a swapped folder."""
    scenes: int = 200
    """How many."""
    seed: int = SCENE_TEST_SEED
    """Of the scenes."""
    image_size: int = 896
    """Their side in pixels."""
    small_objects: bool = False
    """Everything measures 4 to 8 % of the photo's side."""
    share: tuple[float, ...] = (1.0, 0.5)
    """Shares of the tokens that go into the rectangle, each measured."""
    margin: float = 0.5
    """Room around what is asked about, in its longer sides."""
    device: str | None = None
    """Default cuda where there is one."""
    out: Path | None = None
    """A .json file to write."""
