"""The flags of `sfvlm zoo`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ZooCommand:
    """List the named weights, or fetch some and print where they are."""

    fetch: str | None = None
    """A name: its weights are downloaded or put together, and the folder is printed."""
