"""Files and models from the network: a release's file by its URL, verified, and a transformers model by its hub id."""

import hashlib
import urllib.request
import warnings
from functools import partial
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from ..util.errors import NotWritten
from ..util.files import replacing
from .packing import file_sha256
from .weight_files import SAFE, SAFE_INDEX

TIMEOUT = 30  # seconds without a byte


def hub_folder(source: str, what: str | None = None, *, pickles: bool = False, local_files_only: bool = False) -> Path:
    """Downloads a transformers model, or finds it in the cache: configuration, tokenizer, processor, weights.

    Args:
        source: Its hub id.
        what: What it is called in the error.
        pickles: Take pickled weights where there are no safetensors.
        local_files_only: Look in the cache alone.

    Raises:
        ValueError: It can be neither downloaded nor found.
    """
    from huggingface_hub import snapshot_download

    settings = ["*.json", "*.txt", "*.model", "*.jinja"]
    try:
        download = partial(snapshot_download, source, local_files_only=local_files_only)
        found = Path(download(allow_patterns=[*settings, "model*.safetensors"]))
        if pickles and not any((found / name).is_file() for name in (SAFE, SAFE_INDEX)):
            found = Path(download(allow_patterns=[*settings, "pytorch_model*.bin"]))
        return found
    except Exception as error:  # of a bad name, a missing model, a closed one, no network: many kinds
        raise ValueError(
            f"{what or repr(source)} is neither a folder nor a model that can be downloaded or found in the cache "
            f"({type(error).__name__}); offline, give the path of a local folder."
        ) from error


def download(url: str, path: Path, sha256: str | None = None) -> Path:
    """Makes sure that the file of `url` lies at `path`, whole and verified, and returns `path`.

    It is written under a temporary name, so that two processes may download at once. Without a hash to verify, a warning
    says the one it has.

    Raises:
        ValueError: It cannot be downloaded, and says where to put it; or its hash is another one.
    """
    if path.is_file():
        digest = file_sha256(path)
        if sha256 not in (None, digest):
            raise ValueError(f"{path} has the sha256 {digest}, not {sha256}; remove it to download it again.")
    else:
        try:
            with replacing(path) as temporary:
                digest = _receive(url, temporary)
                if sha256 not in (None, digest):
                    raise ValueError(f"{url} has the sha256 {digest}, not {sha256}; nothing of it was kept.")
        except NotWritten:
            raise
        except (OSError, HTTPException) as error:
            raise ValueError(
                f"{url} cannot be downloaded ({error}); get that file on a machine with network and put it at {path}."
            ) from error
    if sha256 is None:
        warnings.warn(f"No hash of {url} is known, so {path} is unverified; its sha256 is {digest}.", stacklevel=2)
    return path


def _receive(url: str, path: Path) -> str:
    """Streams a URL to a file with a progress bar and returns its sha256; OSError where it ends too early."""
    digest, received = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, path.open("wb") as out:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        with tqdm(total=total, desc=url.rpartition("/")[2], unit="B", unit_scale=True) as bar:
            while chunk := response.read(1 << 20):
                out.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                bar.update(len(chunk))
    if total is not None and received != total:
        raise OSError(f"the connection ended after {received} of {total} bytes")
    return digest.hexdigest()
