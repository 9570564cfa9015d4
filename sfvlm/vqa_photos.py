"""Finds the photo that a question names: by its key, or by its file name wherever it lies; and knows it again."""

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image

from .decode import UnreadablePhoto, decode_image
from .images import IMAGE_SUFFIXES, Photos
from .subsets import spread
from .vqa_formats import mm_bench_photos
from .vqa_questions import Question

MAX_PIXELS = 100_000_000
COMPARED = 8  # photos, of those that answers are kept about
Name = TypeVar("Name")


class NamedPhotos(Protocol):
    """Photos by the names that questions give them; both raise ValueError unless there is one of that name."""

    def find(self, name: str) -> object: ...

    def open(self, name: str) -> Image.Image: ...


class SourcePhotos:
    """The photos of `open_photos`, by key, or by file name with or without folder and suffix.

    Where several have one name, the folders that a question gives decide.
    """

    def __init__(self, photos: Photos) -> None:
        self.photos = photos
        self._by_key: dict[str, list[int]] = defaultdict(list)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for index in range(len(photos)):
            self._by_key[photos.key(index)].append(index)
            self._by_stem[_parts(photos.key(index))[-1]].append(index)

    def find(self, name: str) -> int:
        """The photo's index.

        Raises:
            ValueError: There is none of that name, or there are several.
        """
        candidates = self._candidates(name)
        if len(candidates) != 1:
            keys = ", ".join(self.photos.key(index) for index in candidates[:3])
            where = ", ".join(self.photos.origins)
            raise ValueError(
                f"The photo {name} is not in {where}."
                if not candidates
                else f"The photo {name} could be any of {len(candidates)} in {where}: {keys}."
            )
        return candidates[0]

    def open(self, name: str) -> Image.Image:
        """The photo, upright and RGB.

        Raises:
            UnreadablePhoto: It is broken.
            ValueError: There is none of that name, or there are several.
        """
        return self.photos[self.find(name)].image

    def _candidates(self, name: str) -> list[int]:
        if name in self._by_key:
            return self._by_key[name]
        *folders, stem = _parts(name)
        found = self._by_stem.get(stem, [])
        if len(found) > 1:
            found = [index for index in found if set(folders) <= set(_parts(self.photos.key(index))[:-1])]
        return found


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
            return decode_image(base64.b64decode(data), MAX_PIXELS)
        except ValueError as error:
            raise UnreadablePhoto(f"{self.path.name}:{name}", str(error)) from error


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


def _parts(name: str) -> list[str]:
    """A path or key to its folders and the photo's name without suffix."""
    *folders, last = re.split(r"[/:]", name)
    suffix = Path(last).suffix
    return [*folders, last.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else last]
