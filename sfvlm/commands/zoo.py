"""The command that lists and fetches named weights."""

from ..util.console import say
from ..zoo.names import folder_of, listing
from .options.zoo import ZooCommand


def zoo_command(command: ZooCommand) -> None:
    """Prints the table, or what a name stands for."""
    say(listing() if command.fetch is None else str(folder_of(command.fetch)))
