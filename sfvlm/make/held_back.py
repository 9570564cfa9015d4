"""Which photos are measured on: drawn before anything is learned, written down by name, and never learned from.

photos --hold_back--> held-back.txt --> left out of the bootstrap by name, measured on and shown in the report
"""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..photos.batches import Selection
from ..photos.decode import UnreadablePhoto
from ..photos.sources import Photos
from ..photos.views import ShowablePhotos
from ..util.files import read_text, replacing
from .recipe import FEWEST_PHOTOS


@dataclass(frozen=True)
class HeldBack:
    """Photos that are measured on.

    Attributes:
        photos: In the order of their sources.
        unreadable: Key -> why, of those that were drawn and could not be read.
    """

    photos: Selection
    unreadable: dict[str, str]


def hold_back(photos: Photos, count: int, seed: int, path: Path) -> HeldBack:
    """Draws photos that can be read and shown, and writes their names; a later call takes those of the file.

    A name that several photos have, or that would not be the same after a look at the file, is not drawn: a photo is left out of
    training by its name.

    Args:
        photos: All.
        count: How many; at most a fifth of all.
        seed: Of the draw.
        path: The file of names.

    Raises:
        ValueError: There are too few photos, or none can be read; or the file names one that is not there.
    """
    if len(photos) < FEWEST_PHOTOS:
        raise ValueError(
            f"There are {len(photos)} photos in {', '.join(photos.origins)}, and at least {FEWEST_PHOTOS} are needed: most to learn "
            "from, and some to measure on."
        )
    keys = [photos.key(index) for index in range(len(photos))]
    if path.is_file():
        return HeldBack(_named(photos, keys, path), {})
    times = Counter(keys)
    order = [index for index, key in enumerate(keys) if times[key] == 1 and key == "".join(key.splitlines()).strip()]
    random.Random(f"held back {seed}").shuffle(order)
    chosen, unreadable, shown = [], dict[str, str](), ShowablePhotos(photos)
    for index in order:
        if len(chosen) == min(count, len(photos) // 5):
            break
        try:
            _ = shown[index]
            chosen.append(index)
        except UnreadablePhoto as error:
            unreadable[error.key] = error.reason
    if not chosen:
        why = next(iter(unreadable.items()), ("", "their names are not told apart"))
        raise ValueError(f"None of the {len(photos)} photos can be held back to measure on: {' '.join(why).strip()}.")
    chosen.sort()
    with replacing(path) as temporary:  # names of files may be no UTF-8
        temporary.write_text("".join(f"{keys[index]}\n" for index in chosen), "utf-8", errors="surrogateescape")
    return HeldBack(Selection(photos, chosen), unreadable)


def _named(photos: Photos, keys: list[str], path: Path) -> Selection:
    places = {key: index for index, key in enumerate(keys)}
    names = read_text(path, errors="surrogateescape").splitlines()
    if lost := [name for name in names if name not in places]:
        raise ValueError(
            f"{len(lost)} of the {len(names)} photos that {path} holds back are not there any more, {lost[0]} among them: bring them "
            "back, or give another --out."
        )
    return Selection(photos, sorted(places[name] for name in names))
