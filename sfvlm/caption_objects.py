"""Objects that captions name: COCO's 80, by the words people use for them.

    captions -> their words and pairs of words -> the objects that one of them stands for

A word list like CHAIR's (arXiv 1809.02156): what a caption does not say may be there all the same, and a word may mean
something else. The more captions of a photo agree, the surer.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

COCO_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking meter, "
    "bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, "
    "frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, "
    "wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, "
    "chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, "
    "toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
).split(", ")
# Words of captions that show a thing though they do not name it; the others are shown by their name or its plural.
SAYS = {
    "person": "person people man men woman women boy boys girl girls child children kid kids lady guy player players".split(),
    "dog": "dog dogs puppy puppies".split(),
    "car": "car cars".split(),
    "bicycle": "bicycle bike bikes bicycles bicyclist biker cyclist".split(),
    "motorcycle": "motorcycle motorcycles motorbike".split(),
    "sports ball": "ball balls soccer basketball football volleyball tennis baseball".split(),
    "boat": "boat boats kayak canoe ship".split(),
    "surfboard": "surfboard surfer surfing surfs surf".split(),
    "skateboard": "skateboard skateboarder skateboarding skateboards".split(),
    "snowboard": "snowboard snowboarder snowboarding".split(),
    "bird": "bird birds seagull duck ducks".split(),
    "couch": "couch sofa".split(),
    "frisbee": "frisbee".split(),
    "orange": ["oranges"],  # else the colour
}


def times_named(captions: Iterable[str], names: Sequence[str] = COCO_NAMES) -> Counter[str]:
    """In how many of the captions each object is named; none of 0."""
    return Counter(name for words in map(words_and_pairs, captions) for name in names if is_named(name, words))


def is_named(name: str, words: set[str]) -> bool:
    """Whether one of these words stands for the object."""
    return not words.isdisjoint(SAYS.get(name, [name, f"{name}s", f"{name}es"]))


def words_and_pairs(text: str) -> set[str]:
    """The lower-case words of a text, and its pairs of neighbours."""
    words = re.findall(r"[a-z]+", text.lower())
    return {*words, *(f"{first} {second}" for first, second in pairwise(words))}
