"""Look: where the tokens looked, step by step, what an answer attended to, and what other numbers of tokens say."""

import math
from typing import Any

import gradio as gr
from photos import example_photos, in_words, open_photo, photo_input
from PIL import Image
from together import check_question

from sfvlm.chat import Host
from sfvlm.looking import Looked, look
from sfvlm.side_words import cost_in_words
from sfvlm.sides import Sides
from sfvlm.visualize import describe_boxes, draw_attention, draw_boxes

BOXES, ATTENTION = "Boxes", "What the answer attended to"
ALL_WORDS = -1
BUDGETS = (16, 100)
HINT = "Click into the picture to choose the token that looked there."


def look_tab(sides: Sides, limits: dict[str, Any]) -> None:
    """Builds the tab. API: /look."""
    if sides.sparse is None or sides.tower is None:
        gr.Markdown(f"There are no boxes to show. {sides.note or 'The sparse side of this host has none.'}")
        return
    looked, token = gr.State(None, time_to_live=3600), gr.State(None)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            photo = photo_input(label="Photo", height=260, elem_id="look-photo")
            question = gr.Textbox(label="Question", lines=2, elem_id="look-question")
            budget = gr.Slider(
                *BUDGETS,
                value=sides.tower.config.budget,
                step=1,
                label="Tokens a photo",
                info="Let go of the slider, and the question is answered again",
                interactive=sides.has_budgets,
                elem_id="look-budget",
            )
            ask = gr.Button("Look", variant="primary", elem_id="look-ask")
            answer = gr.Textbox(label="Answer", lines=2, elem_id="look-answer")
            cost = gr.Markdown(elem_classes="cost")
            gr.Examples([list(each) for each in example_photos()], [photo, question], label="Examples")
        with gr.Column(scale=3, min_width=420):
            show = gr.Radio([BOXES, ATTENTION], value=BOXES, show_label=False, elem_id="look-show")
            picture = gr.Image(
                show_label=False,
                interactive=False,
                height=520,
                buttons=["download"],
                format="png",
                elem_id="look-picture",
            )
            caption = gr.Markdown(HINT, elem_classes="hint", elem_id="look-caption")
            step = gr.Slider(1, 2, value=2, step=1, label="Step", elem_id="look-step")
            with gr.Row():
                word = gr.Dropdown([("the whole answer", ALL_WORDS)], value=ALL_WORDS, label="Word of the answer")
                everything = gr.Button("Show all tokens", elem_id="look-all")
    drawing: dict[str, Any] = dict(
        inputs=[looked, step, show, word, token], outputs=[picture, caption], api_visibility="private"
    )
    gr.on(
        [ask.click, question.submit, budget.release],
        Look(sides).look,
        inputs=[photo, question, budget],
        outputs=[answer, cost, picture, caption, looked, step, word, token],
        api_name="look",
        **limits,
    )
    gr.on([step.input, show.input, word.input], draw, show_progress="hidden", **drawing)
    picture.select(_choose, [looked, step], token, api_visibility="private", show_progress="hidden").then(
        draw, show_progress="hidden", **drawing
    )
    everything.click(lambda: None, None, token, api_visibility="private").then(draw, show_progress="hidden", **drawing)


class Look:
    """What the tab calls."""

    def __init__(self, sides: Sides) -> None:
        self.sides = sides

    def look(self, photo: str, question: str, num_tokens: int = 49) -> tuple[Any, ...]:
        """Answers a question about a photo with so many tokens, and shows where they looked.

        Args:
            photo: The photo.
            question: What is asked.
            num_tokens: Image tokens, 16 to 100.

        Returns:
            The answer, what it cost, the photo with the boxes of the last step, and a caption.
        """
        try:
            image = open_photo(photo)
            check_question(question)
            looked = look(self._host(int(num_tokens)), image, question)
        except Exception as error:
            unchanged = [gr.skip()] * 4
            return "", "", None, f"⚠ {in_words(error)}", *unchanged
        last = len(looked.boxes)
        words = [("the whole answer", ALL_WORDS), *((text.strip() or "␣", i) for i, text in enumerate(looked.words))]
        return (
            looked.answer,
            cost_in_words(looked.timings),
            *draw(looked, last, BOXES, ALL_WORDS, None),
            looked,
            gr.Slider(1, last, value=last),
            gr.Dropdown(words, value=ALL_WORDS),
            None,
        )

    def _host(self, num_tokens: int) -> Host:
        """The sparse side at the nearest budget that the host can read."""
        assert self.sides.sparse is not None
        if not self.sides.has_budgets:
            return self.sides.sparse
        num_tokens = min(max(num_tokens, BUDGETS[0]), BUDGETS[1])
        if self.sides.sparse.model.config.model_type != "llava":  # tiles are put together as square grids
            num_tokens = round(math.sqrt(num_tokens)) ** 2
        return self.sides.at_budget(num_tokens)


def draw(looked: Looked | None, step: int, show: str, word: int, token: int | None) -> tuple[Image.Image | None, str]:
    """The picture of one step, and what it shows."""
    if looked is None:
        return None, HINT
    number = min(max(int(step), 1), len(looked.boxes)) - 1
    if looked.chosen and (show == ATTENTION or token is not None):
        number = len(looked.boxes) - 1  # the boxes of the first step are no tokens
    boxes, points = looked.boxes[number], looked.points[number]
    where = f"Step {number + 1} of {len(looked.boxes)}"
    if show == ATTENTION and token is None:
        weights = looked.given_to(None if word == ALL_WORDS else word)
        said = "the whole answer" if word == ALL_WORDS else f"“{looked.words[word].strip()}”"
        text = f"{where}. The lighter, the more {said} attended to the token there: {weights.sum():.0%} of all attention went to "
        return draw_attention(looked.view, boxes, weights), text + "the photo, averaged over layers and heads."
    if token is None:
        context = looked.context if number == len(looked.boxes) - 1 else None
        beside = f" Grey: {len(context)} more, as context." if context is not None and len(context) else ""
        drawn = draw_boxes(looked.view, boxes, context=context)
        return drawn, f"{where}: {describe_boxes(boxes[None])}.{beside} {HINT}"
    token = min(token, len(boxes) - 1)
    width, height = ((boxes[token, i + 2] - boxes[token, i]).item() for i in (0, 1))
    text = f"{where}, token {token + 1} of {len(boxes)}: a box of {width:.0%} x {height:.0%} of the view, where the "
    return draw_boxes(looked.view, boxes, points, [token]), text + "dots read the photo."


def _choose(looked: Looked | None, step: int, place: gr.SelectData) -> int | None:
    if looked is None:
        return None
    x, y = (value / side for value, side in zip(place.index, looked.view.size, strict=True))
    last = len(looked.boxes) - 1
    return looked.token_at(last if looked.chosen else min(int(step) - 1, last), x, y)
