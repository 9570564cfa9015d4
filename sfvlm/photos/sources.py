"""Photo sources: folders, tar shards, Hugging Face datasets and rendered scenes as one list.

`open_photos` indexes them; nothing is decoded before it is asked for.
"""

import hashlib
import itertools
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch.utils.data import Dataset

from ..util.console import say
from ..util.errors import check_of_file, shortened
from ..util.files import read_templates, read_text
from .class_names import read_classes
from .decode import IMAGE_SUFFIXES, Photo, UnreadablePhoto, decode_image, read_regular
from .folders import NoLabels, PassedOver, class_folders, folders_without_photos, image_names, without_masks
from .names import PhotoName, closest, photo_name
from .paths import Scenes, beside, expand, is_hugging_face, only_split, shards_of
from .scenes import render_scene
from .shards import PackedStrings, Record, TarPhotos
from .tables import HuggingFacePhotos


class FolderPhotos:
    """Image files below `root`; with classes, the first folder on the way is the class."""

    def __init__(
        self, root: Path, names: Iterable[str], class_names: Sequence[str] = (), passed_over: PassedOver | None = None
    ) -> None:
        self.root = root
        self.passed_over = passed_over or PassedOver()
        self.names = PackedStrings(names)
        self.labels = {name: label for label, name in enumerate(class_names)}

    def __len__(self) -> int:
        return len(self.names)

    def key(self, index: int) -> str:
        return f"{self.root.name}/{self.names[index]}"

    def read(self, index: int) -> Record:
        name = self.names[index]
        return Record(read_regular(self.root / name), self.labels.get(name.split("/")[0]))


class ScenePhotos:
    """Rendered scenes: photos that need no download."""

    def __init__(self, count: int, seed: int) -> None:
        self.passed_over = PassedOver()
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"scenes:{self.seed}:{index}"

    def read(self, index: int) -> Record:
        scene = render_scene(self.seed, index)
        return Record(scene.image, scene.label, scene.captions, scene.to_meta())


Source = FolderPhotos | TarPhotos | HuggingFacePhotos | ScenePhotos


class Photos(Dataset[Photo]):
    """Every photo of several sources, in their order. Decodes on access, and pickles to workers."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        max_pixels: int,
        decode_hint: int | None = None,
        class_names: tuple[str, ...] | None = None,
        templates: tuple[str, ...] | None = None,
        origins: tuple[str, ...] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.sources = tuple(sources)
        self.origins = origins  # the sources as they were given
        self.max_pixels = max_pixels
        self.decode_hint = decode_hint
        self.class_names = class_names
        self.templates = templates
        self.notes = tuple(notes)  # what was taken or assumed of the sources, a sentence each
        self.passed_over = PassedOver()
        for source in sources:
            self.passed_over.update(source.passed_over)
        self._ends = list(itertools.accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should be told of the sources before their photos are used, a sentence each."""
        return tuple(filter(None, (*self.notes, self.passed_over.sentence())))

    def _locate(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"photo {index} of {len(self)}")
        position = bisect_right(self._ends, index)
        return self.sources[position], index - (self._ends[position - 1] if position else 0)

    def key(self, index: int) -> str:
        source, row = self._locate(index)
        return source.key(row)

    def place(self, index: int) -> tuple[Path | None, str]:
        """Where the folder or shard lies that holds a photo, None of a rendered one, and the photo's path in it."""
        source, row = self._locate(index)
        top = getattr(source, "root", None) or getattr(source, "path", None)
        key = source.key(row)
        return top, key if top is None else key.removeprefix(top.name)[1:]

    def name(self, index: int) -> PhotoName:
        """A photo's path in its source, taken apart, and where that source lies."""
        top, inside = self.place(index)
        return photo_name(inside, top)

    def __getitem__(self, index: int) -> Photo:
        source, row = self._locate(index)
        key = source.key(row)
        try:
            image, label, captions, meta, unread = source.read(row)
            if isinstance(image, bytes):
                image = decode_image(image, self.max_pixels, self.decode_hint)
        except (OSError, ValueError) as error:
            check_of_file(error, key)
            raise UnreadablePhoto(key, str(error)) from error
        return Photo(image, key, label, captions, meta, unread)

    def unread(self, index: int) -> Mapping[str, str]:
        """`Photo.unread`, without the photo; nothing of one that is broken."""
        source, row = self._locate(index)
        if not isinstance(source, TarPhotos | HuggingFacePhotos):
            return {}
        try:
            return source.unread(row)
        except (OSError, ValueError) as error:
            check_of_file(error, source.key(row))
            return {}


