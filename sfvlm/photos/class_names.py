"""Files of class names: a line or an entry a class, in the order of the labels, or with the labels or WordNet ids beside them."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..util.files import read_class_names, read_text

WORDNET_ID = re.compile(r"n\d{8}")
NUMBER = re.compile("[0-9]+")


@dataclass(frozen=True)
class NamedClasses:
    """Names in the order of the labels, and what else the classes are called where the file says it: numbers or WordNet ids."""

    names: tuple[str, ...]
    ids: tuple[str, ...] | None = None


def read_classes(path: Path) -> NamedClasses:
    """The classes of a text file, a line each, or of a JSON file.

    Lines may have a number or a WordNet id before the name, or a number behind it. A JSON file holds a list of names or of
    {"id", "name"}, or an object from numbers or WordNet ids to names, from names to numbers, or from numbers to [id, name].

    Raises:
        ValueError: It holds none, or one between them is blank, or it is no UTF-8, or the numbers leave some out.
    """
    if path.suffix.lower() == ".json":
        return _of_json(path)
    lines = read_class_names(path)
    if lines[0][:1] in ("{", "["):
        return _of_json(path)
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            raise ValueError(f"Line {number} of {path} begins with #: each line is a class, so remove comments.")
    for pattern in (r"(?P<id>[0-9]+|n\d{8})\s*[\s,:;]\s*(?P<name>.+)", r"(?P<name>.+?)\s*[\s,:;]\s*(?P<id>[0-9]+)"):
        parted = [re.fullmatch(pattern, line) for line in lines]
        pairs = [(each["id"], each["name"]) for each in parted if each]
        # Names may begin or end with a number themselves: such as none that counts all of them.
        if len({name for _, name in pairs}) == len(lines) and (_are_ids(pairs) or _counts_all(pairs)):
            return _ordered(path, pairs)
    return NamedClasses(lines)


def _of_json(path: Path) -> NamedClasses:
    try:
        content: Any = json.loads(read_text(path), object_pairs_hook=_once)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON of classes: {error}.") from error
    if isinstance(content, dict) and isinstance(content.get("id2label"), dict):  # a transformers configuration
        content = content["id2label"]
    if isinstance(content, list) and content:
        if all(isinstance(each, str) and each.strip() for each in content):
            return NamedClasses(tuple(content))
        if all(isinstance(each, dict) and {"id", "name"} <= each.keys() for each in content):
            return _ordered(path, [(str(each["id"]), str(each["name"])) for each in content])
    if isinstance(content, dict) and content:
        values = content.values()
        if all(isinstance(value, str) for value in values):
            return _ordered(path, list(content.items()))
        if all(isinstance(value, int) for value in values):
            return _ordered(path, [(str(number), name) for name, number in content.items()])
        if all(
            isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)
            for value in values
        ):
            named = _ordered(path, [(number, name) for number, (_, name) in content.items()])
            assert named.ids is not None
            return NamedClasses(named.names, tuple(content[number][0] for number in named.ids))
    raise ValueError(
        f"{path} holds neither a list of class names nor an object between names and numbers or WordNet ids."
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there several times")
    return content


def _ordered(path: Path, pairs: Sequence[tuple[str, str]]) -> NamedClasses:
    """Names by their numbers, or by WordNet ids in the order of the file."""
    if not _are_ids(pairs):
        if not _counts_all(pairs):
            found = ", ".join(sorted((number for number, _ in pairs), key=lambda text: (len(text), text))[:4])
            raise ValueError(
                f"{path} gives its {len(pairs)} classes the numbers {found}, ...: they must count all of them, from 0 or from 1."
            )
        pairs = sorted(pairs, key=lambda pair: int(pair[0]))
    ids, names = zip(*pairs, strict=True)
    return NamedClasses(names, ids)


def _are_ids(pairs: Iterable[tuple[str, str]]) -> bool:
    return all(WORDNET_ID.fullmatch(each) for each, _ in pairs)


def _counts_all(pairs: Sequence[tuple[str, str]]) -> bool:
    if not all(NUMBER.fullmatch(each) for each, _ in pairs):
        return False
    numbers = sorted(int(each) for each, _ in pairs)
    return numbers in (list(range(len(pairs))), list(range(1, len(pairs) + 1)))
