"""WebDataset shards: tar files in which the members of one sample share a key.

The index is read once, from the headers alone; a sample is then read by offset and size.

    members of the tar -> what each is, by its name and the others' -> samples: key, and where its members lie

Not webdataset: it has no sample by number, and ends a shard that was cut short at a header without a word; wids numbers samples, and
drops those of their members that lie apart.
"""

import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from ..util.files import decoded, plain_lines
from .decode import IMAGE_SUFFIXES, is_marked
from .folders import PassedOver, is_of_system, kind_of


class Record(NamedTuple):
    """A photo before decoding, and what its source says of it. Rendered photos come decoded."""

    image: bytes | Image.Image
    label: int | None = None
    captions: tuple[str, ...] = ()
    meta: dict[str, Any] = {}  # noqa: RUF012, nobody writes into it
    unread: Mapping[str, str] = {}


# What a member of a sample is, by its suffix: the columns of `TarPhotos.members`.
IMAGE, LABEL, TEXT, JSON = range(4)
MEMBER_KINDS = {
    **{suffix.removeprefix("."): IMAGE for suffix in IMAGE_SUFFIXES},
    "": IMAGE,  # where its first bytes say so
    "cls": LABEL,
    "txt": TEXT,
    "json": JSON,
}
RANKS = {
    suffix: rank for rank, suffix in enumerate(MEMBER_KINDS)
}  # of two pictures of a sample, the lower one is the photo
ABSENT = (-1, -1)  # the offset and size of a member that a sample lacks
# A field of a sample, as in KEY.seg.png; what is otherwise between dots, as in cat.0.jpg, belongs to a name.
FIELD = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")


class PackedStrings:
    """Strings end to end in one buffer: a million names are two objects, which workers share."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self._buffer = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._buffer[self._ends[index] : self._ends[index + 1]])


class TarPhotos:
    """The photos of one shard. No handle stays open, so none is pickled and shards may be many.

    A shard that breaks off has one last entry more, for what is lost there; so has each sample with several pictures none of
    which is known to be the photo.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.passed_over = PassedOver()
        listed, broken = _list_members(path, self.passed_over)
        self.keys, self.members, self.faults = _samples(listed, broken, self.passed_over)

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return f"{self.path.name}:{self.keys[index]}"

    def read(self, index: int) -> Record:
        if index in self.faults:
            raise ValueError(self.faults[index])
        with self.path.open("rb") as file:
            image, label, text, meta = (_read_member(file, *member) for member in self.members[index].tolist())
        assert image is not None  # samples without one have a fault
        unread: dict[str, str] = {}
        return Record(image, _label(label, unread), *_captions_and_meta(text, meta, unread), unread)

    def unread(self, index: int) -> Mapping[str, str]:
        """`Record.unread` alone."""
        with self.path.open("rb") as file:
            label, text, meta = (_read_member(file, *member) for member in self.members[index, LABEL:].tolist())
        unread: dict[str, str] = {}
        _label(label, unread)
        _captions_and_meta(text, meta, unread)
        return unread


# Photos are wanted for themselves too: what is said of one may be damaged, and costs only those who ask for it.


def _label(data: bytes | None, unread: dict[str, str]) -> int | None:
    if data is None:
        return None
    try:
        text = decoded(data, Path("label.cls")).strip()
    except ValueError:
        text = data.decode(errors="replace").strip()
    try:
        return int(text)
    except ValueError:
        unread["label"] = f"its .cls says {text[:40]!r}, which is no whole number"
        return None


