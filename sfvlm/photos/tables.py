"""Hugging Face datasets on disk as photos."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..util.errors import reason
from .decode import read_regular
from .folders import PassedOver
from .shards import Record, captions_of


class HuggingFacePhotos:
    """One split of a Hugging Face dataset on disk. Every column but the images goes to `meta`."""

    def __init__(self, path: Path) -> None:
        try:
            import datasets
        except ImportError as error:
            message = "Reading a Hugging Face dataset needs the datasets package: pip install sfvlm[eval]."
            raise ValueError(message) from error
        self.path = path
        try:
            rows: Any = datasets.load_from_disk(str(path))  # a Dataset; its rows are untyped
        except Exception as error:  # each file of it that is missing or damaged raises its own kind
            raise ValueError(f"The Hugging Face dataset {path} cannot be opened: {reason(error)}") from error
        images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
        self.column = _only(path, images, "image", list(rows.column_names))
        named = {name: kind for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)}
        self.label_column = "label" if "label" in rows.features or len(named) != 1 else next(iter(named))
        label = named.get(self.label_column)
        self.class_names = None if label is None else tuple(label.names)
        self.notes: list[str] = []
        if len(images) > 1:
            self.notes.append(f"The photos of {path} are those of its column {self.column!r}, of {', '.join(images)}.")
        if self.label_column not in rows.features and named:
            self.notes.append(
                f"{path} has several columns of classes ({', '.join(named)}) and none called 'label', so that its photos have no "
                "labels: rename the one that is meant."
            )
        self.passed_over = PassedOver()
        # The bytes are wanted as they are: datasets would decode with other rules than ours.
        others = [name for name in images if name != self.column]
        rows = rows.remove_columns(others).cast_column(self.column, datasets.Image(decode=False))
        self.rows = rows.with_format(None)  # it may have been saved to give tensors, which no label or caption is
        self.said = self.rows.remove_columns([self.column])

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        return f"{self.path.name}:{index}"

    def read(self, index: int) -> Record:
        meta = dict(self.rows[index])
        image = meta.pop(self.column)
        if image is None:
            raise ValueError(f"its column {self.column!r} is empty")
        data = image["bytes"] if image["bytes"] is not None else read_regular(Path(image["path"]))
        label = meta.get(self.label_column)
        unread = self._unread(label)
        return Record(data, None if "label" in unread else label, captions_of(meta), meta, unread)

    def unread(self, index: int) -> Mapping[str, str]:
        """`Record.unread` alone."""
        return self._unread(self.said[index].get(self.label_column))

    def _unread(self, label: Any) -> Mapping[str, str]:
        if label == -1 and self.class_names is not None:  # so datasets mark those whose class is kept secret
            return {"label": "its label is -1, which stands for an unknown class"}
        if isinstance(label, int) or label is None:
            return {}
        return {"label": f"its label is {label!r}, which is no whole number"}


def _only(path: Path, images: list[str], name: str, columns: list[str]) -> str:
    """The column of photos: the only one of images, or the one of that name among several."""
    if not images:
        raise ValueError(f"{path} has no column of type datasets.Image, only {columns}.")
    if len(images) > 1 and name not in images:
        raise ValueError(
            f"{path} has several columns of images ({', '.join(images)}) and none called {name!r}: rename the one that is meant."
        )
    return images[0] if len(images) == 1 else name
