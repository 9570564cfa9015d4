"""Questions made from photos and what their source says of them; nothing is read but the photos.

    scene_questions     rendered scenes: colour, shape, count, position, reading, ...
    pope_questions      photos with boxes: "Is there a dog in the image?"
    pope_caption_questions   the same of photos with captions
    caption_questions   photos with captions
    daquar_questions    photos with questions and answers

Training and evaluation share these. What is held out is held out by photo, not by question: `photo_split` says of every
photo which side it is on, whatever shard it comes from.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from ..photos.caption_objects import objects_possible, times_shown
from ..photos.decode import Photo, UnreadablePhoto
from ..photos.scene_texts import with_article
from ..photos.sources import Photos, readable
from ..util.choices import Negatives, Split
from ..util.errors import shortened
from .questions import SHORT_ANSWER, Question

Labels = dict[str, list[str]]  # of objects, by photo
CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."
# One photo in so many is held out, where a source has no test photos of its own. The shipped models keep to it.
COCO_HELD_OUT, DAQUAR_HELD_OUT = 4, 5


def photo_split(key: str, every: int = COCO_HELD_OUT) -> Literal["train", "test"]:
    """Which side a photo is on, by its name alone: not by its folder or shard, and not by its suffix."""
    name = re.split(r"[/:]", key)[-1].split(".")[0]
    return "test" if zlib.crc32(name.encode()) % every == 0 else "train"


@dataclass(frozen=True)
class NotedPhotos:
    """Photos that note why one of them, or what is said of it, cannot be read: by key, in `problems`."""

    photos: Photos
    problems: dict[str, str]

    @property
    def origins(self) -> tuple[str, ...]:
        return self.photos.origins

    def __len__(self) -> int:
        return len(self.photos)

    def key(self, index: int) -> str:
        return self.photos.key(index)

    def __getitem__(self, index: int) -> Photo:
        try:
            photo = self.photos[index]
        except UnreadablePhoto as error:
            self.problems[error.key] = str(error)
            raise
        if why := photo.unread.get("captions") or photo.unread.get("meta"):
            self.problems[photo.key] = f"{photo.key}: {why}"
        return photo


def scene_questions(photos: Photos | NotedPhotos, suffix: str = SHORT_ANSWER) -> list[Question]:
    """Up to seven questions about each rendered scene; the category is their kind."""
    return [
        Question(f"{photo.key}:{number}", photo.key, item["question"] + suffix, (item["answer"],), item["kind"])
        for photo in _readable(photos, "all")
        for number, item in enumerate(_of(photo, "questions"))
    ]


def caption_questions(
    photos: Photos | NotedPhotos, split: Split = "all", prompt: str = CAPTION_PROMPT
) -> list[Question]:
    """One question for each photo that has captions; all of them are right answers."""
    return [
        Question(photo.key, photo.key, prompt, photo.captions)
        for photo in _readable(photos, split)
        if any(caption.strip() for caption in photo.captions)
    ]


def daquar_questions(photos: Photos | NotedPhotos, split: Split = "all", suffix: str = SHORT_ANSWER) -> list[Question]:
    """The questions in {"qa": [[question, answer], ...]}; the category is what they ask for: number, color or object."""
    return [
        Question(
            f"{photo.key}:{number}",
            photo.key,
            daquar_words(words) + suffix,
            (answer.replace("_", " "),),
            daquar_kind(words),
        )
        for photo in _readable(photos, split, DAQUAR_HELD_OUT)
        for number, (words, answer) in enumerate(_of(photo, "qa"))
    ]


def daquar_words(words: str) -> str:
    """A question of DAQUAR as people write it: photos have no numbers, and there is a mark at the end."""
    return re.sub(r"\s*\bimage\d+\b", " image", words[:1].upper() + words[1:]).rstrip(" ?") + "?"


def daquar_kind(words: str) -> str:
    """What a question of DAQUAR asks for, typing errors included."""
    lowered = words.lower()
    if lowered.startswith(("how ma", "how an", "number of")):
        return "number"
    asks_color = re.match(r"\w+ (?:(?:is|are|us|id|sre|it) )?(?:the |different )*colou?rs?\b(?! object)", lowered)
    return "color" if asks_color else "object"


def boxed_objects(photos: Photos | NotedPhotos) -> tuple[Labels, Labels]:
    """What is there and what may be, by photo, where boxes say it: {"boxes": [[label, ...], ...]}.

    Raises:
        ValueError: No photo has boxes.
    """
    present = {photo.key: sorted({str(box[0]) for box in _of(photo, "boxes")}) for photo in _readable(photos, "all")}
    if not any(present.values()):
        raise ValueError(f"The photos of {', '.join(photos.origins)} have no boxes to ask for.")
    return present, present


def captioned_objects(photos: Photos | NotedPhotos) -> tuple[Labels, Labels]:
    """Which of COCO's objects are there and which may be, by photo, where captions say it.

    What at least two captions of a photo show is there, and what none so much as may show is not; what is between is not asked
    for (`sfvlm.photos.caption_objects`). People do not tell all they see, so some of what "is not" there is: right answers are fewer
    than with boxes, for every model alike.

    Raises:
        ValueError: No two captions of a photo show the same object.
    """
    captions = {photo.key: photo.captions for photo in _readable(photos, "all")}
    shown = {key: times_shown(texts) for key, texts in captions.items()}
    present = {key: sorted(name for name, times in found.items() if times > 1) for key, found in shown.items()}
    if not any(present.values()):
        raise ValueError(f"The photos of {', '.join(photos.origins)} have no two captions that show the same object.")
    return present, {key: sorted(objects_possible(texts)) for key, texts in captions.items()}


def pope_questions(
    photos: Photos | NotedPhotos,
    seed: int = 0,
    split: Split = "all",
    negatives: Negatives = "matched",
    most: int = 6,
    suffix: str = SHORT_ANSWER,
    objects: Callable[[Photos | NotedPhotos], tuple[Labels, Labels]] = boxed_objects,
) -> list[Question]:
    """As many objects that are there as objects that cannot be; the category is how the latter were chosen.

    Args:
        photos: With what `objects` reads.
        seed: Questions depend on it and on the photos alone.
        split: Photos asked about; which objects come together is known from all of them.
        negatives: How absent objects are chosen.
        most: Present objects asked for, a photo.
        suffix: Below each question.
        objects: Photos to the objects that are there and those that may be.

    Raises:
        ValueError: As `objects` does, or all photos show the same.
    """
    found, possible = objects(photos)
    present = {key: labels for key, labels in found.items() if labels}
    rng = np.random.default_rng(seed)
    asked = {
        key: [labels[i] for i in rng.permutation(len(labels))[:most]]
        for key, labels in present.items()
        if split in ("all", photo_split(key))
    }
    choose = _matched if negatives == "matched" else partial(_pope, negatives=negatives)
    absent = choose(rng, present, possible, asked)
    questions = []
    for key, labels in asked.items():
        pairs = [*((label, "yes") for label in labels), *((label, "no") for label in absent[key])]
        for number, place in enumerate(rng.permutation(len(pairs))):
            label, answer = pairs[place]
            words = f"Is there {with_article(label)} in the image?{suffix}"
            questions.append(Question(f"{key}:{number}", key, words, (answer,), negatives))
    if asked and not questions:
        raise ValueError(
            f"All photos of {', '.join(photos.origins)} show the same objects: there is nothing to ask for."
        )
    return questions


pope_caption_questions = partial(pope_questions, objects=captioned_objects)


def _matched(rng: np.random.Generator, present: Labels, possible: Labels, asked: Labels) -> Labels:
    """Every asked object, as often, about photos without it: sooner those whose objects often come with it.

    Where there are fewer of these, it is taken out of `asked` until it is asked for as often where it is.
    """
    counts, together = _statistics(present)
    times = Counter(label for labels in asked.values() for label in labels)
    absent: Labels = {key: [] for key in asked}
    for label, number in sorted(times.items(), key=lambda item: (-item[1], item[0])):
        free = [key for key in asked if label not in possible[key]]
        if len(free) < number:
            asking = [key for key in asked if label in asked[key]]
            for place in rng.permutation(number)[len(free) :]:
                asked[asking[place]].remove(label)
        if not free:
            continue
        expected = [sum(together[other][label] / counts[other] for other in present[key]) for key in free]
        room = [max(1 - len(absent[key]) / (len(asked[key]) + 1), 0.05) for key in free]
        weights = (0.05 + np.array(expected)) * np.array(room)
        for place in rng.choice(len(free), min(number, len(free)), replace=False, p=weights / weights.sum()):
            absent[free[place]].append(label)
    return absent


def _pope(rng: np.random.Generator, present: Labels, possible: Labels, asked: Labels, negatives: Negatives) -> Labels:
    """POPE's own rules: an absent object for each present one, by chance, the most frequent, or its best company."""
    counts, together = _statistics(present)
    names = sorted(counts)
    absent: Labels = {}
    for key, labels in asked.items():
        absent[key] = []
        for label in labels:
            ranked = {
                "random": [],
                "popular": [name for name, _ in counts.most_common()],
                "adversarial": [name for name, _ in together[label].most_common()],
            }[negatives]
            by_chance = [names[i] for i in rng.permutation(len(names))]
            taken = {*possible[key], *absent[key]}
            absent[key] += [name for name in (*ranked, *by_chance) if name not in taken][:1]
    return absent


