"""The demo on a free port, in this process, for tests."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
sys.path.append(str(Path(__file__).resolve().parents[1] / "demo"))

from sfvlm.evaluate.ranking import Ranker
from sfvlm.look.sides import Sides


@contextmanager
def served(sides: Sides, **options: Any) -> Iterator[str]:
    """Serves the page for these sides; gives its address."""
    from app import DemoCommand, launch
    from page import build_page

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = build_page(sides, Ranker(), **options)
    _, url, _ = launch(page, DemoCommand(port=port), [], prevent_thread_lock=True, quiet=True)
    try:
        yield url
    finally:
        page.close()