class SomePhotos(Protocol):
    """Photos by index, all of a source or some of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Photo: ...

    def key(self, index: int) -> str: ...


def names_hash(photos: SomePhotos) -> str:
    """A hash of which photos these are, and in which order: 64 hex digits."""
    names = "\n".join(photos.key(index) for index in range(len(photos)))
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()  # file names may be no UTF-8


def named(photos: Photos, path: Path, remarks: list[str] | None = None) -> set[int]:
    """Which photos a file names, one a line: as `key` says, or without folders or the shard in front, or without the suffix.

    A name that is none of these is looked for as `sfvlm.photos.names` says: it may be written in another way or on another machine.

    Args:
        photos: Looked through.
        path: Of the file.
        remarks: Receives how many names are none of the photos': a benchmark may name more than there are.

    Raises:
        ValueError: There is no such file, or it names none of them.
    """
    if not path.is_file():
        raise ValueError(f"There is no file of names {path}.")
    # File names may be no UTF-8; like this they read as Python reads them from a disk.
    lines = read_text(path, errors="surrogateescape").split("\n")
    names = dict.fromkeys(filter(None, map(str.strip, lines)))
    found: set[int] = set()
    unknown = dict(names)
    for index in range(len(photos)):
        if own := names.keys() & set(_names_of(photos.key(index))):
            found.add(index)
            for name in own:
                unknown.pop(name, None)
    if unknown:
        lost = _named_otherwise(photos, unknown, found)
        if lost and remarks is not None:
            remarks.append(
                f"{len(lost)} of the {len(names)} names in {path} are none of the photos', the first of them {lost[0]}."
            )
    if not found:
        example = f", which are named like {photos.key(0)!r}" if len(photos) else ""
        raise ValueError(f"None of the {len(names)} names in {path} is one of the {len(photos)} photos{example}.")
    return found


def _named_otherwise(photos: Photos, names: Iterable[str], found: set[int]) -> list[str]:
    """Adds the photos that these names mean as paths, and returns the names that mean none."""
    asked = {name: photo_name(name) for name in names}
    by_stem: dict[str, list[int]] = {each.stem: [] for each in asked.values()}
    for index in range(len(photos)):
        if (stem := photos.name(index).stem) in by_stem:
            by_stem[stem].append(index)
    lost = []
    for name, each in asked.items():
        indices = by_stem[each.stem]
        chosen = closest(each, [photos.name(index) for index in indices])
        found.update(indices[number] for number in chosen)
        lost += [] if chosen else [name]
    return lost


def _names_of(key: str) -> Iterator[str]:
    """What a photo may be called: its key, and every end of that which begins a name; each with its suffix and without."""
    starts = [0] if key.startswith("scenes:") else [0, *(mark.end() for mark in re.finditer("[/:]", key))]
    for start in starts:
        name = key[start:]
        yield name
        stem, dot, suffix = name.rpartition(".")
        if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES:
            yield stem


def readable(photos: SomePhotos, indices: Iterable[int] | None = None) -> Iterator[Photo]:
    """The photos that can be read, of these indices or of all, one after another."""
    for index in range(len(photos)) if indices is None else indices:
        with suppress(UnreadablePhoto):
            yield photos[index]


def first_images(photos: Photos, count: int) -> list[Image.Image]:
    """The first photos that can be read, at most so many.

    Raises:
        ValueError: None can.
    """
    found = [photo.image for photo in itertools.islice(readable(photos), count)]
    if not found:
        raise ValueError(f"None of the {len(photos)} photos of {', '.join(photos.origins)} can be read.")
    return found


def open_photos(
    sources: str | Path | Sequence[str | Path],
    *,
    max_pixels: int = 100_000_000,
    labelled: bool = False,
    decode_hint: int | None = None,
) -> Photos:
    """Indexes one or several sources, in the order given.

    A source is an image file; a folder of photos (recursive; with `labelled`, its subfolders are
    the classes); tar shards as a path, a glob, a brace range `{000..012}.tar` or a folder of
    them; a folder written by `Dataset.save_to_disk`; `scenes:COUNT` or `scenes:COUNT:SEED`; or
    several of these joined by `::`. What is passed over is counted; `Photos.remarks` says it.

    Raises:
        ValueError: A source is none, there is no photo, or photos lie beside shards.
        NoLabels: With `labelled`, where a folder has no class folders, or the sources' classes differ.
    """
    listed = [sources] if isinstance(sources, str | Path) else list(sources)
    opened: list[Source] = []
    paths, notes = _each_once([*itertools.chain.from_iterable(map(expand, listed))])
    named_by = 0  # sources that could name their classes
    class_names: list[tuple[str, ...]] = []
    templates: list[tuple[str, ...]] = []
    for path in paths:
        named_by += 1
        if isinstance(path, Scenes):
            opened.append(ScenePhotos(path.count, path.seed))
        elif path.is_dir() and is_hugging_face(path):
            rows = HuggingFacePhotos(only_split(path))
            opened.append(rows)
            notes += rows.notes
            class_names += [rows.class_names] if rows.class_names else []
        elif shards := shards_of(path):
            found = [*map(TarPhotos, shards)]
            if path.is_dir():
                found[0].passed_over.update(_beside_shards(path, found))
            opened += found
            class_names += [read_classes(file).names for file in beside(shards, "classnames.txt")]
            templates += map(read_templates, beside(shards, "zeroshot_classification_templates.txt"))
        elif path.is_dir():
            names, passed = image_names(path)
            names = without_masks(names, passed)
            if labelled:
                names = [name for name in names if "/" in name]
                class_names.append(class_folders(path, names))
                if bare := folders_without_photos(path, class_names[-1]):
                    notes.append(f"Folders of {path} that hold no photo are no classes: {shortened(', '.join(bare))}.")
            opened.append(FolderPhotos(path, names, class_names[-1] if labelled else (), passed))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            opened.append(FolderPhotos(path.parent, [path.name]))
        else:
            raise ValueError(f"{path} is not a photo source: give a folder, an image or a .tar shard.")
    photos = Photos(
        opened,
        max_pixels=max_pixels,
        decode_hint=decode_hint,
        class_names=class_names[0] if len(set(class_names)) == 1 else None,
        templates=templates[0] if len(set(templates)) == 1 else None,
        origins=tuple(map(str, listed)),
        notes=notes,
    )
    if not len(photos):
        where, passed = ", ".join(map(str, listed)) or "an empty list", photos.passed_over.sentence()
        raise ValueError(f"No photos found in {where}. {passed}".rstrip())
    if class_names and len(class_names) < named_by:
        photos.notes += (
            f"Of the {named_by} sources {len(class_names)} name their classes; labels of the others are taken for places among these.",
        )
    if labelled and len(set(class_names)) > 1:
        raise NoLabels(f"The sources {listed} name different classes; open them one at a time.")
    return photos


def open_and_say(sources: str | Path | Sequence[str | Path]) -> Photos:
    """`open_photos`, and its remarks said: what is passed over or assumed, before anything is done with the photos."""
    photos = open_photos(sources)
    for remark in photos.remarks:
        say(remark)
    return photos


def _each_once(paths: Sequence[Path | Scenes]) -> tuple[list[Path | Scenes], list[str]]:
    """The paths without those that come again: their photos would be trained on and held back at once; and what is said of it."""
    notes, seen = [], dict[Path | Scenes, Path | Scenes]()
    for path in paths:
        real = path if isinstance(path, Scenes) else path.resolve()
        if real in seen:
            name = "scenes:{}:{}".format(*path) if isinstance(path, Scenes) else path
            notes.append(f"{name} is given several times, and taken once.")
        seen.setdefault(real, path)
    folders = [real for real in seen if isinstance(real, Path)]
    for real in folders:
        above = next((other for other in folders if other in real.parents and real.suffix.lower() != ".tar"), None)
        if above is not None:
            notes.append(f"{seen[real]} lies in {seen[above]}, which is given too: what both hold counts twice.")
    return list(seen.values()), notes


def _beside_shards(folder: Path, shards: Sequence[TarPhotos]) -> PassedOver:
    """The photos in a folder of shards, which are read alone.

    Raises:
        ValueError: They lie among the shards, or are more than are in these: a shard may have come there by accident.
    """
    names, found = image_names(folder)
    if any("/" not in name for name in names) or len(names) > sum(map(len, shards)):
        raise ValueError(
            f"{folder} holds shards ({shards[0].path.name}) and {len(names)} photos beside them ({names[0]}), and only one of both "
            f"can be meant: give '{shards[0].path.parent}/*.tar' for the shards, or move them away for the photos."
        )
    passed = PassedOver()
    for kind in found.counts:
        if not kind.startswith("."):  # what has a suffix describes the shards, or is one
            passed.add(kind, found.first[kind], found.counts[kind])
    for name in names:
        passed.add("photos in folders beside the shards", name)
    return passed
