"""What a teacher says of training views, on disk: views repeat, so the teacher need not see them twice.

A vector a view is kept, the pooled one and, for students that choose patches, the attention these get (some thousand bytes);
patch tokens would be a thousand times that.
"""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...util.errors import NotWritten
from ...util.files import make_folder, read_json, write_json, writing

LEAST_FREE = 64 * 2**20  # bytes on the disk


class TeacherCache:
    """Vectors by (view, photo index), filled as training goes, shared by runs with the same key.

    Args:
        folder: Where the cache lives; made if missing.
        key: What the vectors depend on: teacher hash, photos, views' seed and options. A cache of another key is refused.
        num_views, num_photos, width: Its shape; one of more views serves too.

    Raises:
        ValueError: The folder holds a cache of another key or shape; what differs is named.
    """

    def __init__(self, folder: Path, key: dict[str, object], num_views: int, num_photos: int, width: int) -> None:
        make_folder(folder)
        self._folder = folder
        described = folder / "key.json"
        key = json.loads(json.dumps(key))
        if described.exists():
            old = read_json(described)
            different = sorted(name for name in old.keys() | key.keys() if old.get(name) != key.get(name))
            if different:
                raise ValueError(
                    f"The teacher cache in {folder} was made with other settings ({', '.join(different)}); "
                    "give another folder or remove it."
                )
        shape = (num_views, num_photos, width)
        self._vectors = self._open(folder / "vectors.npy", shape, np.float32)
        self._known = self._open(folder / "known.npy", shape[:2], np.bool_)
        write_json(described, key)

    @staticmethod
    def _open(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
        if path.exists():
            found = np.lib.format.open_memmap(path, mode="r+")
            if found.shape[0] < shape[0] or found.shape[1:] != shape[1:]:
                raise ValueError(
                    f"The teacher cache in {path.parent} is of the shape {found.shape} (views, photos, ...), and {shape} is "
                    "asked for: give another folder or remove it."
                )
            return found
        try:
            with writing(path, path.parent):
                return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)  # zeros, sparse on disk
        except NotWritten:
            path.unlink(missing_ok=True)
            raise

    def get(self, view: Tensor, index: Tensor) -> Tensor | None:
        """The vectors of a batch (B, width), or None unless all are known."""
        rows = view.numpy(), index.numpy()
        return torch.from_numpy(self._vectors[rows]) if self._known[rows].all() else None

    def put(self, view: Tensor, index: Tensor, vectors: Tensor) -> None:
        """Stores a batch (B, width).

        Raises:
            NotWritten: The disk is nearly full. Of a mapped file, the system would end the process.
        """
        if shutil.disk_usage(self._folder).free < LEAST_FREE:
            raise NotWritten(self._folder, os.strerror(errno.ENOSPC), errno.ENOSPC)
        rows = view.numpy(), index.numpy()
        self._vectors[rows] = vectors.float().cpu().numpy()
        self._known[rows] = True
