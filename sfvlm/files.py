"""Files and folders that are whole or absent: written under a temporary name beside their own, then renamed; and what is read, by name
where it is damaged."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path for a file or folder, which takes the place of `path` at the end.

    If anything fails, what was written is removed and `path` stays as it was. Several processes may write one path at once.
    """
    # The name itself stays, in a folder of its own: writers of pictures go by its suffix.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        if temporary.is_dir():  # a folder cannot be renamed onto another
            shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it where it is missing.

    Raises:
        ValueError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"The folder {folder} cannot be made: {error.strerror}.") from error


def check_writable(folder: Path) -> None:
    """Raises ValueError if nothing can be written into a folder."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"The folder {folder} cannot be written.")


def check_absent(out: Path) -> None:
    """Raises ValueError if there is something where a folder shall be written."""
    if os.path.lexists(out):  # a link that leads nowhere too
        raise ValueError(f"The folder {out} exists: choose another one, or remove it.")


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """`replacing` for a folder that is absent, at the end too; those above it may be missing.

    Raises:
        ValueError: It is there, or cannot be written.
    """
    check_absent(out)
    make_folder(out.parent)
    check_writable(out.parent)
    with replacing(out) as temporary:
        yield temporary
        check_absent(out)


@contextmanager
def replacing_inside(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder, whose files take the places of their namesakes in `folder` at the end.

    If anything fails, what was written is removed and `folder` stays as it was. One process at a time may do so.
    """
    temporary = folder / ".unfinished"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file in one piece: readers see the old content or the new, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """`write_text` of JSON that people can read too."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return content


def read_class_names(path: Path) -> tuple[str, ...]:
    """The lines of a text file, of which the first stands for label 0.

    Raises:
        ValueError: It holds none, or one between them is blank, or it is no UTF-8.
    """
    lines = _lines(path)
    if "" in lines:
        raise ValueError(
            f"Line {lines.index('') + 1} of {path} is blank: a label is the number of a line, so fill or remove it."
        )
    return lines


def read_templates(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not blank.

    Raises:
        ValueError: It holds none, or is no UTF-8.
    """
    return tuple(filter(None, _lines(path)))


def _lines(path: Path) -> tuple[str, ...]:
    """What a text file says up to its last line that is not blank; editors on Windows begin it with a mark."""
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise ValueError(f"The file {path} is no UTF-8 text ({error}): save it as UTF-8.") from error
    if not text:
        raise ValueError(f"The file {path} is empty.")
    return tuple(map(str.strip, text.splitlines()))
