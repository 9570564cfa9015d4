"""Which picture is a mask, and of which photo: by the names in shards and folders, by the columns of a dataset.

| source | photo | mask |
|---|---|---|
| shard, or one folder for both | KEY.jpg | KEY.png |
| shard | KEY.jpg or KEY.png | KEY.mask.png, or one of `MASK_WORDS` |
| folder | images/NAME.jpg, or one of `PHOTO_FOLDERS` | masks/NAME.png, or one of `MASK_FOLDERS`; as deep below or above as the photo |
| folder, as SegNet's CamVid | train/NAME.png | trainannot/NAME.png |
| photos::masks, two sources joined | KEY.jpg in one | KEY.png in the other, which holds nothing else |
| dataset on disk | the column `image` | the other column of images |

Endings of names that say which of both it is (`ENDINGS`) do not count. What pairs with nothing is counted.
"""

import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..photos.class_names import read_classes
from ..photos.decode import IMAGE_SUFFIXES, read_regular
from ..photos.folders import MASK_FOLDERS, PHOTO_FOLDERS, PassedOver, image_names, is_of_system
from ..photos.paths import Scenes, beside, is_hugging_face, only_split, shards_of
from ..photos.tables import HuggingFacePhotos

MASK_WORDS = ("mask", "seg", "label", "labels", "annotation", "segmentation", "segmentation_map")  # as in KEY.mask.png
# Of several masks of a photo, the one whose ending comes first. Cityscapes and CamVid name them so.
ENDINGS = ("_labeltrainids", "_gtfine_labeltrainids", "_mask", "_seg", "_label", "_gt", "_p", "_l", "_leftimg8bit")
LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif")


class Place(Protocol):
    """Where the bytes of a picture lie. Called, it gives them; it goes to other processes."""

    def __call__(self) -> bytes: ...


@dataclass(frozen=True)
class OnDisk:
    path: Path

    def __call__(self) -> bytes:
        return read_regular(self.path)


@dataclass(frozen=True)
class InShard:
    path: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise ValueError("its shard was cut short since it was indexed")
        return data


@dataclass(frozen=True)
class InRow:
    rows: Any  # a datasets.Dataset whose images are not decoded
    index: int
    column: str

    def __call__(self) -> bytes:
        image = self.rows[self.index][self.column]
        if image is None:
            raise ValueError(f"its column {self.column!r} is empty")
        return image["bytes"] if image["bytes"] is not None else read_regular(Path(image["path"]))


class Pair(NamedTuple):
    """A photo and its mask.

    Attributes:
        key: As a photo's: "folder/file.jpg", "shard.tar:key" or "dataset:row".
        photo, mask: Where their bytes lie.
    """

    key: str
    photo: Place
    mask: Place


class Pairs(NamedTuple):
    """All pairs of several sources, in their order; what pairs with nothing; and what the sources call their classes."""

    pairs: list[Pair]
    passed_over: PassedOver
    class_names: tuple[str, ...] | None


class _Picture(NamedTuple):
    part: int  # of which source
    key: str  # for people
    name: str  # without what tells a photo from its mask
    suffix: str
    rank: int | None  # of a mask that is named so, among several; None of what may be a photo
    place: Place


def pairs_of(parts: Sequence[Path | Scenes]) -> Pairs:
    """Pairs photos and masks of some sources, as `sfvlm.photos.paths.expand` gives them.

    Raises:
        ValueError: A source is none, or cannot be opened.
    """
    passed, pictures, pairs = PassedOver(), list[_Picture](), list[Pair]()
    named: set[tuple[str, ...]] = set()
    for number, path in enumerate(parts):
        if isinstance(path, Scenes):
            raise ValueError(f"scenes:{path.count}:{path.seed} has no masks: give photos that have.")
        if path.is_dir() and is_hugging_face(path):
            pairs += _in_table(only_split(path), passed)
        elif shards := shards_of(path):
            for shard in shards:
                pictures += _in_shard(shard, number)
            named |= {read_classes(file).names for file in beside(shards, "classnames.txt")}
        elif path.is_dir():
            pictures += _in_folder(path, number, passed)
            named |= {
                read_classes(file).names for file in (path / "classnames.txt", path / "classes.txt") if file.is_file()
            }
        else:
            raise ValueError(
                f"{path} is no source of photos and masks: give a folder, a .tar shard, or a dataset on disk."
            )
    pairs += _paired(pictures, passed)
    return Pairs(pairs, passed, named.pop() if len(named) == 1 else None)


def _in_shard(path: Path, part: int) -> Iterator[_Picture]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                if not member.isreg() or base.startswith(".") or is_of_system(folder.split("/")):
                    continue
                stem, _, rest = base.partition(".")
                word, _, last = rest.lower().rpartition(".")
                if f".{last}" not in IMAGE_SUFFIXES:
                    continue
                is_mask = word in MASK_WORDS
                name = f"{folder}/{stem}" if word in ("", *MASK_WORDS) else f"{folder}/{stem}.{word}"
                rank = MASK_WORDS.index(word) if is_mask else None
                place = InShard(path, member.offset_data, member.size)
                # Shards may number their samples alike: the shard belongs to the name until nothing there fits.
                yield _Picture(part, f"{path.name}:{name.lstrip('/')}", name.lstrip("/"), f".{last}", rank, place)
    except tarfile.ReadError as error:
        raise ValueError(
            f"{path} is not a whole, plain tar archive ({error}): get it again, or decompress it."
        ) from error


