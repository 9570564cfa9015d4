"""Files and folders that are whole or absent: written under a temporary name beside their own, then renamed; and what is read, by name
where it is damaged."""

import codecs
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import NotWritten, of_writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path for a file or folder, which takes the place of `path` at the end.

    If anything fails, what was written is removed and `path` stays as it was. Several processes may write one path at once.

    Raises:
        NotWritten: The disk is full, or the like.
    """
    # The name itself stays, in a folder of its own: writers of pictures go by its suffix.
    with (
        writing(path, path.parent),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name[:50]}.") as folder,
    ):
        temporary = Path(folder) / path.name
        with writing(path, temporary.parent):
            yield temporary
        if temporary.is_dir():  # a folder cannot be renamed onto another
            shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)


@contextmanager
def writing(path: Path, folder: Path) -> Iterator[None]:
    """Inside, writers' errors become `NotWritten`, whichever library raises them.

    Args:
        path: What is being written, as people know it.
        folder: Where it is written for now: what is said of files elsewhere is not of this writing, and stays as it is.
    """
    try:
        yield
    except Exception as error:
        why, name = of_writing(error), getattr(error, "filename", None)
        named = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else folder
        if why is None or folder not in (named, *named.parents):
            raise
        raise NotWritten(path, why, getattr(error, "errno", None) or errno.EIO) from error


def append_text(path: Path, text: str) -> None:
    """Adds to a file, all of the text or nothing.

    Raises:
        NotWritten: The disk is full, or the like.
    """
    size = path.stat().st_size if path.exists() else None
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        with suppress(OSError):
            path.unlink() if size is None else os.truncate(path, size)
        raise NotWritten(path, error.strerror or str(error), error.errno or errno.EIO) from error


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

    Raises:
        NotWritten: The disk is full, or the like.
    """
    temporary = folder / ".unfinished"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        with writing(folder, temporary):
            temporary.mkdir(parents=True)
            yield temporary
        files = list(temporary.iterdir())
        for file in files:  # before the first of them takes its place
            if (folder / file.name).is_dir() and not file.is_dir():
                raise NotWritten(folder / file.name, "it is a folder", errno.EISDIR)
        with writing(folder, folder):
            for file in files:
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


def read_text(path: Path, errors: str = "strict") -> str:
    """A text file as people's programs write them: UTF-8, or UTF-16 with its mark; without the mark, and lines end in "\\n".

    `errors` says what becomes of bytes that are no such text, as in `bytes.decode`.

    Raises:
        ValueError: There is no such file, or it is no such text.
    """
    if path.is_dir() or not path.exists():  # it may be a pipe
        raise ValueError(f"The file {path} {'is a folder' if path.is_dir() else 'does not exist'}.")
    return plain_lines(decoded(path.read_bytes(), path, errors))


def plain_lines(text: str) -> str:
    """A text whose lines end in "\\n", whichever system wrote it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\n\ufeff", "\n")  # joined files keep their marks


def decoded(data: bytes, path: Path, errors: str = "strict") -> str:
    """The bytes of a text file as text, with the line ends as they are.

    Raises:
        ValueError: They are none of the encodings of `read_text`.
    """
    marks = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
    encoding = next((name for mark, name in marks if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise ValueError(f"The file {path} is no UTF-8 text ({error}): save it as UTF-8.") from error
    if "\0" in text:
        raise ValueError(f"The file {path} is no text, or UTF-16 without its mark: save it as UTF-8.")
    return text


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError if it holds none."""
    content = read_any_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return content


def read_any_json(path: Path) -> Any:
    """What a JSON file holds; ValueError if it is none."""
    check_content(path)
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error


def check_content(path: Path) -> None:
    """Raises ValueError if a file holds something that was left where its content should be, as downloads leave it."""
    told = stand_in(path)
    if told is not None:
        raise ValueError(f"The file {path} {told}.")


def stand_in(path: Path) -> str | None:
    """What stands in a file instead of its content, with the way out; None where there is nothing of the kind."""
    if not path.is_file():  # opening a pipe would wait
        return None
    with path.open("rb") as file:
        start = file.read(256).lstrip().lower()
    if not start:
        return "is empty: it was not saved or downloaded whole"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of git-lfs, not the file itself: run git lfs pull in its folder, or download it"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not the file itself: its address was another's, or asks for a login"
    return None


def stand_ins(folder: str | Path) -> str:
    """The first of a folder's files that hold no content of their own, as a sentence; "" where there are none."""
    names = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
    told = ((path, stand_in(path)) for path in names if path.suffix in (".json", ".safetensors", ".bin", ".model"))
    return next((f" The file {path} {why}." for path, why in told if why is not None), "")


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
    """What a text file says up to its last line that is not blank."""
    text = read_text(path).rstrip()
    if not text:
        raise ValueError(f"The file {path} is empty.")
    return tuple(map(str.strip, text.split("\n")))  # names and sentences may hold other signs that Python ends lines at
