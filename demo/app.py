"""Opens the demo in a browser: talk to one LLaVA with its dense tower and with a sparse one, and see where the tokens looked.

With the shipped models, offline, on a CPU (nine seconds until the page was there on two free cores, three quarters of a minute on
busy ones; the first word of an answer then came within a second):

    python demo/app.py

With your own host and tower, or with a folder that scripts/swap_llava_tower.py wrote, which holds both towers:

    python demo/app.py --host llava-hf/llava-1.5-7b-hf --tower runs/sf49 --bits 4
    python demo/app.py --host runs/llava-49

It listens on this computer alone. `--share` opens a public link and `--server-name 0.0.0.0` the network; give `--auth` with
both. All its functions can be called through gradio_client, and by agents with `--mcp`: docs/demo.md.
"""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import importlib.util
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from page import build_page, page_style
from photos import UPLOAD_LIMIT

from sfvlm.cli import run
from sfvlm.evaluate.ranking import Ranker
from sfvlm.look.sides import open_sides
from sfvlm.util.console import say


@dataclass(frozen=True)
class DemoCommand:
    """Talk to a LLaVA, dense and sparse side by side, and see where its tokens looked."""

    host: str = "llava-tiny"
    """Folder, hub id or name of a transformers LLaVA, LLaVA-NeXT or LLaVA-OneVision; or a folder that was swapped."""
    tower: str | None = None
    """SparseFormer folder or name for the sparse side; default the shipped one for the shipped host."""
    num_tokens: int | None = None
    """Image tokens a photo of the sparse side; default the tower's own budget."""
    clip: str = "clip-tiny"
    """CLIP of the zero-shot tab."""
    clip_tower: str = "sparseformer-tiny-49"
    """SparseFormer that was made from it."""
    dtype: str | None = None
    """Default the checkpoint's own, but float32 on a CPU."""
    device: str | None = None
    """Default cuda where there is one."""
    bits: Literal[4, 8] | None = None
    """Loads the LLM by bitsandbytes; towers, projector and output layer stay whole."""
    server_name: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for the whole network."""
    port: int = 7860
    """Port to listen on."""
    users: int = 4
    """Answers that are written at once; who comes later waits in a queue."""
    waiting: int = 64
    """The longest queue."""
    auth: list[str] = field(default_factory=list)
    """NAME:PASSWORD of those who may come in; default everyone."""
    share: bool = False
    """Makes a public link through Gradio's servers."""
    mcp: bool = False
    """Also serves the functions to agents by the Model Context Protocol; needs sfvlm[mcp]."""
    feedback: Path | None = None
    """File to which thumbs up and down in the chat are added, as JSON lines; default none are asked for."""
    browser: bool = False
    """Opens a browser."""


def demo_command(command: DemoCommand) -> None:
    """Opens the models, builds the page and serves it until Ctrl-C."""
    auth = [_name_and_password(each) for each in command.auth]
    check_start(command)
    options = dict(dtype=command.dtype, device=command.device, bits=command.bits)
    sides = open_sides(command.host, command.tower, num_tokens=command.num_tokens, **options)
    if sides.note:
        say(sides.note)
    sides.warm_up()
    page = build_page(sides, _ranker(command), feedback=command.feedback, users=command.users)
    launch(page, command, auth)


def check_start(command: DemoCommand) -> None:
    """What can be refused before models are opened.

    Raises:
        ValueError: Nobody could be served, a package or folder is missing, or the port is taken.
    """
    for flag, number in (("--users", command.users), ("--waiting", command.waiting)):
        if number < 1:
            raise ValueError(f"{flag} is {number}; it must be at least 1, or nobody is answered.")
    if command.mcp and importlib.util.find_spec("mcp") is None:
        raise ValueError("--mcp needs the package mcp: pip install 'sfvlm[mcp]'.")
    if command.feedback is not None and not command.feedback.resolve().parent.is_dir():
        raise ValueError(f"--feedback is {command.feedback}, whose folder does not exist.")
    family = socket.AF_INET6 if ":" in command.server_name else socket.AF_INET
    try:
        socket.create_server((command.server_name.strip("[]"), command.port), family=family).close()
    except (OSError, OverflowError) as error:  # the second of a number that is no port
        reason = str(getattr(error, "strerror", error)).partition(" (while")[0]
        raise ValueError(
            f"{command.server_name}:{command.port} cannot be listened on ({reason.rstrip('.')}): give another --port or "
            "--server-name."
        ) from error


def launch(page: gr.Blocks, command: DemoCommand, auth: list[tuple[str, str]], **options: Any) -> tuple[Any, str, str]:
    """Serves the page; returns Gradio's application and addresses where `prevent_thread_lock` is among the options."""
    page.queue(default_concurrency_limit=command.users, max_size=command.waiting)
    return page.launch(
        server_name=command.server_name,
        server_port=command.port,
        auth=auth or None,
        share=command.share,
        mcp_server=command.mcp,
        inbrowser=command.browser,
        max_file_size=UPLOAD_LIMIT,
        ssr_mode=False,
        show_error=True,
        footer_links=["api"],
        **page_style(),
        **options,
    )


def _ranker(command: DemoCommand) -> Ranker | str:
    """The CLIP of the zero-shot tab; or why there is none."""
    try:
        return Ranker(command.clip, command.clip_tower)
    except ValueError as error:
        return str(error)


def _name_and_password(text: str) -> tuple[str, str]:
    name, mark, password = text.partition(":")
    if not (name and mark and password):
        raise ValueError("--auth takes NAME:PASSWORD.")
    return name, password


if __name__ == "__main__":
    run(demo_command, DemoCommand)
