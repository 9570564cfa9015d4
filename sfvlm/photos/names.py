"""Which photo a written name means: one path written in several ways, and paths of another machine.

    name as written -> folders, name, suffix -> of the photos of that name, those that lie where the name says

Asked for are, in this order: the very path; the file name, in the place whose path ends most like the one asked for; the name
without its suffix, in such a place. A photo whose folders contradict the ones asked for is none of these: `train/1.jpg` is not
`val/1.jpg`.
"""

import itertools
import os
import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from .decode import IMAGE_SUFFIXES

# Suffixes of one format: each in its own words, but what is written in one is often asked for in another.
_SAME_FORMAT = ((".jpg", ".jpeg", ".jpe", ".jfif"), (".tif", ".tiff"))
_SPLIT = re.compile(r"(?:mini)?(train|val|test|dev)(?:ing|id|idation|s|dev)?")


class PhotoName(NamedTuple):
    """A photo's name taken apart.

    Attributes:
        folders: On the way to it, without `.` and `..`.
        stem: Its name without suffix, in one normal form.
        suffix: As it is written, with the dot; empty where there is none that photos have.
        base: Its name as it is written.
        top: Where the source that holds it lies, folder by folder; empty of a name that is asked for.
    """

    folders: tuple[str, ...]
    stem: str
    suffix: str
    base: str
    top: tuple[str, ...] = ()


def photo_name(written: str, top: Path | None = None) -> PhotoName:
    """A name as it is written, with the marks of Linux, of Windows or of URLs; of a photo in a source, `top` says where that is."""
    text, is_url = re.subn(r"^(?:https?://[^/]+|file://(?:localhost(?=/))?|[A-Za-z]:(?=[\\/]))", "", written.strip())
    if is_url and written.lstrip().startswith("http"):
        text = re.split(r"[?#]", text)[0]
    parts: list[str] = []
    *_, base = pieces = re.split(r"[/\\]|(?<=\.tar):", text)
    for piece in pieces:
        if piece == "..":
            parts = parts[:-1]
        elif piece not in ("", "."):
            parts.append(unicodedata.normalize("NFC", unquote(piece)))
    *folders, name = parts or [""]
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in IMAGE_SUFFIXES:
        stem, suffix = name, ""
    tops = () if top is None else tuple(part for part in top.absolute().parts if part != top.anchor)
    return PhotoName(tuple(folders), stem, suffix, base, tops)


def closest(asked: PhotoName, photos: Sequence[PhotoName]) -> list[int]:
    """Of photos of the same stem, the numbers of those that are meant: none, one, or several that nothing tells apart."""
    nearness = {
        number: _nearness(asked, photo) for number, photo in enumerate(photos) if not _contradicts(asked, photo)
    }
    best = max(nearness.values(), default=None)
    return [number for number, near in nearness.items() if near == best]


def agreeing(asked: PhotoName, photo: PhotoName) -> int:
    """How many of the folders asked for are on the photo's path."""
    return len({*map(str.casefold, asked.folders)} & {*map(str.casefold, (*photo.top, *photo.folders))})


def _nearness(asked: PhotoName, photo: PhotoName) -> tuple[int, ...]:
    suffix = _suffix_nearness(asked, photo)
    whole = (*photo.top, *photo.folders)
    is_path = asked.folders in (photo.folders, whole[max(len(photo.top) - 1, 0) :], whole)
    has_file_name = suffix > 1 or not photo.suffix  # shards keep no suffixes
    pairs = zip(reversed(asked.folders), reversed(whole), strict=False)
    end = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return int(is_path and has_file_name), suffix, end, agreeing(asked, photo)


def _suffix_nearness(asked: PhotoName, photo: PhotoName) -> int:
    ours, theirs = asked.suffix.lower(), photo.suffix.lower()
    if asked.base == photo.base:
        return 4
    if asked.suffix == photo.suffix:
        return 3
    if ours == theirs:
        return 2
    return int(any(ours in kind and theirs in kind for kind in _SAME_FORMAT))


def _contradicts(asked: PhotoName, photo: PhotoName) -> bool:
    """Whether the two paths have different folders in the same place.

    What a source is called, and where it lies, is a matter of this machine: there, only what stands for another part of the same
    data does contradict.
    """
    wanted, inside = ([part.casefold() for part in each] for each in (asked.folders, photo.folders))
    changes = SequenceMatcher(None, wanted, inside, autojunk=False).get_opcodes()
    if any(kind == "replace" for kind, *_ in changes):
        return True
    lead = next((stop for kind, start, stop, *_ in changes if kind == "delete" and start == 0), 0)
    outer, above = wanted[:lead], [part.casefold() for part in photo.top]
    while outer and above and outer[-1] == above[-1]:
        outer, above = outer[:-1], above[:-1]
    if not outer or not above or above[-1] in outer:
        return False
    if _pattern(outer[-1]) == _pattern(above[-1]) or any(_other_split(part, above[-1]) for part in outer):
        return True
    root = Path(os.sep, *photo.top)
    beside = root.parent / asked.folders[lead - 1]
    return len(above) == len(photo.top) and beside.is_dir() and root.is_dir() and not beside.samefile(root)


def _pattern(name: str) -> str:
    """A name with all numbers alike: train2014 and train2017 are parts of one data set."""
    return re.sub(r"\d+", "0", name)


def _other_split(one: str, other: str) -> bool:
    """Whether two names stand for different splits, as val2014 and coco-train do."""
    splits = []
    for name in (one, other):
        words = re.findall(r"[a-z]+", name)
        found = {match[1] for word in words if (match := _SPLIT.fullmatch(word))}
        splits.append(found if len(words) <= 3 else set())  # of a sentence, a word says little
    return bool(splits[0] and splits[1]) and splits[0].isdisjoint(splits[1])
