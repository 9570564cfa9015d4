"""Look: where the tokens looked, step by step, what an answer attended to, and what other numbers of tokens say."""

import math
from typing import Any

import gradio as gr
from photos import example_photos, in_words, open_photo, photo_examples, photo_input
from PIL import Image
from together import check_question

from sfvlm import SparseFormerConfig
from sfvlm.encoder import roi
from sfvlm.hosts.host import Host
from sfvlm.look.draw import describe_boxes, draw_attention, draw_boxes
from sfvlm.look.looking import Looked, look
from sfvlm.look.sides import Sides
from sfvlm.look.words import cost_in_words

BOXES, ATTENTION = "Boxes", "What the answer attended to"
ALL_WORDS = -1
WHOLE_ANSWER = ("the whole answer", ALL_WORDS)
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
                *budget_range(sides.tower.config),
                value=sides.tower.config.budget,
                step=1,
                label="Tokens a tile" if sides.sparse.tiled else "Tokens a photo",
                info="Let go of the slider, and the question is answered again",
                interactive=sides.has_budgets,
                elem_id="look-budget",
            )
            ask = gr.Button("Look", variant="primary", elem_id="look-ask")
            answer = gr.Textbox(label="Answer", lines=2, elem_id="look-answer")
            cost = gr.Markdown(elem_classes="cost")
            examples = photo_examples(example_photos(), [photo, question], "Examples: a click asks", "look-examples")
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
                word = gr.Dropdown([WHOLE_ANSWER], value=ALL_WORDS, label="Word of the answer")
                everything = gr.Button("Show all tokens", elem_id="look-all")
    # Drawing needs no turn at the model. always_last: what is asked for while something is drawn is drawn next.
    hidden: dict[str, Any] = dict(
        api_visibility="private", show_progress="hidden", trigger_mode="always_last", queue=False
    )
    chosen, drawn = [looked, step, show, word], [picture, caption]
    looking = Look(sides).look
    between: dict[str, Any] = dict(
        inputs=[photo, question, budget],
        outputs=[answer, cost, picture, caption, looked, step, word, token, show],
        **limits,
    )
    gr.on([ask.click, question.submit, budget.release], looking, api_name="look", **between)
    examples.then(looking, api_visibility="private", **between)
    step.input(draw, [*chosen, token], drawn, **hidden)
    gr.on([show.input, everything.click], draw_without_token, chosen, [*drawn, token], **hidden)
    word.input(draw_word, [looked, step, word], [*drawn, token, show], **hidden)
    picture.select(draw_place, chosen, [*drawn, token], **hidden)


class Look:
    """What the tab calls."""

    def __init__(self, sides: Sides) -> None:
        self.sides = sides

    def look(self, photo: str, question: str, num_tokens: int = 49) -> tuple[Any, ...]:
        """Answers a question about a photo with so many tokens, and shows where they looked.

        Args:
            photo: The photo.
            question: What is asked.
            num_tokens: Image tokens, 16 to 100 or the tower's own number; of each tile where the host cuts photos into tiles.

        Returns:
            The answer, what it cost, the photo with the boxes of the last step, and a caption.
        """
        try:
            image = open_photo(photo)
            check_question(question)
            looked = look(self._host(int(num_tokens)), image, question)
            last = len(looked.boxes)
            words = [(text.strip() or "␣", number) for number, text in enumerate(looked.words)]
            return (
                looked.answer,
                cost_in_words(looked.timings),
                *draw(looked, last, BOXES, ALL_WORDS, None),
                looked,
                gr.Slider(1, max(2, last), value=last, visible=last > 1),
                gr.Dropdown([WHOLE_ANSWER, *words], value=ALL_WORDS),
                None,
                BOXES,
            )
        except Exception as error:
            return "", "", None, f"⚠ {in_words(error)}", None, gr.skip(), gr.skip(), None, gr.skip()

    def _host(self, num_tokens: int) -> Host:
        """The sparse side at the nearest budget that the host can read."""
        assert self.sides.sparse is not None and self.sides.tower is not None
        if not self.sides.has_budgets:
            return self.sides.sparse
        low, high = budget_range(self.sides.tower.config)
        num_tokens = min(max(num_tokens, low), high)
        if self.sides.sparse.tiled:  # tiles are put together as square grids
            num_tokens = round(math.sqrt(num_tokens)) ** 2
        return self.sides.at_budget(num_tokens)


