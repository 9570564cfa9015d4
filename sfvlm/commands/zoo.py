"""The command that lists and fetches named weights."""

from dataclasses import dataclass

from ..cli import say
from ..zoo import folder_of, listing


@dataclass(frozen=True)
class ZooCommand:
    """List the named weights, or fetch some and print where they are."""

    fetch: str | None = None
    """A name: its weights are downloaded or put together, and the folder is printed."""


def zoo_command(command: ZooCommand) -> None:
    """Prints the table, or what a name stands for."""
    say(listing() if command.fetch is None else str(folder_of(command.fetch)))
