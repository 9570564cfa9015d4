"""Compare: one question to both sides, which answer together."""

import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
from photos import example_photos, in_words, open_photo, photo_examples, photo_input
from together import Progress, check_question, follow

from sfvlm.hosts.template import user_message
from sfvlm.look.sides import Sides
from sfvlm.look.words import budget_in_words, difference_in_words, word_difference

Shown = tuple[str, str, str, str, str, list[tuple[str, str | None]]]


def compare_tab(sides: Sides, limits: dict[str, Any]) -> None:
    """Builds the tab. API: /compare."""
    if len(sides.hosts) < 2:
        gr.Markdown(f"There is only one side to see. {sides.note}")
        return
    hosts = sides.hosts
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            photo = photo_input(label="Photo", height=300, elem_id="compare-photo")
            question = gr.Textbox(label="Question", lines=2, elem_id="compare-question")
            with gr.Row():
                ask = gr.Button("Ask both", variant="primary", elem_id="compare-ask")
                stop = gr.Button("Stop", elem_id="compare-stop")
            longest = gr.Slider(1, 512, value=128, step=1, label="Longest answer, tokens")
            examples = photo_examples(
                example_photos(), [photo, question], "Examples: a click asks both", "compare-examples"
            )
        with gr.Column(scale=3, min_width=420):
            with gr.Row():
                columns = []
                for name, host in hosts.items():
                    with gr.Column(min_width=200):
                        label = f"{name.capitalize()}: {budget_in_words(host)}"
                        answer = gr.Textbox(label=label, lines=5, max_lines=16, elem_id=f"compare-{name}")
                        columns += [answer, gr.Markdown(elem_classes="cost", elem_id=f"compare-{name}-cost")]
            verdict = gr.Markdown(elem_classes="verdict", elem_id="compare-verdict")
            words = gr.HighlightedText(
                label="The two answers word by word",
                color_map={"dense": "#c7d2fe", "sparse": "#fde68a"},
                show_legend=True,
                elem_id="compare-words",
            )
            gr.Markdown(
                "Both sides write in turns, a word each, and share language model and projector. A side's clock stands still "
                "while the other one computes.",
                elem_classes="hint",
            )
    compare = Compare(sides).ask
    between: dict[str, Any] = dict(inputs=[photo, question, longest], outputs=[*columns, verdict, words], **limits)
    asked = gr.on([ask.click, question.submit], compare, api_name="compare", **between)
    example = examples.then(compare, api_visibility="private", **between)
    stop.click(None, cancels=[asked, example], api_visibility="private")


class Compare:
    """What the tab calls."""

    def __init__(self, sides: Sides) -> None:
        self.sides = sides

    def ask(self, photo: str, question: str, max_tokens: int = 128) -> Iterator[Shown]:
        """Asks a host with its dense and with its sparse tower one question about a photo.

        Args:
            photo: The photo.
            question: What is asked of both.
            max_tokens: The longest answer.

        Returns:
            The dense answer and what it cost, the sparse answer and what it cost, their difference in words, and the two
            answers word by word.
        """
        stop = threading.Event()
        so_far = Progress.start(self.sides.hosts)
        try:
            image = open_photo(photo)
            check_question(question)
            replies = {
                name: host.stream([user_message(question, 1)], [image], max_new_tokens=int(max_tokens), stop=stop)
                for name, host in self.sides.hosts.items()
            }
            for so_far in follow(replies, stop):
                yield _shown(so_far)
            texts = so_far.texts["dense"], so_far.texts["sparse"]
            verdict = difference_in_words(replies["dense"].timings, replies["sparse"].timings, *texts)
            yield _shown(so_far, verdict, word_difference(*texts))
        except Exception as error:
            yield _shown(so_far, f"⚠ {in_words(error)}")
        finally:
            stop.set()


def _shown(so_far: Progress, verdict: str = "", words: list[tuple[str, str | None]] | None = None) -> Shown:
    texts, costs = so_far.texts, so_far.costs
    return texts["dense"].strip(), costs["dense"], texts["sparse"].strip(), costs["sparse"], verdict, words or []
