"""What can be said of a rendered scene: its objects in words, class names, captions and questions.

All sentences are true by construction, and all choices come from the generator that is given.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

T = TypeVar("T")
Box = tuple[float, float, float, float]  # (x1, y1, x2, y2) in fractions of the image
QuestionKind = Literal["color", "shape", "count", "position", "read", "exists", "size"]
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (212, 36, 38),
    "orange": (246, 132, 18),
    "yellow": (250, 216, 40),
    "green": (34, 150, 62),
    "cyan": (48, 208, 222),
    "blue": (32, 78, 212),
    "purple": (126, 46, 168),
    "pink": (248, 128, 186),
    "brown": (112, 66, 30),
    "black": (24, 24, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond", "pentagon", "arrow")
CLASS_NAMES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
MARGIN = 0.15  # centres closer than this along an axis are neither left nor right, above nor below
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class SceneObject:
    """A thing in a scene; `shape` is one of SHAPES, or "digit" or "letter" with its `text`."""

    shape: str
    color: str
    size: str  # "small", "medium" or "large" against the image
    box: Box
    text: str | None = None

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def center(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Question:
    """A question whose short lower-case answer follows from the picture alone."""

    question: str
    answer: str
    kind: QuestionKind


def class_prompt(name: str) -> str:
    """The sentence a text encoder reads for a class: "a picture of an orange star"."""
    if name not in CLASS_NAMES:
        raise ValueError(f"unknown class {name!r}: a class is a colour and a shape, 'red circle'")
    return f"a picture of {with_article(name)}"


def scene_captions(rng: np.random.Generator, objects: Sequence[SceneObject], background: str) -> tuple[str, ...]:
    """Four different true captions; each names the main object."""
    main, others = objects[0], objects[1:]
    captions = [
        f"a picture of {_listing(objects)}",
        f"{_listing(objects)} on a {background} background",
        f"there is {with_article(f'{main.size} {main.name}')} on a {background} background",
        f"{with_article(main.name)} with {_listing(others)}" if others else f"nothing but {with_article(main.name)}",
        f"{len(objects)} objects, the biggest is {with_article(main.name)}" if others else with_article(main.name),
    ]
    for direction in _directions(main.center, (0.5, 0.5)):
        side = {"above": "top", "below": "bottom"}.get(direction, direction)
        captions.append(f"{with_article(main.name)} near the {side} of the picture")
    for other in others:
        if other.name == main.name:
            continue
        for direction in _directions(main.center, other.center)[:1]:
            captions.append(f"{with_article(main.name)} {_relation(direction)} {_listing([other])}")
    return tuple(captions[i] for i in rng.permutation(len(captions))[:4])


def scene_questions(rng: np.random.Generator, objects: Sequence[SceneObject]) -> tuple[Question, ...]:
    """One question of each kind that the picture answers beyond doubt, in any order."""
    main, found = objects[0], [_exists_question(rng, objects)]
    shapes = Counter(item.shape for item in objects)
    colors = Counter(item.color for item in objects)
    names = Counter(item.name for item in objects)
    unique = [item for item in objects if names[item.name] == 1]
    signs = [item for item in objects if item.text]

    def ask(kind: QuestionKind, question: str, answer: str | int) -> None:
        found.append(Question(question, str(answer).lower(), kind))

    ask("shape", "What shape is the biggest object?", main.shape)
    ask("color", "What color is the biggest object?", main.color)
    ask("count", "How many objects are there?", len(objects))
    for shape in sorted({*shapes, pick(rng, SHAPES)}):
        if shape != "circle" or "ring" not in shapes:  # some call a ring a circle
            ask("count", f"How many {plural(shape)} are there?", shapes[shape])
    for color in sorted(set(colors) - {item.color for item in signs}):
        ask("count", f"How many {color} objects are there?", colors[color])
    for item in objects:
        if shapes[item.shape] == 1:
            ask("color", f"What color is the {item.shape}?", item.color)
        if colors[item.color] == 1 and not item.text:
            ask("shape", f"What shape is the {item.color} object?", item.shape)
        if item.text and len(signs) == 1:
            ask("read", f"What {item.shape} is shown?", item.text)
        elif item.text and item in unique:
            ask("read", f"What is the {item.name}?", item.text)
    for item in unique:
        ask("size", f"What size is the {item.name}?", item.size)
        if item is not main and main in unique:
            pair = sorted((main.name, item.name))
            ask("size", f"Which is bigger, the {pair[0]} or the {pair[1]}?", main.name)
        for direction in _directions(item.center, (0.5, 0.5)):
            side = {"above": "top", "below": "bottom"}.get(direction, direction)
            halves = "left or right" if direction == side else "top or bottom"
            ask("position", f"Is the {item.name} on the {halves} of the picture?", side)
        for other in unique:
            for direction in _directions(item.center, other.center):
                truth = bool(rng.integers(2))
                relation = _relation(direction if truth else OPPOSITES[direction])
                question = f"Is the {item.name} {relation} the {other.name}?"
                ask("position", question, "yes" if truth else "no")
    kinds = sorted({question.kind for question in found})
    chosen = [pick(rng, [item for item in found if item.kind == kind]) for kind in kinds]
    return tuple(chosen[i] for i in rng.permutation(len(chosen)))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _exists_question(rng: np.random.Generator, objects: Sequence[SceneObject]) -> Question:
    """Yes or no by a coin; a no joins one object's colour to another's shape where it can."""
    present = [item.name for item in objects if not item.text]
    if rng.random() < 0.5:
        return Question(f"Is there {with_article(pick(rng, present))}?", "yes", "exists")
    # Some call a ring a circle, so a ring rules out the circle of its colour.
    excluded = {*present, *(name.replace("ring", "circle") for name in present)}
    absent = [name for name in CLASS_NAMES if name not in excluded]
    words = {word for item in objects for word in item.name.split()}
    mixed = [name for name in absent if words.issuperset(name.split())]
    near = [name for name in absent if words.intersection(name.split())]
    return Question(f"Is there {with_article(pick(rng, mixed or near))}?", "no", "exists")


def with_article(name: str) -> str:
    """For example "an orange star"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    """For example "crosses"."""
    return name + ("es" if name.endswith("s") else "s")


def _listing(objects: Sequence[SceneObject]) -> str:
    """For example "a red circle, two blue stars and a green digit 7"."""
    parts: list[str] = []
    for (name, text), number in Counter((item.name, item.text) for item in objects).items():
        word = ("no", "one", "two", "three", "four", "five")[number]
        noun = f"{word} {plural(name)}" if number > 1 else with_article(name)
        parts.append(f"{noun} {text}" if text else noun)
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _directions(center: tuple[float, float], origin: tuple[float, float]) -> list[str]:
    """Where `center` lies as seen from `origin`: only what has a clear margin."""
    dx, dy = center[0] - origin[0], center[1] - origin[1]
    found = [("left" if dx < 0 else "right", abs(dx)), ("above" if dy < 0 else "below", abs(dy))]
    return [direction for direction, distance in found if distance > MARGIN]


def _relation(direction: str) -> str:
    return f"to the {direction} of" if direction in ("left", "right") else direction
