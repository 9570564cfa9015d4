"""Where downloads and assembled folders lie, and how one gets there whole, whoever else makes it meanwhile.

It is `$SFVLM_CACHE`, else `$XDG_CACHE_HOME/sfvlm`, else `~/.cache/sfvlm`.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..util.files import writing


def cache_folder() -> Path:
    """Where downloads and assembled folders lie; see the head of this module. It need not exist."""
    if given := os.environ.get("SFVLM_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfvlm"


def make_writable(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(f"The cache folder {cache} cannot be written: set SFVLM_CACHE to one that can.")


@contextmanager
def cached(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder that becomes `folder`, unless another process has made that one meanwhile."""
    with (
        writing(folder, folder.parent),
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as around,
    ):
        temporary = Path(around) / folder.name
        temporary.mkdir()
        yield temporary
        try:
            os.replace(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
