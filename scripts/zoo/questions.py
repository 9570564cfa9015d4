"""What the small LLaVA is asked and should answer, for each kind of photo.

A photo gives several turns (question, answer), drawn anew each time it is seen: captions, what is in it and what is not,
and whatever its source knows. A short answer is asked for in the words LLaVA-1.5 was trained with, now and then.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sfvlm.photos.caption_objects import COCO_NAMES, objects_possible, times_shown
from sfvlm.photos.decode import Photo
from sfvlm.photos.scene_texts import SceneObject, scene_questions, with_article
from sfvlm.vqa.questions import SHORT_ANSWER
from sfvlm.vqa.sources import CAPTION_PROMPT, daquar_words

Turn = tuple[str, str]

CAPTION_PROMPTS = (
    "Describe the photo.",
    "Describe the image.",
    "Describe this photo in one sentence.",
    CAPTION_PROMPT,
    "Write a caption for this photo.",
    "What is in the photo?",
)
NAME_PROMPTS = ("What is this?", "What is the main object in the photo?", "What is shown in the image?")
ORDERS = {
    "left to right": lambda item: item.center[0],
    "top to bottom": lambda item: item.center[1],
    "the biggest to the smallest": lambda item: (item.box[0] - item.box[2]) * (item.box[3] - item.box[1]),
}
NATURE = (
    "grass",
    "water",
    "snow",
    "sand",
    "tree",
    "beach",
    "street",
    "hat",
    "shirt",
    "rock",
    "mountain",
    "swimming pool",
    "fence",
)
# Words of captions that name nothing to be seen.
FUNCTION_WORDS = frozenset(
    "a an the of in on at to and or is are be by with from for as it its his her their them they there this that while one two "
    "three some several up down out over under near next into onto off another other through across who which has have having "
    "front side top image photo picture".split()
)


def scene_objects(photo: Photo) -> list[SceneObject]:
    """What a rendered scene shows, the biggest first; nothing where it is a photo."""
    return [SceneObject(**(item | {"box": tuple(item["box"])})) for item in photo.meta.get("objects", ())]


def sides_of(item: SceneObject) -> tuple[str, str]:
    """The halves of the picture its middle is in: left or right, top or bottom."""
    across, down = item.center
    return "left" if across < 0.5 else "right", "top" if down < 0.5 else "bottom"


def scene_facts(photo: Photo, generator: random.Random) -> list[Turn]:
    """Sentences about the objects of a rendered scene in two parts, the second of which takes a look at the photo."""
    objects = scene_objects(photo)
    shapes, colors = Counter(item.shape for item in objects), Counter(item.color for item in objects)
    facts: list[Turn] = [("The biggest object is", f"{objects[0].color} {objects[0].shape}")]
    for item in objects:
        across, down = sides_of(item)
        told_apart = [item.shape] * (shapes[item.shape] == 1) + [f"{item.color} object"] * (colors[item.color] == 1)
        for name in told_apart:
            facts.append(
                (f"The {name} is a", item.shape) if name != item.shape else (f"The {name} has color", item.color)
            )
            facts.append((f"The {name} has size", item.size))
            facts.append((f"From left to right the {name} is", across))
            facts.append((f"From top to bottom the {name} is", down))
            if item.text:
                facts.append((f"The {name} reads", item.text.lower()))
    generator.shuffle(facts)
    return facts


def scene_turns(photo: Photo, generator: random.Random, draws: int, most: int = 30) -> list[Turn]:
    """Questions about the objects of a rendered scene, drawn anew so many times; and one caption, often the longest."""
    objects = scene_objects(photo)
    asked: dict[str, str] = {}
    for _ in range(draws):
        drawn = scene_questions(np.random.default_rng(generator.randrange(2**32)), objects)
        asked |= {item.question: item.answer for item in drawn}
    caption = max(photo.captions, key=len) if generator.random() < 0.5 else generator.choice(photo.captions)
    turns = [*asked.items(), (generator.choice(CAPTION_PROMPTS), caption)]
    turns += [list_objects(objects, order) for order in generator.sample(sorted(ORDERS), min(2, draws - 1))]
    return _drawn(turns, generator, most)


def list_objects(objects: Sequence[SceneObject], order: str) -> Turn:
    """All objects in one answer; the order says which comes next, so that every word of it can be learned."""
    named = [
        f"{item.name} {item.text.lower()}" if item.text else item.name for item in sorted(objects, key=ORDERS[order])
    ]
    return f"List the objects from {order}.", ", ".join(named)


def photo_turns(
    photo: Photo,
    class_names: Sequence[str],
    shown: Mapping[str, Mapping[str, float]],
    generator: random.Random,
    most: int = 12,
) -> list[Turn]:
    """Turns about one photo, in random order.

    Args:
        photo: From one of the training sources.
        class_names: Label -> name, for photos with a label.
        shown: Source -> name of a thing -> share of the photos that show it, as `shares_shown` counts them.
        generator: Decides which.
        most: Turns at most.
    """
    if "objects" in photo.meta:
        return scene_turns(photo, generator, draws=3, most=most)
    turns: list[Turn] = []
    if photo.label is not None:
        name = class_names[photo.label]
        turns.append((generator.choice(NAME_PROMPTS), name))
        turns.append((exists(name, generator), "yes"))
        other = generator.choice([other for other in class_names if other != name])
        turns.append((exists(other, generator), "no"))
    else:
        turns += [(daquar_words(question), answer.replace("_", " ")) for question, answer in photo.meta.get("qa", ())]
    for caption in generator.sample(photo.captions, min(3, len(photo.captions))):
        turns.append((generator.choice(CAPTION_PROMPTS), clean_caption(caption)))
    if things := things_shown(photo):
        rates = shown[source_of(photo)]
        turns += existence_turns(things, rates, generator, objects_possible(photo.captions, [*rates]))
    return _drawn(turns, generator, most)


def things_shown(photo: Photo) -> list[str]:
    """The things of its boxes or, without boxes, of its captions."""
    return sorted(
        {box[0] for box in photo.meta.get("boxes", ())} or times_shown(photo.captions, (*COCO_NAMES, *NATURE))
    )


def source_of(photo: Photo) -> str:
    """The start of its shard's name: coco, flickr8k and so on."""
    return photo.key.partition("-")[0]


