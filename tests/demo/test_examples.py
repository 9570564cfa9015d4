"""The demo's examples: real photos in the public domain and rendered scenes, each with a question."""

import re
import sys
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio")

sys.path.append(str(Path(__file__).parents[2] / "demo"))
from photos import EXAMPLES, REAL, example_path, example_photos

from sfvlm.look.sides import Sides, open_sides

SAID = {  # a word of a right answer
    "soccer.jpg": "soccer", "dog.jpg": "yes", "bike.jpg": "bike", "bench.jpg": "yes", 3: "purple", 12: "cross"
}  # fmt: skip


@cache
def shipped() -> Sides:
    return open_sides("llava-tiny", device="cpu")


def test_the_first_example_is_a_real_photo_and_scenes_come_last() -> None:
    kinds = [type(which) for which, _ in EXAMPLES]
    assert kinds == sorted(kinds, key=[str, int].index) and kinds.count(str) >= 3 and kinds.count(int) >= 1
    assert all(Path(path).is_file() and question for path, question in example_photos())


def test_the_photos_are_small_named_with_source_and_all_used() -> None:
    photos = sorted(REAL.glob("*.jpg"))
    readme = (REAL / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\S+)` \|.*?(https://www\.pexels\.com/\S+?)\)", readme, re.MULTILINE))
    assert (
        sorted(rows)
        == [photo.name for photo in photos]
        == sorted(which for which, _ in EXAMPLES if isinstance(which, str))
    )
    assert "CC0 1.0" in readme and sum(photo.stat().st_size for photo in photos) < 200_000


@pytest.mark.parametrize(("which", "question"), EXAMPLES, ids=str)
def test_both_towers_of_the_shipped_host_are_right_about_an_example(which: str | int, question: str) -> None:
    for host in shipped().hosts.values():
        (answer,) = host.answer([Image.open(example_path(which))], [question], max_new_tokens=24)
        assert SAID[which] in answer


def test_a_rectangle_of_the_focus_examples_changes_what_is_seen() -> None:
    from focus_tab import EXAMPLES as FOCUSED
    from focus_tab import Focus

    host = shipped().sparse
    assert host is not None
    said = {}
    for which, question, rectangle in FOCUSED:
        *_, (whole, _, focused, _, _, _) = Focus(host).ask(example_path(which), question, rectangle)
        said[which] = whole, focused
    assert said[3] == ("purple", "blue") and said[12] == ("red", "orange")
    assert "boy" in said["soccer.jpg"][1] and "boy" not in said["soccer.jpg"][0]


def test_a_chat_begins_with_the_examples(tmp_path: Path) -> None:
    import gradio as gr
    from chat_tab import chat_tab

    with gr.Blocks(analytics_enabled=False) as page:
        chat_tab(shipped(), None, 1)
    (chat,) = (block for block in page.blocks.values() if isinstance(block, gr.Chatbot))
    assert [example["text"] for example in chat.examples] == [question for _, question in EXAMPLES]
