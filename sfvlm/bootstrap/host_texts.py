"""What a host is asked of unlabelled photos, what it answers with its dense tower, and both as token ids.

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
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..hosts.host import Host
from ..hosts.reader import HostReader, Texts
from ..hosts.template import assistant_message, lacks_start, user_message, written
from ..photos.decode import Photo, UnreadablePhoto
from ..photos.scene_texts import with_article
from ..photos.sources import SomePhotos
from ..photos.views import tower_pixels
from ..teachers.open import DenseTransformer
from ..util.errors import reason, shortened
from ..util.files import append_text, read_templates, write_text
from ..vqa.photos import changed_photo, photo_fingerprint
from ..vqa.questions import SHORT_ANSWER
from ..vqa.sources import CAPTION_PROMPT
from .checkpoints import differences

Turn = tuple[str, str]  # prompt, answer
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


class Cut(NamedTuple):
    """A text about one photo as ids, cut where the photo stands."""

    before: list[int]
    after: list[int]
    offsets: list[tuple[int, int]]  # in the text, of `after`


def cut(processor: Any, text: str) -> Cut:
    """Tokenizes a text with one mark of a photo.

    Raises:
        ValueError: The mark is missing, or there are several: the chat template has not one place for a photo.
    """
    special = lacks_start(processor, text)
    encoded = processor.tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if ids.count(processor.image_token_id) != 1:
        raise ValueError(f"The host's chat template has not one place for a photo; it makes {text[:80]!r}.")
    photo = ids.index(processor.image_token_id)
    return Cut(ids[:photo], ids[photo + 1 :], offsets[photo + 1 :])


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


class Conversations:
    """The turns about each photo as one conversation in the host's own chat template.

    Which turn comes first changes from epoch to epoch, because later ones are told of the photo by those before them.

    Args:
        processor: The host's.
        turns: By photo.
        seed: Of the turns' order.
    """

    def __init__(self, processor: Any, turns: Sequence[Sequence[Turn]], seed: int) -> None:
        self.processor, self.turns, self.seed = processor, turns, seed

    def batch(self, index: Tensor, view: Tensor) -> Texts:
        """The conversations about these photos (B,), in these epochs (B,).

        Raises:
            ValueError: The chat template cannot be followed.
        """
        pieces = [self._encode(int(photo), int(epoch)) for photo, epoch in zip(index, view, strict=True)]
        before = pieces[0][0]
        if any(piece[0] != before for piece in pieces):
            raise ValueError("The host's chat template puts other words before one photo than before another.")
        longest = max(len(after) for _, after, _ in pieces)
        pad = self.processor.tokenizer.pad_token_id
        row, place, weight = [], [], []
        for number, (_, _, answers) in enumerate(pieces):
            for span in answers:
                row += [number] * len(span)
                place += span
                weight += [1 / len(span)] * len(span)
        return Texts(
            before=torch.tensor(before),
            after=torch.tensor([after + [pad] * (longest - len(after)) for _, after, _ in pieces]),
            row=torch.tensor(row),
            place=torch.tensor(place),
            weight=torch.tensor(weight),
        )

    def _encode(self, index: int, epoch: int) -> tuple[list[int], list[int], list[list[int]]]:
        """Ids before the photo, ids after it, and where in these each answer stands."""
        turns = list(self.turns[index])
        random.Random(f"{self.seed} {epoch} {index}").shuffle(turns)
        messages: list[dict[str, Any]] = []
        spans: list[tuple[int, int]] = []
        text = ""
        for number, (prompt, answer) in enumerate(turns):
            messages.append(user_message(prompt, images=1 - min(number, 1)))
            asked = written(self.processor, messages)
            messages.append(assistant_message(answer))
            text = written(self.processor, messages, add_generation_prompt=False)
            spans.append((_start_of_answer(asked, text), len(text)))
        parts = cut(self.processor, text)
        places = [
            [place for place, (begin, end) in enumerate(parts.offsets) if begin >= start and start < end <= stop]
            for start, stop in spans
        ]
        return parts.before, parts.after, list(filter(None, places))


def check_template(processor: Any) -> None:
    """Raises ValueError unless answers can be told from what is written around them in the host's chat template."""
    Conversations(processor, [[("?", "yes"), ("?", "no")]], 0).batch(torch.tensor([0]), torch.tensor([0]))
    turns = [user_message("?", 1), assistant_message("yes")]
    text = written(processor, turns, add_generation_prompt=False)
    said = text[_start_of_answer(written(processor, turns[:1]), text) :].lstrip()
    if not said.startswith("yes"):
        raise ValueError(
            f"The host's chat template begins an answer by {shortened(said)!r}, with more than a prompt for one ends with: let it "
            "write that where add_generation_prompt is set."
        )


def _start_of_answer(asked: str, text: str) -> int:
    """Where the answer begins in an answered prompt; LLaVA-OneVision's template puts other white space in front of one.

    Raises:
        ValueError: They differ in more.
    """
    if text.startswith(asked):
        return len(asked)
    prompt = asked.rstrip()
    if not text.startswith(prompt):
        raise ValueError("The host's chat template writes a prompt otherwise once it is answered.")
    return len(text) - len(text[len(prompt) :].lstrip())