def _statistics(present: Labels) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """In how many photos each object is, and each together with each other one."""
    counts: Counter[str] = Counter()
    together: dict[str, Counter[str]] = defaultdict(Counter)
    for labels in present.values():
        counts.update(labels)
        for label in labels:
            together[label].update(other for other in labels if other != label)
    return counts, together


def _readable(photos: Photos | NotedPhotos, split: Split, every: int = COCO_HELD_OUT) -> Iterator[Photo]:
    """The photos of one side; a broken one has no questions."""
    return readable(
        photos, (i for i in range(len(photos)) if split == "all" or photo_split(photos.key(i), every) == split)
    )


FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "questions": (
        '{"question": ..., "answer": ..., "kind": ...}',
        lambda each: (
            isinstance(each, dict) and all(isinstance(each.get(name), str) for name in ("question", "answer", "kind"))
        ),
    ),
    "qa": (
        "[question, answer]",
        lambda each: isinstance(each, list | tuple) and len(each) == 2 and all(isinstance(part, str) for part in each),
    ),
    "boxes": (
        "[label, x, y, w, h]",
        lambda each: isinstance(each, list | tuple) and bool(each) and isinstance(each[0], str),
    ),
}


def _of(photo: Photo, name: str) -> list[Any]:
    """A field of the photo's that questions are made of; none where it is missing.

    Raises:
        ValueError: It is of another form, as other people's data have fields of the same name.
    """
    value = photo.meta.get(name)
    form, fits = FORMS[name]
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(map(fits, value)):
        odd = value if not isinstance(value, list | tuple) else next(each for each in value if not fits(each))
        raise ValueError(f"The photo {photo.key} has {name!r} of another form: {shortened(repr(odd))} is no {form}.")
    return list(value)
