"""Builds test shards of photos of Flickr8k, DAQUAR and COCO that none of the given shards holds: photos that nobody here chose.

    git clone --bare https://github.com/RlNZLER/Image-Text-Matching flickr.git
    git clone --bare https://github.com/quantumnaan/sic_translator captions.git
    git clone --bare https://github.com/tezansahu/VQA-With-Multimodal-Transformers daquar.git
    git clone --bare https://github.com/zzowenzz/COCO_Tiny coco-1.git
    git clone --bare https://github.com/enginbozaba/tiny_coco coco-2.git
    python scripts/further_photos.py --flickr flickr.git --captions captions.git --daquar daquar.git --coco coco-1.git coco-2.git \
        --without DATA/*.tar --out runs/further

Two minutes. It writes flickr8k-further-000.tar (224 x 224, five captions each), daquar-further-000.tar (300 pixels high, with their
questions) and coco-further-000.tar (short side 320, with their boxes), in the form of the shards that are given, and says how many
photos are near-duplicates of one of those: their difference hashes differ in at most six of 64 bits. These are left out.
"""

import csv
import io
import json
import re
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfvlm.cli import run
from sfvlm.photos.decode import UnreadablePhoto
from sfvlm.photos.sources import open_photos
from sfvlm.util.files import replacing, write_json

# Commits at which the repositories were read, and where in them the photos and their texts lie.
FLICKR, FLICKR_PHOTOS = "56a15d913c3f290e2ee896386ece6076c1eea02e", "data/images/{}.jpg"
CAPTIONS, CAPTIONS_FILE = "d27da85cff2dbf143fcaf365aece667d66c4298f", "data/ignore_captions.txt"
DAQUAR, DAQUAR_PHOTOS = "e737e61ffa1553b6593579b7c296fbd724c782f8", "dataset/images/{}.png"
DAQUAR_FILE = "dataset/all_qa_pairs.txt"
# Both have annotations/instances_{train,val}2017.json; the photos lie in different folders.
COCO = {
    "e7a689f7d6d1a1908df287c3e79eccdadfdba1fe": "{}2017/{}",
    "44ee1df5a4f5c3fa6ab7c68d85a0d45590758584": "images/{}2017/{}",
}
NEAR = 6  # bits of 64 by which difference hashes of the same photo, saved again, differ at most


@dataclass(frozen=True)
class Options:
    """Build test shards of the photos that none of the given shards holds."""

    flickr: Path
    """A clone of RlNZLER/Image-Text-Matching: a git directory."""
    captions: Path
    """A clone of quantumnaan/sic_translator."""
    daquar: Path
    """A clone of tezansahu/VQA-With-Multimodal-Transformers."""
    coco: tuple[Path, Path]
    """Clones of zzowenzz/COCO_Tiny and of enginbozaba/tiny_coco."""
    without: list[str]
    """Shards whose photos, and what is nearly the same, are left out."""
    out: Path
    """Folder for the shards and left-out.json, what was left out and why."""


def build(options: Options) -> None:
    """Reads texts, leaves out what is known, writes three shards and what was left out."""
    options.out.mkdir(parents=True, exist_ok=True)
    known = _known(options.without)
    captions, questions = _captions(options.captions), _questions(options.daquar)
    flickr = _photos(options.flickr, FLICKR, {key: FLICKR_PHOTOS.format(key) for key in captions.keys() - known.keys()})
    rooms = _photos(options.daquar, DAQUAR, {key: DAQUAR_PHOTOS.format(key) for key in questions.keys() - known.keys()})
    boxes, places = {}, {}
    for repository, commit in zip(options.coco, COCO, strict=True):
        its_boxes, its_places = _boxes(repository, commit)
        new = its_places.keys() - known.keys() - boxes.keys()
        boxes |= {key: its_boxes[key] for key in new}
        places |= {key: (repository, commit, its_places[key]) for key in new}
    objects = ((key, next(_photos(where, at, {key: path}))[1]) for key, (where, at, path) in sorted(places.items()))
    left_out = {
        "flickr8k": _write(options.out / "flickr8k-further-000.tar", flickr, captions, known, None, 72),
        "daquar": _write(options.out / "daquar-further-000.tar", rooms, questions, known, 300, 78),
        "coco": _write(options.out / "coco-further-000.tar", objects, boxes, known, 320, 80),
    }
    write_json(options.out / "left-out.json", left_out)


def _write(
    path: Path,
    photos: Iterable[tuple[str, Image.Image]],
    said: Mapping[str, dict[str, Any]],
    known: Mapping[str, np.ndarray],
    side: int | None,
    quality: int,
) -> dict[str, str]:
    """Writes a shard of the photos, made smaller to a short side; returns those left out and what they resemble."""
    count, near = 0, {}
    with replacing(path) as temporary, tarfile.open(temporary, "w") as tar:
        for key, photo in photos:
            same = _nearest(photo, known)
            if same is not None:
                near[key] = same
                continue
            if side is not None:
                scale = min(1, side / min(photo.size))
                size = round(photo.width * scale), round(photo.height * scale)
                photo = photo.resize(size, Image.Resampling.BICUBIC)
            saved = io.BytesIO()
            photo.save(saved, "JPEG", quality=quality, optimize=True)
            _add(tar, f"{key}.jpg", saved.getvalue())
            _add(tar, f"{key}.json", json.dumps(said[key]).encode())
            count += 1
    print(f"{path}: {count} photos; {len(near)} near-duplicates of known ones are left out.")
    return near


def _known(shards: list[str]) -> dict[str, np.ndarray]:
    """The photos in the shards: their names, without folder and suffix, and their difference hashes."""
    photos, hashes = open_photos(shards), {}
    for index in range(len(photos)):
        try:
            hashes[re.split(r"[/:]", photos.key(index))[-1].split(".")[0]] = _hash(photos[index].image)
        except UnreadablePhoto as error:
            print(f"Passed over: {error}")
    return hashes


def _hash(photo: Image.Image) -> np.ndarray:
    """Of 9 x 8 grey cells, whether each is brighter than its right neighbour: (64,) bools."""
    cells = np.asarray(photo.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return (cells[:, :-1] > cells[:, 1:]).ravel()


def _nearest(photo: Image.Image, hashes: Mapping[str, np.ndarray]) -> str | None:
    """The name of a known photo that is nearly the same, if there is one."""
    distances = (np.stack(list(hashes.values())) != _hash(photo)).sum(1)
    nearest = int(distances.argmin())
    return list(hashes)[nearest] if distances[nearest] <= NEAR else None


def _captions(repository: Path) -> dict[str, dict[str, list[str]]]:
    """Flickr8k: the captions of each photo."""
    (data,) = _objects(repository, [f"{CAPTIONS}:{CAPTIONS_FILE}"])
    found: dict[str, list[str]] = defaultdict(list)
    for row in csv.DictReader(io.StringIO(data.decode())):
        found[row["image"].removesuffix(".jpg")].append(row["caption"])
    return {key: {"captions": texts} for key, texts in found.items()}


def _questions(repository: Path) -> dict[str, dict[str, list[list[str]]]]:
    """DAQUAR: the questions about each photo, of which each ends in its name, and their answers."""
    (data,) = _objects(repository, [f"{DAQUAR}:{DAQUAR_FILE}"])
    lines = data.decode().splitlines()
    found: dict[str, list[list[str]]] = defaultdict(list)
    for words, answer in zip(lines[::2], lines[1::2], strict=False):
        *_, name = re.findall(r"image\d+", words)
        question = re.sub(r"\s*(in|on|of)?\s*(the|this)?\s*image\d+\s*\?\s*$", "", words).strip(" ?")
        found[name].append([question, answer])
    return {key: {"qa": pairs} for key, pairs in found.items()}


def _boxes(repository: Path, commit: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """COCO: the size and boxes of each photo that has some, and where it lies."""
    boxes: dict[str, dict[str, Any]] = {}
    places = {}
    for part in ("train", "val"):
        (data,) = _objects(repository, [f"{commit}:annotations/instances_{part}2017.json"])
        content = json.loads(data)
        names = {each["id"]: each["name"] for each in content["categories"]}
        keys = {each["id"]: Path(each["file_name"]).stem for each in content["images"]}
        for each in content["images"]:
            boxes[keys[each["id"]]] = {"size": [each["width"], each["height"]], "boxes": []}
            places[keys[each["id"]]] = COCO[commit].format(part, each["file_name"])
        for each in content["annotations"]:
            if each["image_id"] in keys:
                box = [names[each["category_id"]], *(round(side, 1) for side in each["bbox"])]
                boxes[keys[each["image_id"]]]["boxes"].append(box)
    return boxes, {key: place for key, place in places.items() if boxes[key]["boxes"]}


def _photos(repository: Path, commit: str, places: Mapping[str, str]) -> Iterator[tuple[str, Image.Image]]:
    """The photos of a git repository, by name, in the order of the names."""
    keys = sorted(places)
    for key, data in zip(keys, _objects(repository, [f"{commit}:{places[key]}" for key in keys]), strict=True):
        yield key, Image.open(io.BytesIO(data)).convert("RGB")


def _objects(repository: Path, names: list[str]) -> Iterator[bytes]:
    """The files of these names (COMMIT:PATH) of a git repository.

    Raises:
        ValueError: One is not there.
    """
    asked = "".join(f"{name}\n" for name in names).encode()
    command = ["git", "--git-dir", str(repository), "cat-file", "--batch"]
    answer = io.BytesIO(subprocess.run(command, input=asked, capture_output=True, check=True).stdout)
    for name in names:
        head = answer.readline().split()
        if head[1:2] != [b"blob"]:
            raise ValueError(f"{repository} has no {name}: is it a whole clone?")
        yield answer.read(int(head[2]))
        answer.read(1)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a member without owner or date, so that the same photos make the same shard."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    run(build, Options)