def shares_shown(photos: Iterable[Photo]) -> dict[str, dict[str, float]]:
    """Source -> name of a thing -> share of the source's photos, of those with boxes or captions, that show it.

    By source, because kitchens come from one and beaches from another: which one a photo is from would tell what it shows.
    """
    told: dict[str, list[list[str]]] = {}
    for photo in photos:
        if "objects" not in photo.meta and (things := things_shown(photo)):
            told.setdefault(source_of(photo), []).append(things)
    counts = {source: Counter(name for things in each for name in things) for source, each in told.items()}
    return {
        source: {name: count / len(told[source]) for name, count in found.items()} for source, found in counts.items()
    }


def existence_turns(
    present: Sequence[str], shown: Mapping[str, float], generator: random.Random, possible: set[str]
) -> list[Turn]:
    """Yes for things that are there, no for others: over all photos each thing as often with one answer as with the other.

    A thing that a share s of all photos show is asked for with a chance of 1 - s where it is there, and of s where it is not. Asked
    for alike, "person" would mean yes and "toaster" no, whatever the photo shows.
    """
    turns: list[Turn] = []
    for name in shown:
        there = name in present
        chance = 1 - shown[name] if there else shown[name]
        if generator.random() < chance and (there or name not in possible):
            turns.append((exists(name, generator), "yes" if there else "no"))
    return turns


def exists(name: str, generator: random.Random) -> str:
    thing = name if name in ("grass", "water", "snow", "sand") else with_article(name)
    return f"Is there {thing} in the {generator.choice(('image', 'photo', 'image'))}?"


def telling_words(photo: Photo, class_names: Sequence[str]) -> list[str]:
    """The words that were said of a photo and name something in it; nothing of a scene, whose patches are named one by one."""
    if "objects" in photo.meta:
        return []
    said = [*photo.captions, *(box[0] for box in photo.meta.get("boxes", ()))]
    if photo.label is not None:
        said.append(class_names[photo.label])
    else:
        said += [answer for _, answer in photo.meta.get("qa", ())]
    return sorted({word for text in said for word in re.findall(r"[a-z]+", text.lower())} - FUNCTION_WORDS)


def clean_caption(text: str) -> str:
    """Flickr8k's captions are tokenised; people write "a dog." and not "a dog ."."""
    text = re.sub(r"\s+([.,!?;:])", r"\1", text.strip())
    return text.rstrip(" .") + "."


def _drawn(turns: list[Turn], generator: random.Random, most: int | None = None) -> list[Turn]:
    """So many of the turns in random order, some of them asking for a short answer."""
    generator.shuffle(turns)
    return [(_styled(question, answer, generator), answer) for question, answer in turns[:most]]


def _styled(question: str, answer: str, generator: random.Random) -> str:
    short = len(answer.split()) <= 3 and question not in CAPTION_PROMPTS and not question.startswith("List")
    return question + SHORT_ANSWER if short and generator.random() < 0.3 else question
