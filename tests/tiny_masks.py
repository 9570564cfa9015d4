"""Small photos with masks, in folders and shards: rectangles whose colour says the class."""

from pathlib import Path

import numpy as np
from PIL import Image
from tiny_photos import encoded, write_tar

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40))


def masked(seed: int, width: int = 40, height: int = 30, classes: int = 3) -> tuple[Image.Image, Image.Image]:
    """A photo and its mask: the left part is one class, the right part another."""
    rng = np.random.default_rng(seed)
    mask = np.full((height, width), rng.integers(classes), np.uint8)
    mask[:, int(rng.integers(width // 4, width)) :] = rng.integers(classes)
    mask[0, 0] = 255
    pixels = np.array(COLOURS, np.uint8)[np.where(mask == 255, 0, mask)]
    return Image.fromarray(pixels), Image.fromarray(mask)


def masked_shard(path: Path, count: int = 8, **sizes: int) -> Path:
    members = {}
    for seed in range(count):
        photo, mask = masked(seed, **sizes)
        members |= {f"{seed:03d}.png": encoded(mask), f"{seed:03d}.jpg": encoded(photo, "JPEG", quality=95)}
    return write_tar(path, members)


def masked_folder(root: Path, photos: str = "images", masks: str = "masks", count: int = 4) -> Path:
    for seed in range(count):
        photo, mask = masked(seed)
        for folder, picture in ((photos, photo), (masks, mask)):
            path = root / folder / f"{seed:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture))
    return root
