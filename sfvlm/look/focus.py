"""A free zoom: a host looks again, with its boxes sent into a rectangle of the photo at the photo's full resolution.

    with focused(host, photo, box) as (twin, pixels):
        twin.stream(messages, [photo], pixel_values=pixels)

and what that is worth on rendered scenes: `ask_scenes` asks about things in them, with and without focus on what is asked about.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..encoder.configuration import SparseFormerConfig
from ..hosts.host import Host
from ..hosts.template import user_message
from ..photos.scene_texts import Box, SceneObject, plural
from ..photos.scene_texts import Question as SceneQuestion
from ..photos.scenes import Scene, render_scene
from ..vqa.questions import SHORT_ANSWER, Question
from .looking import tower_of, view_pixels
from .sides import twin_of

MAX_SIDE = 2048  # pixels
ASKED = ("color", "shape", "read", "count")  # kinds of questions that certain things answer, wherever they lie
SMALL = 0.1  # of the photo's side: the longer side of a small object's box


@contextmanager
def focused(host: Host, image: Image.Image, box: Box, share: float = 1.0) -> Iterator[tuple[Host, Tensor]]:
    """The host with its boxes sent into a rectangle, and the photo's pixels for it, (1, 3, side, side).

    Others may use the host meanwhile: the focus is that of a twin.

    Args:
        host: A plain LLaVA with a SparseFormer as its tower.
        image: The photo, upright.
        box: The rectangle in fractions of the view that the tower sees, the middle square of the photo.
        share: Share of the tokens that go there.

    Raises:
        ValueError: The tower has no boxes, the host cuts photos into tiles, or the rectangle has no area.
    """
    side = focus_side(tower_of(host).config, box, min(image.size))
    pixels = view_pixels(host, image, side)
    twin = twin_of(host)
    with tower_of(twin).focused_on(torch.tensor([box], dtype=torch.float32), share):
        yield twin, pixels


def focus_side(config: SparseFormerConfig, box: Box, available: int) -> int:
    """Pixels of the view's side: the tower's own number falls on the rectangle, as far as the photo has them.

    Raises:
        ValueError: The rectangle has no area.
    """
    shortest = min(box[2] - box[0], box[3] - box[1])
    if shortest <= 0:
        raise ValueError(f"The rectangle {tuple(round(each, 3) for each in box)} has no area.")
    return max(config.image_size, min(available, MAX_SIDE, round(config.image_size / shortest)))


def padded(box: Box, margin: float = 0.5, least: float = 0.1) -> Box:
    """A rectangle with room around it: by a share of its longer side, at least so large, square, and on the photo."""
    side = min(1.0, max(least, (1 + 2 * margin) * max(box[2] - box[0], box[3] - box[1])))
    left, top = (min(max((box[i] + box[i + 2] - side) / 2, 0.0), 1.0 - side) for i in (0, 1))
    return left, top, left + side, top + side


@dataclass(frozen=True)
class Case:
    """A question about one object of a rendered scene, or how many there are of a kind."""

    scene: Scene
    things: tuple[SceneObject, ...]
    question: Question

    @property
    def image(self) -> Image.Image:
        return self.scene.image

    @property
    def box(self) -> Box:
        """Around all that is asked about."""
        x1, y1, x2, y2 = zip(*(thing.box for thing in self.things), strict=True)
        return min(x1), min(y1), max(x2), max(y2)

    @property
    def is_small(self) -> bool:
        """Whether each thing is; they may lie far apart."""
        return all(max(x2 - x1, y2 - y1) < SMALL for x1, y1, x2, y2 in (thing.box for thing in self.things))


def scene_cases(count: int, seed: int, *, image_size: int = 896, small_objects: bool = False) -> list[Case]:
    """Questions about objects of scenes, with more pixels than a tower takes.

    Args:
        count: Scenes.
        seed: Of the scenes.
        image_size: Their side in pixels.
        small_objects: Everything measures 4 to 8 % of the side.
    """
    found = []
    for index in range(count):
        scene = render_scene(seed, index, image_size, small_objects)
        for number, asked in enumerate(scene.questions):
            things = asked_objects(asked, scene.objects) if asked.kind in ASKED else ()
            if things:
                name, text = f"scenes:{seed}:{index}", asked.question + SHORT_ANSWER
                found.append(Case(scene, things, Question(f"{name}:{number}", name, text, (asked.answer,), asked.kind)))
    return found


def asked_objects(asked: SceneQuestion, objects: Sequence[SceneObject]) -> tuple[SceneObject, ...]:
    """What a question is about: one object, or all that are counted; none where it leaves open which one."""
    words = asked.question.rstrip("?").lower().split()
    if asked.kind == "count":
        everything = "How many objects" in asked.question
        return tuple(item for item in objects if everything or item.color in words or plural(item.shape) in words)
    if "biggest" in words:
        return tuple(objects[:1])
    named = tuple(item for item in objects if item.color in words and item.shape in words)
    found = named or tuple(item for item in objects if item.color in words or item.shape in words)
    return found if len(found) == 1 else ()


def ask_scenes(host: Host, cases: Sequence[Case], share: float | None, *, margin: float = 0.5) -> list[str]:
    """Greedy answers; with a share of the tokens focused on what is asked about and the room around it, or without (None)."""
    answers = []
    for case in tqdm(cases, desc=host.source, unit="q"):
        messages = [user_message(case.question.text, 1)]
        if share is None:
            answers += host.answer_messages([messages], [[case.image]], max_new_tokens=16)
            continue
        with focused(host, case.image, padded(case.box, margin), share) as (twin, pixels):
            reply = twin.stream(messages, [case.image], max_new_tokens=16, pixel_values=pixels)
            answers.append("".join(reply).strip())
    return answers


def ask_crops(host: Host, cases: Sequence[Case], *, margin: float = 0.5) -> list[str]:
    """Greedy answers about the same rectangles, cut out and shown as photos of their own: what any host can do."""
    answers = []
    for case in tqdm(cases, desc=f"{host.source}, cut out", unit="q"):
        corners = [round(each * case.image.width) for each in padded(case.box, margin)]
        photo = case.image.crop((corners[0], corners[1], corners[2], corners[3]))
        answers += host.answer([photo], [case.question.text], max_new_tokens=16)
    return answers
