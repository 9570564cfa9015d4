"""The fifth step: some of the photos held back, with what both LLaVAs say of them and where the tokens looked."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..bootstrap.targets.interview import prompts_for, read_prompts
from ..hosts.host import Host
from ..hosts.template import user_message
from ..look.draw import draw_boxes
from ..look.looking import looks_of, seen_view
from ..photos.batches import Selection
from ..photos.decode import Photo
from ..photos.sources import readable
from ..util.files import read_any_json, replacing
from ..util.subsets import spread
from .bench import SPARSE, Bench

SHOWN = 12
QUESTIONS = 2  # a photo: one that describes it, one about a thing in it
LONGEST_ANSWER = 48  # tokens
SIDE = 384  # pixels of the pictures
LIST = "examples.json"


@dataclass(frozen=True)
class Answer:
    """What was asked of a photo, and what both said."""

    prompt: str
    dense: str
    sparse: str


@dataclass(frozen=True)
class Example:
    """A photo of the report.

    Attributes:
        key: The photo's.
        view, boxes: Names of two pictures: the square that both towers see, and the same with the boxes of the tokens.
        answers: To each question.
    """

    key: str
    view: str
    boxes: str
    answers: tuple[Answer, ...]


def show_examples(bench: Bench, photos: Selection, folder: Path) -> None:
    """Writes the folder: pictures, and a list of what was said. The photos are spread evenly over those held back, whatever is said."""
    given = read_prompts(bench.recipe.prompts) if bench.recipe.prompts else ()
    chosen = readable(photos, spread(len(photos), SHOWN))
    with replacing(folder) as temporary:
        temporary.mkdir()
        examples = []
        for number, photo in enumerate(chosen):
            generator = random.Random(f"shown {bench.recipe.seed} {photo.key}")
            prompts = prompts_for(photo, QUESTIONS, generator, given)
            names = _pictures(bench.few[SPARSE], photo, temporary, number)
            examples.append(Example(photo.key, *names, _asked(bench, photo.image, prompts)))
        listed = json.dumps([asdict(example) for example in examples], indent=1)
        (temporary / LIST).write_text(listed + "\n", "utf-8", errors="backslashreplace")


def read_examples(folder: Path) -> list[Example]:
    """What `show_examples` wrote."""
    listed: Any = read_any_json(folder / LIST)
    return [Example(**each | {"answers": tuple(Answer(**answer) for answer in each["answers"])}) for each in listed]


def _asked(bench: Bench, image: Image.Image, prompts: list[str]) -> tuple[Answer, ...]:
    images = [image] * len(prompts)
    both = [host.answer(images, prompts, max_new_tokens=LONGEST_ANSWER) for host in (bench.dense, bench.few[SPARSE])]
    return tuple(Answer(*each) for each in zip(prompts, *both, strict=True))


def _pictures(sparse: Host, photo: Photo, folder: Path, number: int) -> tuple[str, str]:
    """The view, and the view with boxes, as files; their names."""
    view = seen_view(sparse, photo.image, SIDE)
    looks = looks_of(sparse, sparse.encode([[user_message("", 1)]], [[photo.image]])["pixel_values"])
    pictures = {"view": view, "boxes": draw_boxes(view, looks.boxes[-1], context=looks.context)}
    names = {what: f"{number + 1:02d}-{what}.jpg" for what in pictures}
    for what, picture in pictures.items():
        picture.convert("RGB").save(folder / names[what], quality=82, optimize=True)
    return names["view"], names["boxes"]