def budget_range(config: SparseFormerConfig) -> tuple[int, int]:
    """The fewest and the most tokens that can be asked for: the tower's own number is among them."""
    high = max(BUDGETS[1], config.budget)
    if config.focusing == "chosen":
        high = min(high, config.teacher_grid**2)
    return min(BUDGETS[0], config.budget, high - 1), high


def draw(looked: Looked | None, step: int, show: str, word: int, token: int | None) -> tuple[Image.Image | None, str]:
    """The picture of one step, and what it shows."""
    if looked is None:
        return None, HINT
    last = len(looked.boxes) - 1
    number = min(max(int(step) - 1, 0), last)
    if looked.chosen and (show == ATTENTION or token is not None):
        number = last  # the boxes of the first step are no tokens
    if token is not None:
        return _draw_token(looked, number, token)
    return _draw_attention(looked, number, word) if show == ATTENTION else _draw_all(looked, number)


def _draw_all(looked: Looked, number: int) -> tuple[Image.Image, str]:
    """The boxes of all tokens."""
    boxes = looked.boxes[number]
    context = looked.context if number == len(looked.boxes) - 1 else None
    beside = f" Grey: {len(context)} more, as context." if context is not None and len(context) else ""
    drawn = draw_boxes(looked.view, boxes, context=context)
    return drawn, f"{_where(looked, number)}: {describe_boxes(boxes[None])}.{beside} {HINT}"


def _draw_token(looked: Looked, number: int, token: int) -> tuple[Image.Image, str]:
    """One token's box, and where it read the photo."""
    boxes = looked.boxes[number]
    token = min(token, len(boxes) - 1)
    width, height = roi.sizes(boxes[token]).abs().tolist()
    return draw_boxes(looked.view, boxes, looked.points[number], [token]), (
        f"{_where(looked, number)}, token {token + 1} of {len(boxes)}: a box of {width:.0%} x {height:.0%} of the view, "
        "where the dots read the photo."
    )


def _draw_attention(looked: Looked, number: int, word: int) -> tuple[Image.Image, str]:
    """What the answer attended to, or one word of it."""
    if looked.attention is None:
        return looked.view, f"⚠ What the answer attended to could not be computed. {looked.failure}"
    weights, photo = looked.given_to(None if word == ALL_WORDS else word)
    said = WHOLE_ANSWER[0] if word == ALL_WORDS else f"“{looked.words[word].strip()}”"
    parts = f"; {weights.sum():.0%} to this view of it, the rest to its tiles" if looked.tiled else ""
    return draw_attention(looked.view, looked.boxes[number], weights), (
        f"{_where(looked, number)}. The lighter, the more {said} attended to the token there: {photo:.0%} of all attention "
        f"went to the photo, averaged over layers and heads{parts}."
    )


def _where(looked: Looked, number: int) -> str:
    return f"Step {number + 1} of {len(looked.boxes)}"


def draw_without_token(looked: Looked | None, step: int, show: str, word: int) -> tuple[Image.Image | None, str, None]:
    """The picture, what it shows, and no token: one that was clicked gives way to what is asked for now."""
    return *draw(looked, step, show, word, None), None


def draw_word(looked: Looked | None, step: int, word: int) -> tuple[Image.Image | None, str, None, str]:
    """What a word attended to; no token, and the view that is then shown."""
    return *draw_without_token(looked, step, ATTENTION, word), ATTENTION


def draw_place(
    looked: Looked | None, step: int, show: str, word: int, place: gr.SelectData
) -> tuple[Image.Image | None, str, int | None]:
    """The token that looked at a place of the picture, and which one that is."""
    if looked is None:
        return None, HINT, None
    x, y = (value / side for value, side in zip(place.index, looked.view.size, strict=True))
    last = len(looked.boxes) - 1
    token = looked.token_at(last if looked.chosen else min(int(step) - 1, last), x, y)
    return *draw(looked, step, show, word, token), token
