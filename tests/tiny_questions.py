"""Files of questions, answers and photos, as benchmarks have them."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def jpeg(width: int = 8) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, 8), (width % 256, 0, 0)).save(data, "JPEG")
    return data.getvalue()


def write_shard(path: Path, metas: Sequence[dict[str, Any]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, meta in enumerate(metas):
            for suffix, data in (("jpg", jpeg(8 + number)), ("json", json.dumps(meta).encode())):
                member = tarfile.TarInfo(f"{number:012d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path
