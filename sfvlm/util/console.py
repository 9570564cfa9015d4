"""What commands say to people: once over all processes, in letters that the output knows."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from .errors import NotWritten


def say(text: str) -> None:
    """Prints for people, once over all processes."""
    if os.environ.get("RANK", "0") == "0" and sys.stdout is not None:
        text = text.encode(errors="surrogateescape").decode(errors="replace")  # names of files may be no UTF-8
        encoding = sys.stdout.encoding or "utf-8"
        try:
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            sys.stdout.flush()
        except OSError as error:
            write_no_more()
            if not isinstance(error, BrokenPipeError):  # who reads no further may still want the files
                raise NotWritten(Path("The standard output"), error.strerror or str(error)) from error


def write_no_more() -> None:
    """Sends what is still to be said nowhere: Python would fail over it once more when it ends."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
