"""Which photos a host can be shown: not those that are next to a line.

Hosts make the shorter side as long as their views, or pad to a square: of a hair line that is a picture of gigabytes. So what
counts is not how thin a photo is, but how many pixels it has once its shorter side is as long as a view.
"""

from dataclasses import dataclass

from PIL import Image

from .decode import Photo, UnreadablePhoto
from .sources import SomePhotos

MAX_SIDE = 20_000
VIEW = 384  # the greatest side of the views of LLaVA's usual towers, CLIP's and SigLIP's
MAX_PIXELS = 100_000_000  # in memory as float32 of three channels: 1.2 GB
MAX_RATIO = MAX_PIXELS // VIEW**2


def too_long(image: Image.Image) -> str | None:
    """Why a photo cannot be shown, or None where it can."""
    if max(image.size) <= min(MAX_SIDE, MAX_RATIO * min(image.size)):
        return None
    return (
        f"has {image.width} x {image.height} pixels, and at most {MAX_SIDE} a side and {MAX_RATIO} times as many as on the other "
        "one can be read: cut out a part of it"
    )


def shown(photo: Photo) -> Photo:
    """The photo itself.

    Raises:
        UnreadablePhoto: It is too long for its width.
    """
    why = too_long(photo.image)
    if why is not None:
        raise UnreadablePhoto(photo.key, f"it {why}")
    return photo


@dataclass(frozen=True)
class ShowablePhotos:
    """Photos of which those that cannot be shown count as unreadable."""

    photos: SomePhotos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Photo:
        return shown(self.photos[index])

    def key(self, index: int) -> str:
        return self.photos.key(index)
