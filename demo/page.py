"""The page: a heading and six tabs over the two sides of one host."""

from pathlib import Path
from typing import Any

import gradio as gr
from chat_tab import chat_tab
from compare_tab import compare_tab
from focus_tab import focus_tab
from gradio.themes import Soft
from look_tab import look_tab
from segment_tab import segment_tab
from zeroshot_tab import zeroshot_tab

from sfvlm.evaluate.ranking import Ranker
from sfvlm.look.sides import Sides
from sfvlm.look.words import budget_in_words

# One photo, one word at a time: all that computes with the model shares this queue.
QUEUE = "model"
HOUR = 3600  # seconds
# Inside @media gradio puts the page's own container before each selector, so what lies around it is laid out without.
STYLE = """
.gradio-container {max-width: 1180px !important; margin: 0 auto !important}
.main.fillable {padding: 16px clamp(12px, 4vw, 32px) !important}
#title {padding: 14px 0 2px}
#title h1 {margin: 0; font-size: 1.5rem}
.cost p, .hint p {font-size: .85rem; color: var(--neutral-500); padding: 0 4px}
.dark .cost p {color: var(--neutral-400)}
.dark .hint p {color: var(--neutral-400)}
.verdict p {font-size: 1.05rem; padding: 0 4px}
#chat button[aria-label="Share"], #chat button[title="Share"] {display: none}
#chat .placeholder {text-align: center; flex-grow: 0 !important; padding: 22px 0 10px}
#chat .placeholder-content {justify-content: flex-start !important}
#chat .examples {grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)) !important; gap: 12px !important}
#chat .example {border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 8px !important; overflow: hidden}
#chat .example:hover {border-color: var(--color-accent)}
#chat .example-image-container {width: 100%; height: 118px}
#chat .example-image-container img {width: 100%; height: 100%; object-fit: cover; object-position: center 22%; border-radius: 6px}
#chat .message img {max-height: 230px; width: auto; border-radius: 6px}
.asked thead {display: none}
.asked td {padding: 4px 8px !important; text-align: left !important}
.asked tr > :first-child {width: 76px}
.asked .container, .asked img {width: 64px !important; height: 46px !important; border: none !important; object-fit: cover}
#compare-words .empty {min-height: 90px !important}
footer {opacity: .6}
@media (max-width: 640px) {
  .tab-container button {padding: 0 4px !important; font-size: .82rem}
  #chat .examples {display: grid !important; grid-template-columns: 1fr 1fr !important; gap: 8px !important; width: 100%}
  #chat .example {width: auto !important; min-width: 0 !important}
  #chat .example-image-container {height: 84px}
  #chat .placeholder {padding: 8px 0}
}
"""


def page_style() -> dict[str, Any]:
    """What `launch` takes of the page's looks; fonts are the system's, so that nothing is fetched."""
    fonts = ["system-ui", "sans-serif"]
    theme = Soft(primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"])
    theme = theme.set(
        body_background_fill="*neutral_50",
        block_title_background_fill="none",
        block_title_padding="0",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_label_background_fill="*neutral_50",
        block_label_text_color="*neutral_700",
        block_label_background_fill_dark="*neutral_800",
        block_label_text_color_dark="*neutral_200",
    )
    return {"theme": theme, "css": STYLE}


def build_page(sides: Sides, ranker: Ranker | str, *, feedback: Path | None = None, users: int = 4) -> gr.Blocks:
    """The whole page.

    Args:
        sides: The host.
        ranker: Of the zero-shot tab, or why there is none.
        feedback: File for thumbs up and down; None: none are asked for.
        users: Answers that are written at once.
    """
    # always_last: by default what is asked for while an answer is written is dropped, and the page shows the one before.
    limits: dict[str, Any] = dict(concurrency_limit=users, concurrency_id=QUEUE, trigger_mode="always_last")
    with gr.Blocks(title="sfvlm", analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as page:
        gr.Markdown(f"# sfvlm\n{_heading(sides)}", elem_id="title")
        if sides.note:
            gr.Markdown(f"⚠ {sides.note}")
        with gr.Tab("Chat", id="chat"):
            chat_tab(sides, feedback, users)
        with gr.Tab("Compare", id="compare"):
            compare_tab(sides, limits)
        with gr.Tab("Look", id="look"):
            look_tab(sides, limits)
        with gr.Tab("Focus", id="focus"):
            focus_tab(sides, limits)
        with gr.Tab("Zero-shot", id="zeroshot"):
            zeroshot_tab(ranker, limits)
        with gr.Tab("Segment", id="segment"):
            segment_tab(ranker, limits)
        for each in page.fns.values():
            if each.concurrency_limit != "default":  # ChatInterface takes no queue
                each.concurrency_id = QUEUE
    return page


def _heading(sides: Sides) -> str:
    """What one is talking to."""
    if sides.dense is None or sides.sparse is None:
        return f"**{sides.name}**, {'dense' if sides.sparse is None else 'sparse'} alone."
    number, of_what = budget_in_words(sides.dense).split(" ", 1)
    return (
        f"One LLaVA, **{sides.name}**, with two vision towers: the dense one gives its language model **{number}** {of_what}, "
        f"the sparse one **{sides.sparse.token_budget}**, which choose where to look."
    )
