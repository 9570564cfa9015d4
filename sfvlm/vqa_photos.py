"""Finds the photo that a question names: by its key, or by its file name wherever it lies."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from .decode import UnreadablePhoto, decode_image
from .images import IMAGE_SUFFIXES, Photos
from .vqa_formats import mm_bench_photos
from .vqa_questions import Question

MAX_PIXELS = 100_000_000


class NamedPhotos(Protocol):
    """Photos by the names that questions give them."""

    def __contains__(self, name: object) -> bool: ...

    def open(self, name: str) -> Image.Image: ...


class SourcePhotos:
    """The photos of `open_photos`, by key, or by file name with or without folder and suffix.

    Where several have one name, the folders that a question gives decide.
    """

    def __init__(self, photos: Photos) -> None:
        self.photos = photos
        self._by_key = {photos.key(index): index for index in range(len(photos))}
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for key, index in self._by_key.items():
            self._by_stem[_parts(key)[-1]].append(index)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._by_key or bool(self._candidates(name)))

    def open(self, name: str) -> Image.Image:
        """The photo, upright and RGB.

        Raises:
            UnreadablePhoto: It is broken.
            ValueError: There is none of that name, or there are several.
        """
        index = self._by_key.get(name)
        if index is None:
            candidates = self._candidates(name)
            if len(candidates) != 1:
                keys = ", ".join(self.photos.key(index) for index in candidates[:3])
                raise ValueError(
                    f"The photo {name} is not in {', '.join(self.photos.origins)}."
                    if not candidates
                    else f"The photo {name} could be any of {len(candidates)}: {keys}."
                )
            index = candidates[0]
        return self.photos[index].image

    def _candidates(self, name: str) -> list[int]:
        *folders, stem = _parts(name)
        found = self._by_stem.get(stem, [])
        if len(found) > 1:
            found = [index for index in found if set(folders) <= set(_parts(self.photos.key(index))[:-1])]
        return found


class TablePhotos:
    """The photos inside MMBench's table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = dict(mm_bench_photos(path))

    def __contains__(self, name: object) -> bool:
        return name in self._data

    def open(self, name: str) -> Image.Image:
        try:
            return decode_image(self._data[name], MAX_PIXELS)
        except ValueError as error:
            raise UnreadablePhoto(f"{self.path.name}:{name}", str(error)) from error


def check_photos(questions: Sequence[Question], photos: NamedPhotos, where: str) -> None:
    """Refuses questions about photos that are not there, before anything is asked.

    Raises:
        ValueError: With how many, and the first.
    """
    missing = [item for item in questions if item.image is not None and item.image not in photos]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(questions)} questions are about photos that are not in {where}, the first of them "
            f"{missing[0].image} (question {missing[0].question_id})."
        )


def _parts(name: str) -> list[str]:
    """A path or key to its folders and the photo's name without suffix."""
    *folders, last = re.split(r"[/:]", name)
    suffix = Path(last).suffix
    return [*folders, last.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else last]
