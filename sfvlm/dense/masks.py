"""Photos with masks: of each pixel, the number of its class.

    a source as people have it -> photos and masks, paired by name -> MaskedPhotos: photo, mask (H, W), key by number
                                                                    -> checked: those that fit, the classes, what is left out

A source is what `sfvlm.photos.sources.open_photos` takes: tar shards, folders, a Hugging Face dataset on disk, or several of them
joined by `::`. `pairing` says which picture is a mask, and of which photo.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..photos.decode import decode_image
from ..photos.folders import PassedOver
from ..photos.paths import expand
from ..util.errors import check_of_file
from .metrics import IGNORED
from .pairing import Pair, pairs_of

MAX_PIXELS = 100_000_000
MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")  # of one channel of whole numbers
FORMATS = ("PNG", "TIFF", "BMP", "GIF", "JPEG")
Mask = NDArray[np.int32]
_ORIENTATION = 0x0112


class MaskedPhoto(NamedTuple):
    """One photo with its mask.

    Attributes:
        image: Upright, RGB.
        mask: (H, W) of the photo's size: the class of each pixel, or `IGNORED`.
        key: As a photo's.
    """

    image: Image.Image
    mask: Mask
    key: str


class Misfit(ValueError):
    """A photo and mask that cannot be used.

    Attributes:
        kind: What they are counted by, in the plural.
        key: Of the photo.
        why: What is so of this one.
    """

    def __init__(self, kind: str, key: str, why: str) -> None:
        super().__init__(kind, key, why)  # all, so that it survives pickling
        self.kind, self.key, self.why = kind, key, why

    @property
    def example(self) -> str:
        return f"{self.key}: {self.why}"

    def __str__(self) -> str:
        return f"Of {self.kind}, {self.example}."


@dataclass(frozen=True)
class MaskedPhotos:
    """Photos with masks, by number.

    Attributes:
        pairs: Where each photo and its mask lie.
        origins: The sources as they were given.
        reduce_labels: Whether 0 stands for no class, and 1 for the first, as in ADE20K.
        num_classes: How many there may be; None as long as nobody knows.
        class_names: What the source itself calls them.
        passed_over: What is no pair that can be used.
    """

    pairs: Sequence[Pair]
    origins: tuple[str, ...] = ()
    reduce_labels: bool = False
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    passed_over: PassedOver = field(default_factory=PassedOver)

    def __len__(self) -> int:
        return len(self.pairs)

    def key(self, index: int) -> str:
        return self.pairs[index].key

    def __getitem__(self, index: int) -> MaskedPhoto:
        """One photo with its mask.

        Raises:
            Misfit: It cannot be used.
        """
        pair = self.pairs[index]
        try:
            image = decode_image(pair.photo(), MAX_PIXELS)
        except (OSError, ValueError) as error:
            check_of_file(error, pair.key)
            raise Misfit("photos that cannot be read", pair.key, str(error)) from error
        mask = self.mask(index)
        _check_size(image.size, mask, pair.key)
        return MaskedPhoto(image, mask, pair.key)

    def mask(self, index: int) -> Mask:
        """The mask alone, (H, W).

        Raises:
            Misfit: It cannot be read, or has an index beyond the classes.
        """
        pair = self.pairs[index]
        try:
            mask = read_mask(pair.mask(), reduce_labels=self.reduce_labels)
        except (OSError, ValueError) as error:
            check_of_file(error, pair.key)
            raise Misfit("masks that cannot be read", pair.key, str(error)) from error
        beyond = mask[mask != IGNORED]
        if self.num_classes is not None and beyond.size and beyond.max() >= self.num_classes:
            kind = f"masks with an index beyond the {self.num_classes} classes"
            raise Misfit(kind, pair.key, f"index {beyond.max()}")
        return mask


def open_masked(source: str | Path, *, reduce_labels: bool = False, num_classes: int | None = None) -> MaskedPhotos:
    """Pairs the photos of a source with their masks; nothing is decoded yet.

    Raises:
        ValueError: The source is none, or no photo of it has a mask.
    """
    parts = expand(source)
    found = pairs_of(parts)
    if not found.pairs:
        told = found.passed_over.sentence("photos with masks")
        raise ValueError(
            f"No photo of {source} has a mask: give shards of KEY.jpg and KEY.png, a folder with images/ and masks/, or a dataset "
            f"on disk with a column of masks. {told}".rstrip()
        )
    return MaskedPhotos(found.pairs, (str(source),), reduce_labels, num_classes, found.class_names, found.passed_over)


class Checked(NamedTuple):
    """Photos whose masks were all read once.

    Attributes:
        photos: Those that can be used.
        num_classes: As it was said, or one more than the greatest index.
        photos_of_class: (num_classes,) how many masks show each.
    """

    photos: MaskedPhotos
    num_classes: int
    photos_of_class: tuple[int, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should be told, a sentence each."""
        return tuple(filter(None, (self.photos.passed_over.sentence("photos with masks"),)))


