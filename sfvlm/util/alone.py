"""One run at a time in a folder: a second one would write over the first without a word."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .files import make_folder

LOCK = ".lock"  # in the folder while a run writes there


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other run writes to the folder, which is made; on leaving it goes again if nothing was put there.

    The system holds the lock, so that a killed run leaves none behind. Of several processes of one run, the first holds it.

    Args:
        folder: Of the run.

    Raises:
        ValueError: Another run holds it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    make_folder(folder)
    path = folder / LOCK
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"Another run{_holder(path)} writes to {folder}: wait for it, or give another --out."
        ) from None
    try:
        with suppress(OSError):  # a full disk: the lock holds all the same
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before it is let go of, or it would be another's
        lock.release()
        with suppress(OSError):
            folder.rmdir()  # does so where it is empty


def _holder(path: Path) -> str:
    """Who holds a lock, as its file says."""
    with suppress(OSError, UnicodeDecodeError):
        said = path.read_text(encoding="utf-8").strip()
        return f" ({said})" if said else ""
    return ""
