"""Finds the photo that a question names, in photos of a source or in MMBench's table; and knows it again."""

import base64
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image

from ..photos.decode import Photo, UnreadablePhoto, decode_image
from ..photos.names import agreeing, closest, photo_name
from ..photos.sources import Photos
from ..photos.views import shown
from ..util.subsets import spread
from .formats import mm_bench_photos
from .questions import Question

MAX_PIXELS = 100_000_000
COMPARED = 8  # photos, of those that answers are kept about
Name = TypeVar("Name")


class NamedPhotos(Protocol):
    """Photos by the names that questions give them; both raise ValueError unless there is one of that name."""

    def find(self, name: str) -> object: ...

    def open(self, name: str) -> Image.Image: ...


class SourcePhotos:
    """The photos of `open_photos`, by key, by path, or by file name with or without suffix, as `sfvlm.photos.names` says.

    Attributes:
        photos: All of them.
        assumed: Name -> key of what was found by its file name alone, though folders were asked for that say nothing here.
    """

    def __init__(self, photos: Photos) -> None:
        self.photos = photos
        self.assumed: dict[str, str] = {}
        self._by_key: dict[str, list[int]] = defaultdict(list)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for index in range(len(photos)):
            self._by_key[photos.key(index)].append(index)
            self._by_stem[photos.name(index).stem].append(index)

    def find(self, name: str) -> int:
        """The photo's index.

        Raises:
            ValueError: There is none of that name, there are several, or the only ones lie in other folders.
        """
        asked = photo_name(name)
        same_stem = self._by_stem.get(asked.stem, [])
        found = self._by_key.get(name) or self._same_files(name, same_stem)
        if not found:
            names = [self.photos.name(index) for index in same_stem]
            chosen = closest(asked, names)
            found = [same_stem[number] for number in chosen]
            if len(found) == 1 and asked.folders and not agreeing(asked, names[chosen[0]]):
                self.assumed[name] = self.photos.key(found[0])
        if len(found) != 1 and len({self._file(index) for index in found}) != 1:
            raise ValueError(self._not_found(name, found, same_stem))
        return found[0]

    def open(self, name: str) -> Image.Image:
        """The photo, upright and RGB.

        Raises:
            UnreadablePhoto: It is broken, or no host can be shown it.
            ValueError: As `find` does.
        """
        return shown(self.photos[self.find(name)]).image

    def _file(self, index: int) -> str:
        """What is the same for two ways to the same photo, by links or by two sources."""
        top, inside = self.photos.place(index)
        if top is None or not top.is_dir():
            return f"photo {index}"
        return os.path.realpath(top / inside)

    def _same_files(self, name: str, indices: Sequence[int]) -> list[int]:
        """Where a name is the path of a file on this machine, that file."""
        path = name.removeprefix("file://")
        real = os.path.realpath(path) if os.path.isabs(path) and os.path.exists(path) else None
        return [index for index in indices if real is not None and self._file(index) == real][:1]

    def _not_found(self, name: str, found: Sequence[int], same_stem: Sequence[int]) -> str:
        where = ", ".join(self.photos.origins)
        keys = ", ".join(self.photos.key(index) for index in (found or same_stem)[:3])
        if found:
            return f"The photo {name} could be any of {len(found)} in {where}: {keys}."
        if not same_stem:
            return f"The photo {name} is not in {where}."
        return (
            f"The photo {name} is not in {where}: {keys} is called like it, but lies in another folder. Give the folder that "
            "the name speaks of, or the one above it."
        )


class TablePhotos:
    """The photos inside MMBench's table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = mm_bench_photos(path)

    def find(self, name: str) -> str:
        if name not in self._data:
            raise ValueError(f"The photo {name} is not in {self.path}.")
        return name

    def open(self, name: str) -> Image.Image:
        data = self._data[self.find(name)]
        try:
            image = decode_image(base64.b64decode(data), MAX_PIXELS)
        except ValueError as error:
            raise UnreadablePhoto(f"{self.path.name}:{name}", str(error)) from error
        return shown(Photo(image, f"{self.path.name}:{name}")).image


def check_photos(questions: Sequence[Question], photos: NamedPhotos, where: str) -> None:
    """Refuses questions about photos that are not there, or not there alone, before anything is asked.

    Raises:
        ValueError: With how many, and the first.
    """
    reasons: dict[str, str] = {}
    for name in {item.image for item in questions if item.image is not None}:
        try:
            photos.find(name)
        except ValueError as error:
            reasons[name] = str(error)
    lost = [(item.question_id, item.image) for item in questions if item.image in reasons]
    if lost:
        number, name = lost[0]
        raise ValueError(
            f"{len(lost)} of {len(questions)} questions are about photos that cannot be found in {where}, the first of "
            f"them {name} (question {number}). {reasons[str(name)]}"
        )


def photo_fingerprint(image: Image.Image) -> str:
    """Twelve hex digits that change with a photo: with its size and a sample of its pixels."""
    sample = image.resize((16, 16), Image.Resampling.NEAREST).tobytes()
    return hashlib.sha256(f"{image.size}".encode() + sample).hexdigest()[:12]


def changed_photo(kept: Mapping[Name, str], open_photo: Callable[[Name], Image.Image]) -> Name | None:
    """A photo that is no longer the one whose fingerprint was kept, of a few, spread evenly; those that are broken pass."""
    names = list(kept)
    for name in (names[number] for number in spread(len(names), COMPARED)):
        with suppress(UnreadablePhoto):
            if photo_fingerprint(open_photo(name)) != kept[name]:
                return name
    return None