def _in_folder(root: Path, part: int, passed: PassedOver) -> Iterator[_Picture]:
    names, others = image_names(root)
    passed.update(others)
    pictures = [_on_disk(root, name, part, is_mask=False) for name in names]
    yield from pictures
    if all(picture.rank is None for picture in pictures) and (masks := _mask_folder_beside(root)) is not None:
        for name in image_names(masks)[0]:
            yield _on_disk(masks, name, part, is_mask=True)


def _on_disk(root: Path, name: str, part: int, *, is_mask: bool) -> _Picture:
    *folders, base = name.split("/")
    stem, dot, suffix = base.rpartition(".")
    stem, suffix = (stem, f".{suffix.lower()}") if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else (base, "")
    kept = []
    for folder in folders:
        lower = folder.lower()
        if lower in MASK_FOLDERS:
            is_mask = True
        elif lower.endswith("annot") and lower != "annot":
            is_mask = True
            kept.append(folder[: -len("annot")].rstrip("_-"))
        elif lower not in PHOTO_FOLDERS:
            kept.append(folder)
    plain, rank = _without_ending(stem)
    return _Picture(
        part, f"{root.name}/{name}", "/".join([*kept, plain]), suffix, rank if is_mask else None, OnDisk(root / name)
    )


def _without_ending(stem: str) -> tuple[str, int]:
    """A name without the ending that tells photo and mask apart, and the ending's rank; a mask without one ranks between them."""
    for rank, ending in enumerate(ENDINGS):
        if stem.lower().endswith(ending) and len(stem) > len(ending):
            return stem[: -len(ending)].removesuffix("_gtFine"), rank
    return stem, 2


def _mask_folder_beside(root: Path) -> Path | None:
    """Of `.../images/training` the folder `.../masks/training`, or of `train` the folder `trainannot`; None where there is none."""
    for number in range(len(root.parts) - 1, 0, -1):
        if root.parts[number].lower() not in PHOTO_FOLDERS:
            continue
        above = Path(*root.parts[:number])
        for folder in sorted(above.iterdir()):
            found = folder.joinpath(*root.parts[number + 1 :])
            if folder.name.lower() in MASK_FOLDERS and found.is_dir():
                return found
    annot = root.with_name(f"{root.name}annot")
    return annot if annot.is_dir() else None


def _in_table(path: Path, passed: PassedOver) -> Iterator[Pair]:
    photos = HuggingFacePhotos(path)
    import datasets

    rows: Any = datasets.load_from_disk(str(path))
    images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    masks = [name for name in images if name != photos.column]
    named = [name for name in masks if name.lower() in (*MASK_WORDS, *MASK_FOLDERS)]
    if len(masks) != 1 and len(named) != 1:
        found = f"the columns of images {', '.join(images)}"
        raise ValueError(
            f"{path} has {found}, and one of photos and one of masks are wanted: call them image and mask."
        )
    column = named[0] if len(named) == 1 else masks[0]
    raw = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format(None)
    for index in range(len(raw)):
        yield Pair(photos.key(index), InRow(photos.rows, index, photos.column), InRow(raw, index, column))


def _paired(pictures: Iterable[_Picture], passed: PassedOver) -> list[Pair]:
    """Pairs by name: first within a shard or folder, then what is left across sources."""
    together: dict[tuple[int, str, str], list[_Picture]] = defaultdict(list)
    lossless: dict[int, bool] = defaultdict(lambda: True)  # whether a source holds nothing that a photo alone could be
    for picture in pictures:
        shard = picture.key.rpartition(":")[0] if isinstance(picture.place, InShard) else ""
        together[picture.part, shard, picture.name].append(picture)
        lossless[picture.part] &= picture.suffix in LOSSLESS
    pairs, alone = list[Pair](), dict[str, list[_Picture]]()
    bare, lost = list[_Picture](), list[_Picture]()
    for group in together.values():
        photos, masks = _told_apart(group)
        if len(photos) == 1 and masks:
            pairs.append(Pair(photos[0].key, photos[0].place, masks[0].place))
        elif len(photos) > 1:
            passed.add("pictures of one name, none of which is known to be the mask", photos[0].key, len(photos))
        elif photos:
            bare += photos
        else:
            lost += masks
    for picture in lost + [each for each in bare if lossless[each.part]]:
        alone.setdefault(picture.name, []).append(picture)
    taken, of_masks = set[str](), set[int]()
    for photo in bare:
        others = [each for each in alone.get(photo.name, []) if each.part != photo.part]
        if len(others) == 1 and photo.key not in taken and not (lossless[photo.part] and others[0].rank is None):
            pairs.append(Pair(photo.key, photo.place, others[0].place))
            taken |= {photo.key, others[0].key}
            of_masks.add(others[0].part)
    for picture in bare + lost:
        if picture.key not in taken:
            is_mask = picture.rank is not None or (picture.part in of_masks and lossless[picture.part])
            passed.add("masks without a photo" if is_mask else "photos without a mask", picture.key)
    return pairs


def _told_apart(group: Sequence[_Picture]) -> tuple[list[_Picture], list[_Picture]]:
    """Pictures of one name: those that may be its photo, and its masks, the best named first."""
    masks = sorted((each for each in group if each.rank is not None), key=lambda each: each.rank or 0)
    photos = [each for each in group if each.rank is None]
    exact = [each for each in photos if each.suffix == ".png"]
    if not masks and len(photos) == 2 and len(exact) == 1:
        photos = [each for each in photos if each is not exact[0]]
        masks = exact
    return photos, masks
