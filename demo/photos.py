"""Photos of the page: what people upload, with its limits, and the examples: real photos and rendered scenes."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sfvlm.photos.decode import decode_image
from sfvlm.photos.scenes import render_scene
from sfvlm.photos.views import too_long
from sfvlm.util.choices import SCENE_TEST_SEED

UPLOAD_LIMIT = "20mb"
MAX_PIXELS = 64_000_000
MAX_RATIO = 64  # of its sides: several people may show photos at once, and a line becomes a large picture
MAX_PHOTOS, MAX_PIXELS_TOGETHER = 16, 2 * MAX_PIXELS  # of a conversation
REAL = Path(__file__).parent / "photos"  # its README says where they are from
EXAMPLES = (  # a photo's name, or a scene's number; what is asked
    ("soccer.jpg", "Describe the photo."),
    ("dog.jpg", "Is there a dog in the photo?"),
    ("bike.jpg", "What is in the photo?"),
    ("bench.jpg", "Is there a person in the photo?"),
    (3, "What color is the biggest object?"),
    (12, "What shape is the biggest object?"),
)


def photo_input(**options: Any) -> gr.Image:
    """An image component that hands over the file unopened, so that a broken photo becomes a message of ours."""
    component = gr.Image(type="filepath", sources=["upload", "clipboard"], buttons=[], **options)
    component.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return component


def open_photo(path: str | None, others: int = 0) -> Image.Image:
    """An uploaded photo, upright; `others` are the pixels of those that are open beside it.

    Raises:
        ValueError: There is none, it is broken, has too many pixels, or is too long for its width.
    """
    if not path:
        raise ValueError("Choose a photo first.")
    left = MAX_PIXELS_TOGETHER - others
    try:
        photo = decode_image(Path(path).read_bytes(), min(MAX_PIXELS, left))
    except (OSError, ValueError) as error:
        reason = str(error)
        if "max_pixels" in reason:
            most = f"{MAX_PIXELS // 10**6} million can be read"
            if left < MAX_PIXELS:
                most = f"{left / 1e6:.0f} million more can be read in this conversation"
            reason = f"it has {reason.split(' is more')[0]} pixels, and at most {most}"
        raise ValueError(f"The photo {Path(path).name} cannot be opened: {reason}.") from error
    why = too_long(photo, MAX_RATIO)
    if why is not None:
        raise ValueError(f"The photo {Path(path).name} {why}.")
    return photo


def open_photos(paths: Sequence[str]) -> list[Image.Image]:
    """The photos of a conversation.

    Raises:
        ValueError: They are too many, have too many pixels together, or one cannot be opened.
    """
    if len(paths) > MAX_PHOTOS:
        raise ValueError(
            f"This conversation has {len(paths)} photos, and at most {MAX_PHOTOS} can be read: show fewer, or start a new one."
        )
    photos: list[Image.Image] = []
    for path in paths:
        photos.append(open_photo(path, sum(photo.width * photo.height for photo in photos)))
    return photos


@functools.cache
def example_path(which: str | int) -> str:
    """A real photo by name, or a rendered scene by number, which is drawn into a temporary folder."""
    if isinstance(which, str):
        return str(REAL / which)
    path = _scenes() / f"scene-{which}.png"
    render_scene(SCENE_TEST_SEED, which, 896).image.save(path)
    return str(path)


@functools.cache
def _scenes() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="sfvlm-examples-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def example_photos() -> list[tuple[str, str]]:
    """Real photos, then rendered ones, each with a question."""
    return [(example_path(which), question) for which, question in EXAMPLES]


def photo_examples(rows: Sequence[Sequence[str]], fields: list[Any], label: str, elem_id: str) -> Any:
    """Examples below the fields that they fill; what happens once they have, follows by `then`."""
    examples = gr.Examples([list(each) for each in rows], fields, label=label, elem_id=elem_id)
    examples.dataset.elem_classes = ["asked"]
    return examples.load_input_event


def in_words(error: BaseException) -> str:
    """An error as a message for people."""
    if isinstance(error, ValueError):
        return str(error)
    if "out of memory" in str(error).lower():
        return "The model ran out of memory: ask for a shorter answer, or show fewer photos."
    first = (str(error).strip().splitlines() or [""])[0]
    return f"The model failed ({type(error).__name__}{': ' if first else ''}{first}). Try again, or another photo."
