"""Segment: class names that a person types, as a map of the photo by a CLIP, dense and sparse beside each other."""

import html
from typing import Any

import gradio as gr
from photos import example_photos, in_words, open_photo, photo_input

from sfvlm.dense.vocabulary import WAYS
from sfvlm.evaluate.ranking import Ranker
from sfvlm.segmentation.overlays import colour_of, overlay
from sfvlm.segmentation.painter import Painted, Painter, agreement

NAMES = "dog\nperson\ngrass, lawn\nsky\ntree\nroad\nwall\nwater"


def segment_tab(ranker: Ranker | str, limits: dict[str, Any]) -> None:
    """Builds the tab, on the models of the zero-shot tab. API: /segment."""
    if isinstance(ranker, str):
        gr.Markdown(f"There is no CLIP to segment with. {ranker}")
        return
    tokens, classes = ranker.tokens, "Classes, one a line"
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            photo = photo_input(label="Photo", height=300, elem_id="segment-photo")
            names = gr.Textbox(
                NAMES,
                label=classes,
                info="Several names of one: grass, lawn",
                lines=6,
                max_lines=12,
                elem_id="segment-names",
            )
            budget = gr.Slider(
                4,
                tokens["dense"],
                tokens["sparse"],
                step=1,
                label="Tokens of the sparse side",
                elem_id="segment-budget",
            )
            with gr.Accordion("More", open=False):
                way = gr.Dropdown(
                    list(WAYS),
                    value="sclip",
                    label="Last block",
                    info="How it is changed, so that tokens keep to themselves",
                )
                threshold = gr.Slider(
                    0, 0.9, 0, step=0.05, label="Least probability", info="Pixels below it stay as they are"
                )
            button = gr.Button("Segment", variant="primary", elem_id="segment-ask")
            gr.Examples([[path] for path, _ in example_photos()], [photo], label="Examples")
        with gr.Column(scale=3, min_width=420):
            with gr.Row():
                pictures = [
                    gr.Image(label=side.capitalize(), interactive=False, buttons=[], elem_id=f"segment-{side}")
                    for side in tokens
                ]
            legend = gr.HTML(elem_id="segment-legend")
            verdict = gr.Markdown(elem_classes="verdict", elem_id="segment-verdict")
    gr.on(
        [button.click, photo.change, budget.release],
        Segment(Painter(ranker.dense, ranker.text, ranker.sparse)).segment,
        inputs=[photo, names, budget, way, threshold],
        outputs=[*pictures, legend, verdict],
        api_name="segment",
        **limits,
    )


class Segment:
    """What the tab calls."""

    def __init__(self, painter: Painter) -> None:
        self.painter = painter

    def segment(
        self, photo: str, names: str, num_tokens: int = 49, way: str = "sclip", threshold: float = 0.0
    ) -> tuple[Any, Any, str, str]:
        """Finds classes in a photo by their names, with a CLIP's dense tower and with the sparse one.

        Args:
            photo: The photo.
            names: Classes, one a line; several names of one parted by commas.
            num_tokens: Image tokens of the sparse tower.
            way: How the last block is changed: clip, maskclip, sclip, clearclip or naclip.
            threshold: Least probability; pixels below it stay as they are.

        Returns:
            The photo in the colours of what the dense tower sees, of what the sparse one sees, the legend, and how far they agree.
        """
        try:
            image = open_photo(photo)
            found = self.painter.paint(image, names.splitlines(), way, int(num_tokens), threshold)  # type: ignore[arg-type]
        except Exception as error:
            return None, None, "", f"⚠ {in_words(error)}"
        classes = [line.split(",")[0].strip() for line in names.splitlines() if line.strip(" ,;")]
        small = image.convert("RGB").resize(found["dense"].classes.shape[::-1])
        dense, sparse = (overlay(small, found[side].classes) for side in ("dense", "sparse"))
        verdict = (
            f"{found['sparse'].tokens} tokens instead of {found['dense'].tokens}: **{agreement(found):.0%}** of the pixels are "
            "called the same."
        )
        return dense, sparse, legend_of(classes, found), verdict


def legend_of(classes: list[str], found: dict[str, Painted]) -> str:
    """Colours and shares of the classes that are in one of the maps."""
    rows = []
    for number, name in enumerate(classes):
        shares = [each.shares.get(name, 0.0) for each in found.values()]
        if max(shares) < 0.005:
            continue
        square = f'<span style="display:inline-block;width:12px;height:12px;background:rgb{colour_of(number)}"></span>'
        said = " and ".join(f"{share:.0%} {side}" for share, side in zip(shares, found, strict=True))
        rows.append(f"<span style='white-space:nowrap;margin-right:14px'>{square} {html.escape(name)}: {said}</span>")
    return " ".join(rows)