def checked(photos: MaskedPhotos, *, show: bool = True) -> Checked:
    """Reads every mask and the head of every photo, counts the classes where nobody said how many, and leaves out what misfits.

    Raises:
        ValueError: Nothing is left, or the masks show no two classes.
    """
    passed = PassedOver()
    passed.update(photos.passed_over)
    pairs, shown = [], []
    for pair, result in zip(photos.pairs, _looked_at(photos, show), strict=True):
        if isinstance(result, Misfit):
            passed.add(result.kind, result.example)
        else:
            pairs.append(pair)
            shown.append(result)
    where = ", ".join(photos.origins)
    if not pairs:
        raise ValueError(f"No photo of {where} can be used. {passed.sentence('photos with masks')}")
    indices = set().union(*shown) - {IGNORED}
    count = photos.num_classes or max(indices, default=-1) + 1
    if photos.num_classes is None and len(indices) < 2:
        if {*set().union(*shown)} == {0, IGNORED}:
            raise ValueError(
                f"The masks of {where} hold 0 and {IGNORED} alone, and {IGNORED} is ignored: save what is a class as 1, 2, ..."
            )
        raise ValueError(f"The masks of {where} hold {len(indices)} classes, and 2 are the least.")
    kept = MaskedPhotos(pairs, photos.origins, photos.reduce_labels, count, photos.class_names, passed)
    return Checked(kept, count, tuple(sum(number in each for each in shown) for number in range(count)))


def _looked_at(photos: MaskedPhotos, show: bool) -> Iterator[set[int] | Misfit]:
    """Of each photo the indices in its mask, or why it cannot be used; in order."""

    def look(index: int) -> set[int] | Misfit:
        try:
            mask = photos.mask(index)
            key = photos.key(index)
            try:
                size = upright_size(photos.pairs[index].photo())
            except (OSError, ValueError) as error:
                check_of_file(error, key)
                raise Misfit("photos that cannot be read", key, str(error)) from error
            _check_size(size, mask, key)
        except Misfit as misfit:
            return misfit
        return {*np.unique(mask).tolist()}

    with ThreadPoolExecutor() as pool:  # decoding leaves Python's lock alone
        looked = pool.map(look, range(len(photos)))
        yield from tqdm(looked, desc="masks", total=len(photos), disable=not show or len(photos) < 200)


def read_mask(data: bytes, *, reduce_labels: bool = False) -> Mask:
    """The indices in a picture of one channel, (H, W); a palette's colours are only for the eye.

    Args:
        data: The file's content.
        reduce_labels: 0 becomes `IGNORED`, and the others one less.

    Raises:
        ValueError: It is no such picture.
    """
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
        kind, mode = image.format, image.mode
        if kind == "JPEG":
            raise ValueError("it is a JPEG, which changes the numbers of classes: save masks as PNG")
        if mode not in MODES:
            raise ValueError(
                f"its pixels are colours, {mode}, and must be numbers of classes: save it with one channel"
            )
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} is more than {MAX_PIXELS} pixels")
        mask = np.asarray(image).astype(np.int32)
    except Image.UnidentifiedImageError:
        raise ValueError("it is no PNG or other known picture") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    if reduce_labels:
        mask = np.where((mask == 0) | (mask == IGNORED), IGNORED, mask - 1).astype(np.int32)
    return mask


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of a photo as `decode_image` turns it, from its head alone where that says it.

    Raises:
        ValueError: It is no photo.
    """
    try:
        image = Image.open(BytesIO(data))
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # formats that Pillow does not open by itself, and broken ones
        return decode_image(data, MAX_PIXELS).size
    return (image.height, image.width) if turned else image.size


def _check_size(size: tuple[int, int], mask: Mask, key: str) -> None:
    if size != mask.shape[::-1]:
        height, width = mask.shape
        why = f"{width} x {height}, and the photo {size[0]} x {size[1]}"
        raise Misfit("masks of another size than their photo", key, why)
