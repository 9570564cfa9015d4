"""Focus: a rectangle on the photo into which the tokens are sent, at the photo's full resolution."""

import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
from photos import example_path, in_words, open_photo, photo_examples, photo_input
from PIL import Image, ImageDraw
from rectangle import as_source, rectangle_picture
from together import Progress, check_question, follow

from sfvlm.hosts.host import Host
from sfvlm.hosts.reply import Clock
from sfvlm.hosts.template import user_message
from sfvlm.look.draw import draw_boxes
from sfvlm.look.focus import focused
from sfvlm.look.looking import looks_of, seen_view
from sfvlm.look.sides import Sides
from sfvlm.photos.scene_texts import Box

WHOLE, FOCUSED = "whole", "focused"
START = "Choose a photo, then drag a rectangle over what you want to know more of."
MIDDLE = "30, 30, 70, 70"
EXAMPLES = (  # a photo's name, or a scene's number; what is asked, and the rectangle
    ("soccer.jpg", "Describe the photo.", "70, 20, 100, 90"),
    (3, "What color is the digit?", "36, 36, 56, 56"),
    (12, "What color is the object?", "55, 20, 70, 36"),
)
Shown = tuple[str, str, str, str, Any, str]


def focus_tab(sides: Sides, limits: dict[str, Any]) -> None:
    """Builds the tab. API: /focus."""
    reason = _reason_without(sides)
    if reason:
        gr.Markdown(reason)
        return
    assert sides.sparse is not None
    question = gr.Textbox(label="Question", lines=2, elem_id="focus-question", render=False)
    rectangle = gr.Textbox(
        MIDDLE,
        label="Rectangle",
        info="Left, top, right, bottom in % of the view",
        elem_id="focus-rectangle",
        render=False,
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=360):
            photo = photo_input(label="Photo", height=380, elem_id="focus-photo")
            picture = rectangle_picture(visible=False, elem_id="focus-picture")
            hint = gr.Markdown(START, elem_classes="hint")
            with gr.Row():
                another = gr.Button("Another photo", visible=False, elem_id="focus-another")
            rows = [(example_path(which), *asked) for which, *asked in EXAMPLES]
            examples = photo_examples(rows, [photo, question, rectangle], "Examples: a click asks", "focus-examples")
        with gr.Column(scale=1, min_width=360):
            question.render()
            rectangle.render()
            share = gr.Slider(
                10, 100, value=100, step=5, label="Tokens sent into the rectangle, %", elem_id="focus-share"
            )
            with gr.Row():
                ask = gr.Button("Ask with focus", variant="primary", elem_id="focus-ask")
                stop = gr.Button("Stop")
            whole = gr.Textbox(label="Answer from the whole photo", lines=2, elem_id="focus-whole")
            whole_cost = gr.Markdown(elem_classes="cost")
            answer = gr.Textbox(label="Answer with focus", lines=2, elem_id="focus-answer")
            cost = gr.Markdown(elem_classes="cost")
            verdict = gr.Markdown(elem_classes="hint", elem_id="focus-verdict")
            boxes = gr.Image(
                label="Where the tokens looked", interactive=False, height=320, buttons=[], elem_id="focus-boxes"
            )
    focus = Focus(sides.sparse).ask
    between: dict[str, Any] = dict(
        inputs=[photo, question, rectangle, share],
        outputs=[whole, whole_cost, answer, cost, boxes, verdict],
        **limits,
    )
    asked = gr.on([ask.click, question.submit], focus, api_name="focus", **between)
    example = examples.then(focus, api_visibility="private", **between)
    stop.click(None, cancels=[asked, example], api_visibility="private")
    chosen: dict[str, Any] = dict(
        outputs=[picture, photo, another, hint], api_visibility="private", show_progress="hidden"
    )
    photo.change(_Chosen(sides.sparse).show, photo, **chosen)
    another.click(lambda: (None, MIDDLE), None, [photo, rectangle], api_visibility="private")
    picture.select(_drawn, None, rectangle, api_visibility="private", show_progress="hidden")


