"""The command that draws where the tokens looked."""

from dataclasses import dataclass
from pathlib import Path

from ..cli import say
from ..export import open_student
from ..visualize import draw_focusing, save_picture
from ..zoo import folder_of
from .opening import open_and_say


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


def boxes_command(command: BoxesCommand) -> None:
    """Opens the model and the photo, and writes the picture."""
    photo = open_and_say(command.photo)[0]
    model = open_student(folder_of(command.model))
    picture = draw_focusing(model, photo.image, command.num_tokens, with_points=command.points)
    save_picture(picture, command.out)
    say(f"Wrote {command.out}.")
