"""Zero-shot: class names that a person types, ranked for a photo by a CLIP, dense and sparse."""

from typing import Any

import gradio as gr
from photos import example_photos, in_words, open_photo, photo_input

from sfvlm.evaluate.ranking import TEMPLATE, Ranker

NAMES = "soccer match\ndog\nbike\nbench\nbeach\nchurch\npurple square\nred cross"


def zeroshot_tab(ranker: Ranker | str, limits: dict[str, Any]) -> None:
    """Builds the tab. API: /rank."""
    if isinstance(ranker, str):
        gr.Markdown(f"There is no CLIP to rank with. {ranker}")
        return
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            photo = photo_input(label="Photo", height=300, elem_id="rank-photo")
            names = gr.Textbox(NAMES, label="Classes, one a line", lines=6, max_lines=12, elem_id="rank-names")
            template = gr.Textbox(TEMPLATE, label="Sentence", info="{c} stands for the class")
            button = gr.Button("Rank", variant="primary", elem_id="rank-ask")
            gr.Examples(
                [[path] for path, _ in example_photos()],
                [photo],
                label="Examples: a click ranks",
                elem_id="rank-examples",
            )
        with gr.Column(scale=3, min_width=420):
            with gr.Row():
                labels = [
                    gr.Label(label=f"{side.capitalize()}: {count} tokens", num_top_classes=8, elem_id=f"rank-{side}")
                    for side, count in ranker.tokens.items()
                ]
            verdict = gr.Markdown(elem_classes="verdict", elem_id="rank-verdict")
    gr.on(
        [button.click, photo.change],
        Rank(ranker).rank,
        inputs=[photo, names, template],
        outputs=[*labels, verdict],
        api_name="rank",
        **limits,
    )


class Rank:
    """What the tab calls."""

    def __init__(self, ranker: Ranker) -> None:
        self.ranker = ranker

    def rank(self, photo: str, names: str, template: str = TEMPLATE) -> tuple[Any, Any, str]:
        """Ranks class names for a photo by a CLIP, with its dense tower and with the sparse one.

        Args:
            photo: The photo.
            names: Class names, one a line.
            template: A sentence with {c} where the class goes.

        Returns:
            Probabilities of the dense tower, of the sparse one, and whether they agree.
        """
        try:
            found = self.ranker.rank(open_photo(photo), names.splitlines(), template)
        except Exception as error:
            return None, None, f"⚠ {in_words(error)}"
        first = {side: next(iter(ranked)) for side, ranked in found.items()}
        if first["dense"] == first["sparse"]:
            verdict = f"Both say **{first['dense']}**."
        else:
            verdict = f"Dense says **{first['dense']}**, sparse says **{first['sparse']}**."
        return found["dense"], found["sparse"], verdict
