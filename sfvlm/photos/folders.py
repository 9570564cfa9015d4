"""Which files below a folder are photos, which of its folders are classes, and what of it is passed over."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from ..util.errors import check_of_file
from .decode import IMAGE_SUFFIXES, is_marked

# What systems and programs put beside people's files: packers, network disks, desktops, notebooks.
SYSTEM_FOLDERS = {
    "__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin", "lost+found",
    "system volume information", "__pycache__", ".ipynb_checkpoints", ".git", ".appledouble", ".thumbnails", ".trash",
    ".trashes",
}  # fmt: skip
SPLITS = re.compile(
    r"(train|training|trainval|val|valid|validation|dev|test|testing|eval)([-_ ]?(set|data|images|\d+))?", re.I
)
# Folders of photos and of their masks, as data sets of segmentation call them.
PHOTO_FOLDERS = ("images", "image", "imgs", "img", "photos", "jpegimages", "leftimg8bit")
MASK_FOLDERS = (
    "masks", "mask", "annotations", "annotation", "labels", "label", "segmentationclass", "segmentationclassaug", "gtfine", "gt",
)  # fmt: skip
MOST_KINDS = 6  # that a sentence names


class PassedOver:
    """Files of a source that are not taken as photos, counted by kind, with the first of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, kind: str, name: str, count: int = 1) -> None:
        self.counts[kind] += count
        self.first.setdefault(kind, name)

    def update(self, other: "PassedOver") -> None:
        self.counts.update(other.counts)
        self.first = other.first | self.first

    def sentence(self, taken_as: str = "photos") -> str:
        """What is passed over, in one line; nothing where nothing is."""
        if not self.counts:
            return ""
        kinds = self.counts.most_common()
        said = [f"{count} {kind} (such as {self.first[kind]})" for kind, count in kinds[:MOST_KINDS]]
        if rest := kinds[MOST_KINDS:]:
            said.append(f"{sum(count for _, count in rest)} of {len(rest)} other kinds")
        return f"Passed over, because they are not read as {taken_as}: {', '.join(said)}."


def kind_of(name: str) -> str:
    """By what a file that is no photo is counted: its suffix, or that it has none."""
    return Path(name).suffix.lower() or "without a suffix"


def is_of_system(folders: Iterable[str]) -> bool:
    """Whether one of these folders holds what a system put there, such as thumbnails of the photos beside it."""
    return any(folder.lower() in SYSTEM_FOLDERS for folder in folders)


def image_names(root: Path) -> tuple[list[str], PassedOver]:
    """Paths of the photos below `root`, relative to it and sorted; and what else is there.

    A photo is a regular file with the suffix of one, or without any suffix and with the first bytes of one. Links are
    followed, but not back to where they came from.
    """
    names: list[str] = []
    passed = PassedOver()
    pending: list[tuple[str, frozenset[str]]] = [("", frozenset({os.path.realpath(root)}))]
    while pending:
        prefix, above = pending.pop()
        try:
            with os.scandir(root / prefix) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            check_of_file(error, str(root / prefix))
            passed.add("folders that cannot be opened", prefix)
            continue
        for entry in entries:
            name = prefix + entry.name
            kind = _kind_on_disk(entry)
            if kind == "folder":
                real = os.path.realpath(entry.path)
                if real not in above:  # or it is a link back
                    pending.append((f"{name}/", above | {real}))
            elif kind == "photo":
                names.append(name)
            else:
                passed.add(kind, name)
    return sorted(names), passed


def without_masks(names: Sequence[str], passed: PassedOver) -> list[str]:
    """Photos without the pictures that are their masks: of images/a.jpg, masks/a.png. Those are counted in `passed`."""
    photos: set[tuple[str, ...]] = set()
    parted: list[tuple[str, bool, tuple[str, ...]]] = []
    for name in names:
        *folders, base = name.split("/")
        lower = [folder.lower() for folder in folders]
        kept = tuple(folder for folder in lower if folder not in (*PHOTO_FOLDERS, *MASK_FOLDERS))
        key, is_mask = (*kept, os.path.splitext(base)[0]), any(folder in MASK_FOLDERS for folder in lower)
        parted.append((name, is_mask, key))
        if any(folder in PHOTO_FOLDERS for folder in lower) and not is_mask:
            photos.add(key)
    left = []
    for name, is_mask, key in parted:
        if is_mask and key in photos:
            passed.add("masks of photos", name)
        else:
            left.append(name)
    return left


def _kind_on_disk(entry: os.DirEntry[str]) -> str:
    """`folder`, `photo`, or by what it is counted instead."""
    try:
        if entry.is_dir():
            hidden = entry.name.startswith(".") or is_of_system([entry.name])
            return "hidden folders and those of the system" if hidden else "folder"
        if not entry.is_file():
            dangles = entry.is_symlink() and not os.path.exists(entry.path)
            return "links that lead nowhere" if dangles else "pipes, sockets and devices"
        if entry.name.startswith("."):
            return "hidden"
        if entry.name.lower().endswith(IMAGE_SUFFIXES):
            return "photo"
        if "." not in entry.name and _begins_like_photo(entry.path):
            return "photo"
    except OSError as error:  # a link to itself among them
        check_of_file(error, entry.path)
        return "files that cannot be opened"
    return kind_of(entry.name)


def _begins_like_photo(path: str) -> bool:
    """Whether a file without a suffix begins like a photo."""
    with open(path, "rb") as file:
        return is_marked(file.read(64))


class NoLabels(ValueError):
    """Photos that were to have labels have none that mean anything; without, they can be used."""


def class_folders(root: Path, names: Sequence[str]) -> tuple[str, ...]:
    """The immediate subfolders that hold some of the photos `names` are the classes, sorted; by number where all are numbers.

    Raises:
        NoLabels: No photo is in one, or they are splits of the photos.
        ValueError: Two are the same number.
    """
    folders = {name.split("/")[0] for name in names if "/" in name}
    if not folders:
        raise NoLabels(
            f"{root} has no photos in class subfolders, so their labels are unknown; "
            "put the photos of each class into a folder of its own."
        )
    splits = {name: match[1].lower() for name in folders if (match := SPLITS.fullmatch(name))}
    # One alone beside others may be a class: people photograph trains.
    if len({*splits.values()}) > 1 or len(splits) == len(folders):
        raise NoLabels(
            f"The folders of {root} are splits ({', '.join(sorted(splits))}) and no classes, so that its photos have no labels: "
            f"for those of one, give it, such as {root / min(splits)}."
        )
    if not all(map(is_number, folders)):
        return tuple(sorted(folders))
    ordered = sorted(folders, key=lambda name: (int(name), name))
    for one, other in pairwise(ordered):
        if int(one) == int(other):
            raise ValueError(f"The class folders {one} and {other} of {root} are the same number: rename or join them.")
    return tuple(ordered)


def is_number(name: str) -> bool:
    """Whether a class is called by digits alone."""
    return re.fullmatch("[0-9]+", name) is not None


def folders_without_photos(root: Path, classes: Sequence[str]) -> list[str]:
    """Immediate subfolders that could be classes but hold no photo."""
    known = {*classes}
    folders = (entry.name for entry in root.iterdir() if entry.is_dir())
    return sorted(
        name for name in folders if name not in known and not name.startswith(".") and not is_of_system([name])
    )