def _reason_without(sides: Sides) -> str:
    """Why the tab is empty."""
    if sides.sparse is None or sides.tower is None:
        return f"There are no boxes to send anywhere. {sides.note or 'The sparse side of this host has none.'}"
    if sides.sparse.tiled:
        return "Focus is for hosts that see a photo as one square; this one cuts it into tiles."
    return ""


class Focus:
    """What the tab calls."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def ask(self, photo: str, question: str, rectangle: str = MIDDLE, share: float = 100) -> Iterator[Shown]:
        """Answers a question from the whole photo, and again with the tokens' boxes sent into a rectangle of it.

        Args:
            photo: The photo.
            question: What is asked.
            rectangle: Left, top, right and bottom in % of the view, the middle square of the photo.
            share: How many % of the tokens go there.

        Returns:
            The answer from the whole photo and its cost, the answer with focus and its cost, the view with all boxes, and
            what was read.
        """
        stop = threading.Event()
        so_far = Progress.start((WHOLE, FOCUSED))
        drawn = None
        try:
            image, box = open_photo(photo), parse_rectangle(rectangle)
            check_question(question)
            messages = [user_message(question, 1)]
            clock = Clock()
            with focused(self.host, image, box, share / 100) as (twin, pixels):
                clock.stop()
                looks = looks_of(twin, pixels)
                drawn = _outlined(draw_boxes(seen_view(self.host, image), looks.boxes[-1], context=looks.context), box)
                told = f"The view was read at {pixels.shape[-1]} x {pixels.shape[-1]} pixels; the photo has {image.width} x {image.height}."
                replies = {
                    WHOLE: self.host.stream(messages, [image], max_new_tokens=64, stop=stop),
                    FOCUSED: twin.stream(
                        messages, [image], max_new_tokens=64, stop=stop, pixel_values=pixels, clock=clock
                    ),
                }
                yield _shown(so_far, drawn, told)
                for so_far in follow(replies, stop):
                    yield _shown(so_far, gr.skip(), told)  # the picture stays: to send it takes as long as some words
            yield _shown(so_far, drawn, told)  # gradio_client hands over what comes last
        except Exception as error:
            yield _shown(so_far, drawn, f"⚠ {in_words(error)}")
        finally:
            stop.set()


def parse_rectangle(text: str) -> Box:
    """Four numbers in % to fractions.

    Raises:
        ValueError: They are not four, or not a rectangle of the view.
    """
    try:
        x1, y1, x2, y2 = (float(each) / 100 for each in text.split(","))
    except ValueError:
        raise ValueError(f"The rectangle is {text!r}; it must be four numbers, such as {MIDDLE}.") from None
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        raise ValueError(f"The rectangle {text} is not on the view: left < right and top < bottom, from 0 to 100 %.")
    return x1, y1, x2, y2


def _outlined(picture: Image.Image, box: Box) -> Image.Image:
    corners = [value * side for value, side in zip(box, picture.size * 2, strict=True)]
    ImageDraw.Draw(picture).rectangle(corners, outline="white", width=4)
    return picture


def _shown(so_far: Progress, drawn: Any, told: str) -> Shown:
    texts, costs = so_far.texts, so_far.costs
    return texts[WHOLE].strip(), costs[WHOLE], texts[FOCUSED].strip(), costs[FOCUSED], drawn, told


class _Chosen:
    """Shows the view of a photo in place of the photo, to be drawn on."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def show(self, path: str | None) -> tuple[Any, Any, Any, str]:
        hidden, shown = gr.update(visible=False), gr.update(visible=True)
        if path is None:
            return hidden, shown, hidden, START
        try:
            view = seen_view(self.host, open_photo(path))
        except Exception as error:
            return hidden, shown, hidden, f"⚠ {in_words(error)}"
        told = "This is what the tower sees. Drag a rectangle over what you want to know more of."
        return gr.update(value=as_source(view), visible=True), hidden, shown, told


def _drawn(event: gr.EventData) -> str:
    return ", ".join(f"{100 * value:.0f}" for value in event.box)
