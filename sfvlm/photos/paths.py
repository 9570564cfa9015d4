"""What a source of photos, as a person writes it, means on a disk: files, folders, shards.

source -> paths that exist, or rendered scenes -> the shards in them
"""

import glob
import os
import re
from pathlib import Path
from typing import NamedTuple

from ..util.files import read_json, read_text


class Scenes(NamedTuple):
    """`scenes:COUNT:SEED`."""

    count: int
    seed: int


def expand(source: str | Path) -> list[Path | Scenes]:
    """One source as written, to paths that exist; ValueError where nothing does."""
    text = os.path.expanduser(source)
    if os.path.exists(text):  # first, because file names may hold any of the signs below
        return [Path(os.path.abspath(text))]
    expanded: list[Path | Scenes] = []
    for part in map(os.path.expanduser, text.split("::")):
        if part.startswith("scenes:"):
            numbers = re.fullmatch(r"scenes:(\d+)(?::(\d+))?", part)
            if numbers is None:
                raise ValueError(f"{part!r} is not scenes:COUNT or scenes:COUNT:SEED.")
            expanded.append(Scenes(int(numbers[1]), int(numbers[2] or 0)))
            continue
        for pattern in _expand_braces(part):
            found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
            if not found:
                raise ValueError(f"No file or folder matches {pattern!r}, of the source {text!r}.")
            expanded += [Path(os.path.abspath(path)) for path in found]
    return expanded


def _expand_braces(pattern: str) -> list[str]:
    """`{000..012}` to its numbers and `{a,b}` to its words."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if braces is None:
        return [pattern]
    if braces[3] is not None:
        words = braces[3].split(",")
    else:
        width = len(braces[1]) if braces[1].startswith("0") else 0
        first, last = int(braces[1]), int(braces[2])
        if first > last:
            raise ValueError(f"{pattern!r} counts down from {first} to {last}: turn them round.")
        words = [f"{number:0{width}d}" for number in range(first, last + 1)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [expanded for word in words for expanded in _expand_braces(before + word + after)]


def is_hugging_face(folder: Path) -> bool:
    """Whether it was written by `save_to_disk` of a Hugging Face dataset, or of several splits."""
    if (folder / "dataset_dict.json").exists():
        return True
    return (folder / "dataset_info.json").exists() and (folder / "state.json").exists()


def only_split(folder: Path) -> Path:
    """The folder of the dataset itself, where it lies in one of splits; ValueError if there are several."""
    if not (folder / "dataset_dict.json").exists():
        return folder
    splits = read_json(folder / "dataset_dict.json").get("splits", [])
    if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
        raise ValueError(f"{folder / 'dataset_dict.json'} names no splits; write the dataset again.")
    if len(splits) != 1:
        raise ValueError(f"{folder} holds the splits {splits}; name one, such as {folder / splits[0]}.")
    return folder / splits[0]


def shards_of(path: Path) -> list[Path]:
    """The tar shards that a path means: itself, those in it, or those in its `test` split."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".tar" else []
    if (path / "nshards.txt").is_file():  # not a pipe, which would wait for somebody to write
        count = _number_in(path / "nshards.txt")
        shards = [path / f"{number}.tar" for number in range(count)]
        missing = [shard.name for shard in shards if not shard.exists()]
        if missing:
            raise ValueError(f"{path}/nshards.txt says {count} shards; {', '.join(missing)} missing.")
        return shards
    shards = sorted(
        shard for shard in path.glob("*.[tT][aA][rR]") if shard.is_file() and not shard.name.startswith(".")
    )
    return shards or (shards_of(path / "test") if (path / "test").is_dir() else [])


def _number_in(path: Path) -> int:
    text = read_text(path).strip()
    if not text.isdecimal():
        raise ValueError(f"{path} says {text!r}; it must be the number of shards.")
    return int(text)


def beside(shards: list[Path], name: str) -> list[Path]:
    """The file of that name beside the shards or one folder up, if there is one."""
    folder = shards[0].parent
    return [path for path in (folder / name, folder.parent / name) if path.is_file()][:1]
