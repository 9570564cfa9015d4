"""The command that draws where the tokens looked."""

from ..encoder.folder import open_student
from ..look.draw import draw_focusing, save_picture
from ..photos.sources import open_and_say
from ..util.console import say
from ..zoo.names import folder_of
from .options.boxes import BoxesCommand


def boxes_command(command: BoxesCommand) -> None:
    """Opens the model and the photo, and writes the picture."""
    photo = open_and_say(command.photo)[0]
    model = open_student(folder_of(command.model))
    picture = draw_focusing(model, photo.image, command.num_tokens, with_points=command.points)
    save_picture(picture, command.out)
    say(f"Wrote {command.out}.")
