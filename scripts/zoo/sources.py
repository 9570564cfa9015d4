"""What the shipped models are trained on, and what of it is kept for measuring them.

One folder holds the shards: Flickr8k with captions, Imagenette, COCO with boxes, DAQUAR with questions, Caltech-101 photos,
and the ImageNet vision transformer that everything starts from. Rendered scenes need no file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sfvlm.photos.batches import Selection
from sfvlm.photos.decode import UnreadablePhoto
from sfvlm.photos.sources import Photos, names_hash, open_photos, readable
from sfvlm.photos.views import evaluation_view
from sfvlm.vqa.sources import COCO_HELD_OUT, DAQUAR_HELD_OUT, photo_split

CLIP_SCENES, LLAVA_SCENES = 1000, 1001  # seeds of training scenes; every other seed is free for measuring
CAPTIONED = ("flickr8k-train-{000..002}.tar", "coco-boxes-000.tar")
TALKED_OF = (*CAPTIONED, "imagenette-train-000.tar", "daquar-train-000.tar")
PHOTOS = (*CAPTIONED, "imagenette-train-000.tar", "caltech-photos-000.tar", "daquar-train-000.tar")
IMAGENETTE = (
    *("tench", "English springer", "cassette player", "chain saw", "church"),
    *("French horn", "garbage truck", "gas pump", "golf ball", "parachute"),
)
HELD_OUT = {"coco-boxes-000.tar": COCO_HELD_OUT, "daquar-train-000.tar": DAQUAR_HELD_OUT}
SCENES = "scenes:"  # in front of their names
VISION_TRANSFORMER = "vit_tiny_patch16_224.safetensors"


@dataclass(frozen=True)
class Data:
    """A folder of shards.

    Raises:
        ValueError: One of the files is missing.
    """

    folder: Path

    def path(self, name: str) -> Path:
        if not (self.folder / name).exists():
            raise ValueError(
                f"{self.folder} holds no {name}: --data is the folder with the shards and the transformer."
            )
        return self.folder / name

    def training_photos(self, names: tuple[str, ...], scenes: int = 0, seed: int = CLIP_SCENES) -> Selection:
        """All photos of the shards but the held-out ones, then the scenes."""
        sources = [str(self.folder / name) for name in names] + ([f"scenes:{scenes}:{seed}"] if scenes else [])
        photos = open_photos(sources)
        return Selection(photos, [index for index in range(len(photos)) if not is_held_out(photos.key(index))])

    def held_out_photos(self, name: str) -> Selection:
        """The photos of a shard that no shipped model is trained on."""
        photos = open_photos(self.path(name))
        return Selection(photos, [index for index in range(len(photos)) if is_held_out(photos.key(index))])

    def captions(self) -> list[str]:
        """Every training caption of the photos."""
        return [text for photo in readable(self.training_photos(CAPTIONED)) for text in photo.captions]


def is_held_out(key: str) -> bool:
    """Whether a photo is kept for measuring: a property of its shard and name alone."""
    every = HELD_OUT.get(key.partition(":")[0])
    return every is not None and photo_split(key, every) == "test"


def scenes_of(photos: Photos | Selection, index: int) -> bool:
    """Whether a photo is a rendered scene."""
    return photos.key(index).startswith(SCENES)


class CenterViews(Dataset[dict[str, Any]]):
    """The centre of each photo, and what is said of it; of one that cannot be read, why."""

    def __init__(self, photos: Selection) -> None:
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            photo = self.photos[index]
        except UnreadablePhoto as error:  # raised in another process, it would be a traceback
            return {"unreadable": str(error)}
        said = {name: getattr(photo, name) for name in ("key", "label", "captions", "meta")}
        return {"pixels": evaluation_view(photo.image, 224), **said}


def center_views(photos: Selection, workers: int) -> Iterator[list[dict[str, Any]]]:
    """The `CenterViews` of all photos in their order, 64 at once.

    Raises:
        ValueError: A photo cannot be read.
    """
    loader = DataLoader(CenterViews(photos), 64, num_workers=workers, collate_fn=list)
    for batch in tqdm(loader, desc="features", mininterval=5):
        for item in batch:
            if "unreadable" in item:
                raise ValueError(f"The photo {item['unreadable']}: the recipe needs its shards whole.")
        yield batch


@dataclass(frozen=True)
class RecipeOptions:
    """What both recipes ask for."""

    data: Path
    """Folder with the training shards and the ImageNet vision transformer."""
    out: Path
    """Folder to write; also holds checkpoints. An interrupted run continues from them."""
    scenes: int = 12_000
    """Rendered scenes among the training photos."""
    vocabulary: int = 4096
    """Entries of the tokenizer, at most."""
    workers: int = 1
    """Processes that decode and render."""
    seed: int = 0
    """Of weights, order, views and questions."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train."""
    precision: Literal["no", "bf16"] = "no"
    """Of the towers and the language model; bf16 pays on GPUs, and on CPUs that multiply in it. Losses stay in float32."""

    def shared(self, photos: Selection) -> dict[str, Any]:
        """What all stages of a recipe share."""
        named = {name: getattr(self, name) for name in ("scenes", "vocabulary", "seed")}
        return named | {"photos": names_hash(photos)}

    def autocast(self) -> torch.autocast:
        """What towers and language models run under."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16")