def _captions_and_meta(
    text: bytes | None, data: bytes | None, unread: dict[str, str]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    meta: Any = {}
    try:
        meta = {} if data is None else json.loads(data)
        if not isinstance(meta, dict):
            unread["meta"] = "its .json is not an object"
    except (ValueError, RecursionError) as error:
        unread["meta"] = f"its .json is no JSON: {error}"
    if "meta" in unread:
        meta = {}
    if text is None:
        if "meta" in unread:
            unread["captions"] = unread["meta"]
        return captions_of(meta), meta
    try:
        lines = plain_lines(decoded(text, Path("caption.txt"))).split("\n")
    except ValueError as error:
        unread["captions"] = f"its .txt is no UTF-8 text: {error.__cause__ or error}"
        return (), meta
    return tuple(line.replace("\\n", "\n") for line in lines if line.strip()), meta


def captions_of(meta: dict[str, Any]) -> tuple[str, ...]:
    """What stands under `captions` or else `caption`, one string or several; empty ones are left out."""
    value = meta.get("captions") or meta.get("caption")
    listed = value if isinstance(value, list | tuple) else [value]
    return tuple(caption for caption in listed if isinstance(caption, str) and caption.strip())


def _read_member(file: BinaryIO, offset: int, size: int) -> bytes | None:
    if (offset, size) == ABSENT:
        return None
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise ValueError("its shard was cut short since it was indexed")
    return data


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


def _list_members(path: Path, passed: PassedOver) -> tuple[list[_Member], str | None]:
    """What may belong to samples, in the tar's order, and why the shard breaks off, if it does: then the last one is lost."""
    listed: list[_Member] = []
    places: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115, it opens nothing to close
        except tarfile.ReadError as error:
            message = f"{path} is not a plain tar archive ({error}); decompress it if it is compressed."
            raise ValueError(message) from error
        while (member := _next_member(tar)) is not None:
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # it would remember them all
            if member.isdir():
                continue
            folder, _, base = member.name.rpartition("/")
            if base.startswith(".") or is_of_system(folder.split("/")):
                passed.add("hidden" if base.startswith(".") else "in folders of the system", member.name)
                continue
            place = member.offset_data, member.size
            if member.islnk() and member.linkname in places:  # a second name of the same file
                place = places[member.linkname]
            elif not member.isreg() or member.issparse():
                passed.add("links and what else is no regular file", member.name)
                continue
            elif not 0 <= member.size <= end - member.offset_data:  # this sample is the one that is lost
                listed.append(_Member(member.name, *ABSENT))
                return listed, f"{path} breaks off inside {member.name}"
            places[member.name] = place
            suffix = base.rpartition(".")[2].lower() if "." in base else ""
            if suffix not in MEMBER_KINDS or (not suffix and not _is_marked_at(file, *place)):
                passed.add(kind_of(base), member.name)
                continue
            listed.append(_Member(member.name, *place))
        file.seek(tar.offset)
        if any(file.read(tarfile.BLOCKSIZE)):  # at a proper end come zeros, or nothing
            listed.append(_Member(f"byte {tar.offset}", *ABSENT))
            return listed, f"{path} breaks off at byte {tar.offset}"
    return listed, None


def _is_marked_at(file: BinaryIO, offset: int, size: int) -> bool:
    file.seek(offset)
    return is_marked(file.read(min(size, 64)))


def _samples(
    listed: Sequence[_Member], broken: str | None, passed: PassedOver
) -> tuple[PackedStrings, np.ndarray, dict[int, str]]:
    """Keys, members (samples, 4 kinds, offset and size), and why a sample cannot be read, by its number.

    The members of a sample may lie apart: tar writes files in the order in which the disk lists them.
    """
    names = _Names([member.name for member in listed])
    keys: list[str] = []
    latest: dict[str, int] = {}  # key -> the last of its samples
    rows: list[list[tuple[int, int]]] = []
    pictures: list[str] = []  # of each sample, the suffix of its picture
    reasons: dict[int, str] = {}

    def begin(key: str) -> int:
        latest[key] = len(rows)
        keys.append(key)
        rows.append([ABSENT] * 4)
        pictures.append("")
        return latest[key]

    for name, *place in listed:
        key, suffix = names.split(name)
        last = len(rows) - 1
        if tuple(place) == ABSENT:  # the last one, which is lost
            lost = last if keys[-1:] == [key] else begin(key)
            rows[lost], reasons[lost] = [ABSENT] * 4, str(broken)
            continue
        if key in names.unclear:
            if key not in latest:
                reasons[begin(key)] = names.unclear[key]
            continue
        if suffix not in MEMBER_KINDS:
            passed.add(f".{suffix}", name)
            continue
        kind, sample = MEMBER_KINDS[suffix], latest.get(key)
        is_second = kind == IMAGE and sample is not None and pictures[sample] not in ("", suffix)
        # A key may come again, as in joined tars: of what the earlier sample has, this is another's.
        if sample is None or (sample != last and rows[sample][kind] != ABSENT and not is_second):
            sample = begin(key)
        elif is_second:
            kept = min(suffix, pictures[sample], key=RANKS.__getitem__)
            left = pictures[sample] if kept == suffix else suffix
            passed.add(f".{left} beside a .{kept} of the same sample", f"{key}.{left}")
            if kept != suffix:
                continue
        elif rows[sample][kind] != ABSENT:
            passed.add("replaced by a later file of the same name", name)
        rows[sample][kind] = place[0], place[1]
        if kind == IMAGE:
            pictures[sample] = suffix
    for key, whole in names.parts.items():  # what is said of cat holds for cat.0 too
        if key in latest and whole in latest and not pictures[latest[whole]]:
            rows[latest[key]] = [
                theirs if own == ABSENT and kind != IMAGE else own
                for kind, (own, theirs) in enumerate(zip(rows[latest[key]], rows[latest[whole]], strict=True))
            ]
    members = np.array(rows, dtype=np.int64).reshape(-1, 4, 2)
    kept = [row for row in range(len(rows)) if row in reasons or rows[row][IMAGE] != ABSENT]
    shared = {*names.parts.values()}
    for row in sorted({*range(len(rows))}.difference(kept)):
        if keys[row] not in shared:
            passed.add("samples without a photo", keys[row])
    faults = {number: reasons[row] for number, row in enumerate(kept) if row in reasons}
    return PackedStrings(keys[row] for row in kept), members[kept], faults


class _Names:
    """How the names of a shard part into keys and suffixes, which depends on what else there is.

    A key ends at the first dot of the base name, as in webdataset: KEY.jpg, KEY.cls. A picture with more between the dots
    belongs to the sample of that key if that has a photo (KEY.seg.png); otherwise it is a photo by itself, and its key ends at
    its last dot (cat.0.jpg). Samples without a photo whose pictures are called alike throughout (KEY.left.jpg, KEY.right.jpg)
    are unclear.
    """

    def __init__(self, names: Sequence[str]) -> None:
        plain: dict[str, set[str]] = defaultdict(set)  # key -> suffixes of its photos
        between: dict[str, list[tuple[str, str]]] = defaultdict(list)  # key -> the other pictures
        for name in names:
            key, suffix = _split_name(name)
            word, _, last = suffix.rpartition(".")
            if last and MEMBER_KINDS.get(last.lower()) == IMAGE:
                if word:
                    between[key].append((word, last.lower()))
                else:
                    plain[key].add(last.lower())
        times = Counter(word for pictures in between.values() for word in {word for word, _ in pictures})
        self.parts: dict[str, str] = {}  # key of a photo by itself -> the key that webdataset reads
        self.unclear: dict[str, str] = {}
        for key, pictures in between.items():
            fields = [(word, last) for word, last in pictures if FIELD.fullmatch(word)]
            if key not in plain and len(fields) > 1 and all(times[word] > 1 for word, _ in fields):
                listed = ", ".join(f"{word}.{last}" for word, last in fields)
                self.unclear[key] = (
                    f"it has several pictures ({listed}) and none that is called KEY.jpg: name the photo so"
                )
            has_fields = key in plain or key in self.unclear
            for word, last in pictures:
                belongs = (has_fields and (word, last) in fields) or (key in plain and last not in plain[key])
                if not belongs:
                    self.parts[f"{key}.{word}"] = key

    def split(self, name: str) -> tuple[str, str]:
        """Key and suffix."""
        key, suffix = _split_name(name)
        word, _, last = suffix.rpartition(".")
        return (f"{key}.{word}", last.lower()) if f"{key}.{word}" in self.parts else (key, suffix.lower())


def _next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member, or None at the end and, as `tarfile` itself does for most, at a broken header."""
    try:
        return tar.next()
    except tarfile.ReadError:
        return None


def _split_name(name: str) -> tuple[str, str]:
    """Key and suffix, which part at the first dot of the base name."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix
