"""What a host is asked of unlabelled photos, and what it answers with its dense tower.

    photos, prompts --Interview--> answers.jsonl --Conversations--> Texts of a batch

The answers are the host's own, so that no label is needed: a sparse tower shall make the host say what it said before.
Prompts that a photo's source brings along (rendered scenes, DAQUAR) are asked of that photo; their answers are not read.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...hosts.host import Host
from ...hosts.reader import HostReader
from ...hosts.template import user_message, written
from ...photos.decode import Photo, UnreadablePhoto
from ...photos.scene_texts import with_article
from ...photos.sources import SomePhotos
from ...photos.views import tower_pixels
from ...teachers.open import DenseTransformer
from ...util.errors import reason
from ...util.files import append_text, read_templates, write_text
from ...vqa.photos import changed_photo, photo_fingerprint
from ...vqa.questions import SHORT_ANSWER
from ...vqa.sources import CAPTION_PROMPT
from ..checkpoints import differences
from ..options import BootstrapOptions
from ..photos import RunPhotos
from .conversations import Conversations, Turn, check_template, cut

THINGS = (
    "person", "man", "woman", "child", "dog", "cat", "bird", "horse", "car", "bicycle", "bus", "boat", "chair", "dining table",
    "bed", "couch", "tv", "laptop", "book", "bottle", "cup", "bowl", "backpack", "umbrella", "tree", "window", "door",
)  # fmt: skip
DESCRIBE = (
    CAPTION_PROMPT,
    "Describe the image.",
    "Describe the photo in one sentence.",
    "What is happening in the image?",
)
SHORT = (
    "What is the main object in the image?",
    "What color is the main object in the image?",
    "How many people are there in the image?",
    "How many objects are there in the image?",
    "What is in the background of the image?",
    "Where was this photo taken?",
    "What is on the left side of the image?",
    "What is on the right side of the image?",
    "What is written in the image?",
    *(f"Is there {with_article(thing)} in the image?" for thing in THINGS),
)
LONGEST_ANSWER = 32  # tokens; what a longer answer adds is said by the text before it rather than by the photo


def read_prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line.

    Raises:
        ValueError: The file is missing, holds none, or is no UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"There is no file of prompts {path}.")
    return read_templates(path)


def prompts_for(photo: Photo, count: int, generator: random.Random, given: Sequence[str] = ()) -> list[str]:
    """So many different prompts for a photo: the given ones; else its own, if it has any, and one that describes it."""
    if given:
        return generator.sample(list(given), min(count, len(given)))
    own = [item.get("question") for item in _listed(photo, "questions") if isinstance(item, dict)]
    own += [item[0] for item in _listed(photo, "qa") if isinstance(item, list | tuple) and item]
    own = sorted({words.strip() for words in own if isinstance(words, str) and words.strip()})
    about_things = [words.rstrip(" ?") + "?" for words in own] or list(SHORT)
    drawn = generator.sample(about_things, min(count - 1, len(about_things)))
    asked = [words + SHORT_ANSWER if generator.random() < 0.7 else words for words in drawn]
    return [generator.choice(DESCRIBE), *asked]


def _listed(photo: Photo, name: str) -> list[Any]:
    """A field of the photo's, where it is a list: other people's data have fields of the same names."""
    value = photo.meta.get(name)
    return list(value) if isinstance(value, list | tuple) else []


def distinct_names(keys: Iterable[str]) -> list[str]:
    """Photos of two sources may have one name: the second is "name#2"."""
    seen: Counter[str] = Counter()
    found = []
    for key in keys:
        seen[key] += 1
        found.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return found


class Said(NamedTuple):
    """What a host said of a photo: fingerprint and turns; None and no turns of one that could not be read."""

    photo: str | None
    turns: list[Turn]


@dataclass(frozen=True)
class Interview:
    """How a host is asked about photos.

    Attributes:
        reader, processor: The host's.
        fingerprint: Of the host: answers of another one are not taken for its own.
        dense: Its own tower, on the reader's device.
        turns: Prompts a photo.
        seed: Of the choice of prompts.
        given: Prompts to choose from; none for general ones and the photos' own.
        at_once: Photos at once.
    """

    reader: HostReader
    processor: Any
    fingerprint: str
    dense: DenseTransformer
    turns: int
    seed: int
    given: Sequence[str] = ()
    at_once: int = 16

    def shown(self, image: Image.Image) -> Image.Image:
        """A photo as the host's processor hands it on to its own tower."""
        return self.reader.facts.shown(image, self.dense.config.squashes)

    def pixels(self, images: Sequence[Image.Image], config: Any) -> Tensor:
        """The same of several as a tower of this configuration reads them: -> (B, 3, S, S)."""
        shown = [self.reader.facts.shown(image, config.squashes) for image in images]
        return tower_pixels(shown, config, next(self.dense.parameters()))

    def answers(self, photos: SomePhotos, path: Path) -> list[list[Turn]]:
        """What the host says of each whole photo; an interrupted call continues from the file.

        Args:
            photos: Asked about.
            path: JSON lines: first what the answers depend on, then one line a photo; of two lines the later one counts.

        Returns:
            A list a photo; empty for one that cannot be read.

        Raises:
            ValueError: The file holds answers of another host, to other prompts or about other photos; or the host's chat
                template cannot be followed, so that nothing could be learned from its answers.
        """
        check_template(self.processor)
        keys = distinct_names(photos.key(index) for index in range(len(photos)))
        said = self._kept(photos, keys, path)
        missing = [index for index in range(len(keys)) if index not in said]
        with tqdm(total=len(missing), desc="answers", unit="photo") as bar:
            for start in range(0, len(missing), self.at_once):
                part = missing[start : start + self.at_once]
                new = dict(zip(part, self._ask(photos, part), strict=True))
                said |= new
                lines = (json.dumps({"key": keys[index]} | each._asdict()) for index, each in new.items())
                append_text(path, "".join(f"{line}\n" for line in lines))
                bar.update(len(part))
        return [said[index].turns for index in range(len(keys))]

    def _kept(self, photos: SomePhotos, keys: Sequence[str], path: Path) -> dict[int, Said]:
        """What the file has of these photos, without those that could not be read then and can be now."""
        prompts = hashlib.sha256("\n".join(self.given or (*DESCRIBE, *SHORT)).encode()).hexdigest()[:12]
        settings = Host(self.reader.model, self.processor).settings_fingerprint
        of_host = {"host": self.fingerprint, "settings": settings}
        found = _read(path, of_host | {"prompts": prompts, "turns": self.turns, "seed": self.seed})
        kept = {index: found[key] for index, key in enumerate(keys) if key in found}
        seen = {index: said.photo for index, said in kept.items() if said.photo is not None}
        changed = changed_photo(seen, lambda index: photos[index].image)
        if changed is not None:
            raise ValueError(
                f"{path} holds answers about other photos, {keys[changed]} among them: remove it, or give another folder."
            )
        return {index: said for index, said in kept.items() if index in seen or _opened(photos, index) is None}

    @torch.no_grad()
    def _ask(self, photos: SomePhotos, indices: Sequence[int]) -> list[Said]:
        opened = {index: photo for index in indices if (photo := _opened(photos, index)) is not None}
        if not opened:
            return [Said(None, []) for _ in indices]
        asked = [
            prompts_for(photo, self.turns, random.Random(f"{self.seed} {photos.key(index)}"), self.given)
            for index, photo in opened.items()
        ]
        config, device = self.dense.config, next(self.dense.parameters()).device
        images = [photo.image for photo in opened.values()]
        states = self.dense(self.pixels(images, config)).hidden_states
        seen = self.reader.project(self.reader.select(states, int(config.has_cls_token)))
        cuts = [
            [cut(self.processor, written(self.processor, [user_message(prompt, 1)])) for prompt in prompts]
            for prompts in asked
        ]
        before = torch.tensor(cuts[0][0].before, device=device)
        answers = self.reader.answer(seen, before, [[each.after for each in row] for row in cuts], LONGEST_ANSWER)
        decode = self.processor.tokenizer.decode
        said = {
            index: Said(
                photo_fingerprint(opened[index].image),
                [(prompt, decode(ids, skip_special_tokens=True).strip()) for prompt, ids in zip(*pair, strict=True)],
            )
            for index, *pair in zip(opened, asked, answers, strict=True)
        }
        return [said.get(index, Said(None, [])) for index in indices]


