"""Results of an evaluation: a table for people, and the files that CLIP_benchmark reads."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .files import write_json
from .provenance import making

RECALLS = (1, 5, 10)
Row = dict[str, Any]  # CLIP_benchmark's six keys: dataset, model, pretrained, task, metrics, language
# What a table shows, in this order: metric, heading, and how a number is written.
COLUMNS = (
    ("tokens", "tokens", "{:.0f}"),
    ("mean_tokens", "a block", "{:.1f}"),
    ("gmacs", "GMACs", "{:.3g}"),
    ("acc1", "acc1", "{:.1%}"),
    ("acc1_low", "95 % from", "{:.1%}"),
    ("acc1_high", "to", "{:.1%}"),
    ("acc5", "acc5", "{:.1%}"),
    ("mean_per_class_recall", "recall", "{:.1%}"),
    ("acc1_restricted", "acc1 listed", "{:.1%}"),
    *((f"{what}_retrieval_recall@{k}", f"{what} R@{k}", "{:.1%}") for what in ("image", "text") for k in RECALLS),
    ("agreement", "agreement", "{:.1%}"),
    ("cosine", "cosine", "{:.3f}"),
)


def table(rows: Sequence[Row]) -> str:
    """Results as an aligned table, a row a model: what none of them has is left out."""
    columns = [column for column in COLUMNS if any(column[0] in row["metrics"] for row in rows)]
    lines = [["model", *(heading for _, heading, _ in columns)]]
    for row in rows:
        cells = [form.format(row["metrics"][name]) if name in row["metrics"] else "" for name, _, form in columns]
        lines.append([row["model"], *cells])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def write_results(path: Path, rows: Sequence[Row], facts: dict[str, Any], device: torch.device | str) -> Path:
    """Writes all rows, how they came about and `facts` to `path`, and each row alone to the folder of that name without its suffix.

    A row has the keys dataset, model, pretrained, task, metrics, language; `clip_benchmark build FOLDER` reads the
    folder, which is returned. Files are whole or absent; earlier rows of the folder that these do not replace stay.
    """
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        write_json(folder / f"{_file_name(row)}.json", row)
    write_json(path, {"results": list(rows), **making(device), **facts})
    return folder


def _file_name(row: Row) -> str:
    """What a row's file is called: one that file systems would refuse loses its start, and a hash tells it from others."""
    whole = "_".join(row[key] for key in ("dataset", "pretrained", "model", "task"))
    name = re.sub(r"[^\w.@-]+", "-", whole).strip("-").encode()
    if len(name) > 200:
        digest = hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()
        name = f"{digest[:8]}-".encode() + name[-191:]
    return name.decode(errors="ignore")  # the cut may have gone through a letter


def check_json(out: Path | None) -> None:
    """Whether results can be written, before they are computed.

    Raises:
        ValueError: The file does not end in .json, or it or the folder of its name cannot be made.
    """
    if out is None:
        return
    if out.suffix != ".json":
        raise ValueError(f"--out is {out}; it must end in .json.")
    above = next(parent for parent in out.absolute().parents if os.path.exists(parent))
    if not above.is_dir():
        raise ValueError(f"--out is {out}, but the folder {out.parent} cannot be made: {above} is a file.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"--out is {out}, but the folder {above} cannot be written.")
    if out.is_dir():
        raise ValueError(f"--out is {out}, which is a folder: choose another name.")
    folder = out.with_suffix("")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out is {out}, but {folder} is a file where a folder of that name belongs: choose another.")


def check_once(what: str, names: Sequence[str]) -> None:
    """Raises ValueError for what is given several times: results go by these names."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"The {what} {name} is given {names.count(name)} times: once is enough.")


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """Last parts of paths, or whole ones where two end alike; of those joined by `::`, of each."""
    short = ["::".join(os.path.basename(os.path.abspath(part)) for part in str(path).split("::")) for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]
