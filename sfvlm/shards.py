"""WebDataset shards: tar files in which the members of one sample share a key.

The index is read once, from the headers alone; a sample is then read by offset and size.
"""

import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .decode import IMAGE_SUFFIXES

# A photo before decoding: image, label, captions and meta. Rendered photos come decoded.
Record = tuple[bytes | Image.Image, int | None, tuple[str, ...], dict[str, Any]]

# What a member of a sample is, by its suffix: the columns of `TarPhotos.members`.
IMAGE, LABEL, TEXT, JSON = range(4)
MEMBER_KINDS = {
    **{suffix.removeprefix("."): IMAGE for suffix in IMAGE_SUFFIXES},
    "cls": LABEL,
    "txt": TEXT,
    "json": JSON,
}
ABSENT = (-1, -1)  # the offset and size of a member that a sample lacks


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

    A shard that breaks off has one last entry more, for what is lost there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys, self.members, self.broken = _index_shard(path)

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return f"{self.path.name}:{self.keys[index]}"

    def read(self, index: int) -> Record:
        with self.path.open("rb") as file:
            image, label, text, meta = (_read_member(file, *member) for member in self.members[index].tolist())
        if image is None:  # only the entry for what is lost has none
            raise ValueError(self.broken)
        meta = {} if meta is None else json.loads(meta)
        if not isinstance(meta, dict):
            raise ValueError("its .json is not an object")
        if text is None:
            captions = captions_of(meta)
        else:
            lines = text.decode("utf-8-sig").splitlines()
            captions = tuple(line.replace("\\n", "\n") for line in lines if line.strip())
        return image, None if label is None else int(label), captions, meta


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


def _index_shard(path: Path) -> tuple[PackedStrings, np.ndarray, str | None]:
    """Keys, members (samples, 4 kinds, offset and size), and why the shard breaks off, if it does.

    The members of a sample may lie apart: tar writes files in the order in which the disk lists them.
    """
    keys: list[str] = []
    latest: dict[str, int] = {}  # key -> the last of its samples
    rows: list[list[tuple[int, int]]] = []
    broken = None
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115, it opens nothing to close
        except tarfile.ReadError as error:
            message = f"{path} is not a plain tar archive ({error}); decompress it if it is compressed."
            raise ValueError(message) from error
        while (member := _next_member(tar)) is not None:
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # it would remember them all
            if not member.isreg() or member.issparse():
                continue
            key, suffix = _split_name(member.name)
            if not 0 <= member.size <= end - member.offset_data:  # this sample is the one that is lost
                if keys[-1:] != [key]:
                    keys.append(key)
                    rows.append([ABSENT] * 4)
                rows[-1] = [ABSENT] * 4
                broken = f"{path} breaks off inside {member.name}"
                break
            if suffix not in MEMBER_KINDS:
                continue
            kind, last = MEMBER_KINDS[suffix], len(rows) - 1
            sample = latest.get(key)
            # A key may come again, as in joined tars: of what the earlier sample has, this is another's.
            if sample is None or (sample != last and rows[sample][kind] != ABSENT):
                sample = latest[key] = len(rows)
                keys.append(key)
                rows.append([ABSENT] * 4)
            rows[sample][kind] = member.offset_data, member.size
        else:
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)):  # at a proper end come zeros, or nothing
                keys.append(f"byte {tar.offset}")
                rows.append([ABSENT] * 4)
                broken = f"{path} breaks off at byte {tar.offset}"
    members = np.array(rows, dtype=np.int64).reshape(-1, 4, 2)
    kept = members[:, IMAGE, 1] >= 0
    if broken is not None:
        kept[-1] = True
    return PackedStrings(key for key, keep in zip(keys, kept, strict=True) if keep), members[kept], broken


def _next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member, or None at the end and, as `tarfile` itself does for most, at a broken header."""
    try:
        return tar.next()
    except tarfile.ReadError:
        return None


def _split_name(name: str) -> tuple[str, str]:
    """Sample key and suffix, which part at the first dot of the base name. Hidden files have no suffix."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower() if stem else ""
