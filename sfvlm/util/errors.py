"""What an error of another library or of the system says, in the one line there is for it."""

import errno
import os
import re
import textwrap
from pathlib import Path

# What a person can mend, though the system does not say of which file it speaks.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO}
# The same where files are read: another one would fail as well.
_OF_READING = {errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT}


class NotWritten(OSError, ValueError):
    """A file or folder that cannot be written, in a sentence."""

    def __init__(self, path: Path, why: str, number: int = errno.EIO) -> None:
        super().__init__(number, why, str(path))

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}. Nothing of it is left; what was there before is as it was."

    def __reduce__(self) -> tuple[type, tuple[Path, str, int | None]]:
        return type(self), (Path(self.filename), self.strerror or "", self.errno)


class MachineFault(ValueError):
    """A file that could not be read for a reason that lies in the machine and not in the file, in a sentence."""


def check_of_file(error: Exception, name: str) -> None:
    """Raises MachineFault where an error of reading a file says nothing of that file: too many are open, or a disk is gone."""
    if isinstance(error, OSError) and error.errno in _OF_READING:
        raise MachineFault(
            f"{name} cannot be read: {error.strerror}. This lies in the machine and not in the file: mend it and try again."
        ) from error


def reason(error: Exception) -> str:
    """What an error says, on one line; its kind where it says nothing."""
    return shortened(str(error)) or type(error).__name__


def shortened(text: str) -> str:
    """A text on one line, cut where it is long."""
    return textwrap.shorten(text, 300, placeholder=" ...")


def of_writing(error: BaseException) -> str | None:
    """Why nothing more could be written, whichever library says it; None of an error of another kind."""
    said = str(error)
    if isinstance(error, OSError):
        if error.strerror is None:
            return said if "when writing" in said or " requested and " in said else None  # Pillow's and numpy's own
        return error.strerror if error.filename is not None or error.errno in _OF_THE_MACHINE else None
    rust = re.search(r"\(os error (\d+)\)", said)  # of safetensors and tokenizers
    if rust is not None:
        return os.strerror(int(rust[1]))
    if isinstance(error, RuntimeError) and ("inline_container" in said or "iostream error" in said):  # of torch.save
        return "it could not be written to its end; the disk may be full"
    return None


def of_files(error: OSError) -> str | None:
    """What the system says of a file, or of the machine, in a sentence; None where it is no matter of people."""
    if isinstance(error, NotWritten):
        return str(error)
    if error.strerror is None:
        return None
    if isinstance(error.filename, str | bytes):
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return f"{' to '.join(names)}: {error.strerror}."
    return f"{error.strerror}." if error.errno in _OF_THE_MACHINE else None
