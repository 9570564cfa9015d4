"""The results files, and which of them have been asked for."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STEP = re.compile(r"([^.\[\]]+)|\[([^=\]]+)=([^\]]*)\]")


class Results:
    """The JSON files below a folder.

    Attributes:
        asked: Those that a figure, a table or a plot was made of, by name, as `swap/retained.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: dict[str, None] = {}
        self._contents: dict[str, Any] = {}

    def __call__(self, name: str, path: str = "") -> Any:
        """What a file holds, at a path as of `at`.

        Raises:
            ValueError: There is no such file, or nothing at the path.
        """
        self.asked[name] = None
        if name not in self._contents:
            file = self.folder / name
            if not file.is_file():
                raise ValueError(f"results/{name} is missing")
            self._contents[name] = json.loads(file.read_text(encoding="utf-8"))
        try:
            return at(self._contents[name], path)
        except LookupError as error:
            raise ValueError(f"results/{name} has nothing at {path}: {error}") from error

    def has(self, name: str) -> bool:
        """Whether there is such a file: some columns wait for theirs."""
        return (self.folder / name).is_file()

    def names(self) -> list[str]:
        """All files that are there."""
        return sorted(file.relative_to(self.folder).as_posix() for file in committed(self.folder))


def committed(folder: Path) -> list[Path]:
    """The files below results/ that belong to it: not the answers and scores that commands leave beside them."""
    files = folder.glob("*/*.json")
    return sorted(file for file in files if not file.name.endswith(".scores.json"))


def at(content: Any, path: str) -> Any:
    """What lies at a path of keys, with the first of a list that has a value in brackets: `results[model=teacher].metrics.acc1`.

    Raises:
        LookupError: There is nothing.
    """
    for key, name, value in STEP.findall(path):
        if key and isinstance(content, Mapping):
            content = content[key]
        elif name and isinstance(content, Sequence):
            found = [each for each in content if str(each.get(name)) == value]
            if not found:
                raise LookupError(f"no {name} is {value}")
            content = found[0]
        else:
            raise LookupError(f"{key or name} cannot be looked up there")
    return content