def ask_host(
    host: Host | None,
    dense: DenseTransformer,
    photos: RunPhotos,
    out: Path,
    options: BootstrapOptions,
    at_once: int,
    accelerator: Accelerator,
) -> tuple[HostReader, dict[str, Conversations]]:
    """The host of a run as a reader, and what it says of the photos, by "train" and "held_back".

    Args:
        host: Is asked by the first process; the others take its answers.
        dense: Its own tower, on the device.
        photos: Of the run.
        out: Receives `answers.train.jsonl` and `answers.held_back.jsonl`.
        options: Of the run.
        at_once: Photos that a device has memory for.
        accelerator: Of this process.

    Raises:
        ValueError: There is no host, or it cannot be asked; see `HostReader` and `Interview.answers`.
    """
    if host is None:
        raise ValueError("The objectives projected and answers need a host: give --host.")
    reader = HostReader(host.model, host.processor).to(accelerator.device)
    given = read_prompts(options.host_prompts) if options.host_prompts else ()
    interview = Interview(
        reader, host.processor, host.fingerprint, dense, options.host_turns, options.seed, given,
        at_once=min(Interview.at_once, at_once),
    )  # fmt: skip
    told = {}
    for name, part in (("train", photos.training), ("held_back", photos.held_back)):
        with accelerator.main_process_first():
            turns = interview.answers(part, out / f"answers.{name}.jsonl")
        told[name] = Conversations(host.processor, turns, options.seed)
    return reader, told


def _opened(photos: SomePhotos, index: int) -> Photo | None:
    try:
        return photos[index]
    except UnreadablePhoto:
        return None


def _read(path: Path, head: dict[str, Any]) -> dict[str, Said]:
    """Answers by photo; a last line that was cut short is cut off the file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(head) + "\n")
        return {}
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")[:-1]
    if text and not text.endswith("\n"):
        write_text(path, "".join(f"{line}\n" for line in lines))
    try:
        then, *rows = map(json.loads, lines or ["{}"])
        said = {row["key"]: Said(row["photo"], [(prompt, answer) for prompt, answer in row["turns"]]) for row in rows}
        changes = differences(then, head)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({reason(error)}): remove it, or give another folder.") from error
    if changes:
        raise ValueError(f"{path} holds other answers ({changes}): remove it, or give another folder.")
    return said
