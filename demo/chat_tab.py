"""Chat: a conversation with one side of the host, about photos."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from photos import example_photos, in_words, open_photos

from sfvlm.hosts.host import Host
from sfvlm.hosts.template import Message, assistant_message, user_message
from sfvlm.look.sides import Sides
from sfvlm.look.words import budget_in_words, cost_in_words

EMPTY = "Write a question, with or without a photo."
# What stands in place of an answer; a warning may also follow its first words.
WAITING, WARNING, SILENT = "…", "⚠", "*(The model ended without a word.)*"


def chat_tab(sides: Sides, feedback: Path | None, users: int) -> None:
    """Builds the tab. API: /chat."""
    hosts = sides.hosts
    written = gr.State({})  # the side of each answer, which thumbs are about
    with gr.Row():
        with gr.Column(scale=3, min_width=420):
            chatbot = gr.Chatbot(
                height=560,
                render=False,
                show_label=False,
                elem_id="chat",
                placeholder="**Ask about a photo.**\n\nDrop one into the box below, or click an example.",
                buttons=["copy"],
                feedback_options=None if feedback is None else ("Like", "Dislike"),
            )
            holder = gr.Column()
            cost = gr.Markdown("", elem_classes="cost", elem_id="chat-cost")
        with gr.Column(scale=1, min_width=220):
            settings = _settings(hosts)
    box = gr.MultimodalTextbox(
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        placeholder="A question about a photo",
        show_label=False,
        stop_btn=True,
        elem_id="chat-box",
        render=False,
    )
    with holder:
        gr.ChatInterface(
            Chat(hosts).answer,
            multimodal=True,
            chatbot=chatbot,
            textbox=box,
            # Without values for the settings: they then lie in the chat, and a click asks.
            examples=[[{"text": text, "files": [path]}] for path, text in example_photos()],
            additional_inputs=[*settings, written],
            additional_outputs=[cost, written],
            concurrency_limit=users,
            api_name="chat",
            autofocus=False,
            flagging_mode="never",
            fill_height=False,
        )
    if feedback is not None:
        chatbot.like(Feedback(feedback, sides.name).add, inputs=[chatbot, written], api_visibility="private")


def _settings(hosts: dict[str, Host]) -> list[Any]:
    """Side, sampling, length and system prompt."""
    names = list(hosts)
    choices = [(f"{name.capitalize()}, {budget_in_words(hosts[name])}", name) for name in names]
    side = gr.Radio(choices, value=names[-1], label="Tower", elem_id="chat-side")
    longest = gr.Slider(1, 1024, value=256, step=1, label="Longest answer, tokens")
    temperature = gr.Slider(0, 1.5, value=0, step=0.05, label="Temperature", info="0: always the likeliest word")
    top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p", info="Share of the likelihood to choose from")
    system = gr.Textbox(label="System prompt", lines=2, placeholder="The host's own")
    with gr.Accordion("The host's chat template", open=False):
        gr.Code(next(iter(hosts.values())).template, language=None, show_label=False, max_lines=14)
    return [side, temperature, top_p, longest, system]


class Chat:
    """What the chat calls."""

    def __init__(self, hosts: dict[str, Host]) -> None:
        self.hosts = hosts

    def answer(
        self,
        message: dict[str, Any],
        history: list[dict[str, Any]],
        side: str,
        temperature: float,
        top_p: float,
        max_tokens: int,
        system: str,
        written: dict[int, str],
    ) -> Iterator[tuple[str, str, dict[int, str]]]:
        """Answers the next turn of a conversation about photos, piece by piece.

        Args:
            message: The turn, {"text": ..., "files": [...]}.
            history: The turns before.
            side: "dense" or "sparse": the tower that reads the photos.
            temperature: 0 always takes the likeliest word.
            top_p: Share of the likelihood to choose from.
            max_tokens: The longest answer.
            system: A system prompt; empty for the host's own.
            written: The sides of the answers before, by number.

        Returns:
            The answer so far, what it cost, and the sides with its own.
        """
        stop = threading.Event()
        text = ""
        written = written | {_answers(history): side}
        try:
            turns, paths = conversation(message, history, system)
            photos = open_photos(paths)
            reply = self.hosts[side].stream(
                turns, photos, max_new_tokens=int(max_tokens), temperature=temperature, top_p=top_p, stop=stop
            )
            yield WAITING, "", written
            for piece in reply:
                text += piece
                yield text, "", written
            yield text.strip() or SILENT, cost_in_words(reply.timings), written
        except Exception as error:
            yield f"{text}\n\n{WARNING} {in_words(error)}".strip(), "", written
        finally:
            stop.set()


def conversation(
    message: dict[str, Any], history: list[dict[str, Any]], system: str
) -> tuple[list[Message], list[str]]:
    """Turns as hosts take them and the photos' paths, from what the page keeps and what gradio_client sends.

    What ended in a warning is left out, its photos too: a broken one would stop every further turn. Photos that came without
    a question, or got no answer, belong to the next one.

    Raises:
        ValueError: Nothing is asked.
    """
    text, files = (message.get("text") or "").strip(), list(message.get("files") or [])
    if not text:
        raise ValueError(EMPTY)
    turns: list[Message] = []
    paths: list[str] = []
    pending: list[str] = []  # photos that nothing was said about yet
    for exchange in _exchanges(history):
        pending += exchange.photos
        if exchange.outcome == "answered":
            turns += [user_message(exchange.words, len(pending)), assistant_message(exchange.answer)]
            paths += pending
        if exchange.outcome != "unanswered":
            pending = []
    pending += [_path(file) for file in files]
    turns.append(user_message(text, len(pending)))
    if system.strip():
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system.strip()}]})
    return turns, paths + pending


@dataclass(frozen=True)
class Exchange:
    """What a person wrote and showed, and what stands below it."""

    words: str
    photos: list[str]
    answer: str

    @property
    def outcome(self) -> Literal["answered", "failed", "unanswered"]:
        if not self.words or self.answer in ("", WAITING, SILENT):
            return "unanswered"
        return "failed" if f"\n\n{WARNING}" in f"\n\n{self.answer}" else "answered"


def _exchanges(history: list[dict[str, Any]]) -> Iterator[Exchange]:
    """A conversation cut behind each answer; the page keeps words and photos of one turn as messages of their own."""
    words: list[str] = []
    photos: list[str] = []
    for turn in history:
        text, files = _parts(turn["content"])
        if turn["role"] == "user":
            words += [text] if text else []
            photos += files
        elif turn["role"] == "assistant":
            yield Exchange("\n".join(words), photos, text)
            words, photos = [], []
    yield Exchange("\n".join(words), photos, "")


def _parts(content: Any) -> tuple[str, list[str]]:
    """Text and files of one message: a text, a file, or a list of both, as components or plain."""
    words: list[str] = []
    files: list[str] = []
    for part in content if isinstance(content, list | tuple) else [content]:
        if isinstance(part, str):
            words.append(part)
        elif isinstance(part, dict) and part.get("type") == "text":
            words.append(part.get("text") or "")
        elif part is not None:
            files.append(_path(part["file"] if isinstance(part, dict) and "file" in part else part))
    return "\n".join(words).strip(), files


def _answers(history: list[dict[str, Any]]) -> int:
    """How many there are."""
    return sum(turn["role"] == "assistant" for turn in history)


def _path(file: Any) -> str:
    if isinstance(file, str):
        return file
    path = file.get("path") if isinstance(file, dict) else getattr(file, "path", None)
    if not path:
        raise ValueError("A photo of this conversation is not there any more: clear it and start anew.")
    return str(path)


class Feedback:
    """Adds a thumb up or down, with the conversation's text, to a file of JSON lines; photos are only counted.

    "liked" is true, false, or null where a thumb is taken back.
    """

    def __init__(self, path: Path, host: str) -> None:
        self.path, self.host, self._guard = path, host, threading.Lock()

    def add(self, history: list[dict[str, Any]], written: dict[int, str], liked: gr.LikeData) -> None:
        assert isinstance(liked.index, int)
        turns = []
        for turn in history:
            words, files = _parts(turn["content"])
            turns.append({"role": turn["role"], "text": words, "photos": len(files)})
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "host": self.host,
            "side": written.get(_answers(history[: liked.index])),
            "liked": liked.liked if isinstance(liked.liked, bool) else None,
            "message": liked.index,
            "conversation": turns,
        }
        with self._guard, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
