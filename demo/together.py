"""What Compare and Focus share: two replies that are written together, and their texts and costs so far."""

import threading
from collections.abc import Iterator, Mapping

from sfvlm.chat_reply import Reply
from sfvlm.side_words import cost_in_words
from sfvlm.sides import write_together


def follow(
    replies: Mapping[str, Reply], stop: threading.Event, texts: dict[str, str], costs: dict[str, str]
) -> Iterator[None]:
    """Keeps `texts` and `costs`, by side, up to date; yields after every piece.

    Raises:
        Exception: What one of the replies ended with.
    """
    for piece in write_together(replies, stop):
        texts[piece.side] += piece.text
        if piece.error is not None:
            raise piece.error
        if piece.ended:
            costs[piece.side] = cost_in_words(replies[piece.side].timings)
        yield


def check_question(question: str) -> None:
    """Raises ValueError unless something is asked."""
    if not question.strip():
        raise ValueError("Write a question about the photo.")
