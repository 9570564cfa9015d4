"""Opening photos for a command: what of the sources is passed over or assumed is said before anything is done with them."""

from collections.abc import Sequence
from pathlib import Path

from ..photos.sources import Photos, open_photos
from ..util.console import say


def open_and_say(sources: str | Path | Sequence[str | Path]) -> Photos:
    """`open_photos`, and its remarks."""
    photos = open_photos(sources)
    for remark in photos.remarks:
        say(remark)
    return photos
