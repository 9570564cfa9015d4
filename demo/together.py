"""What Compare and Focus share: two replies that are written together, and how far they are."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sfvlm.hosts.reply import Reply
from sfvlm.look.sides import write_together
from sfvlm.look.words import cost_in_words


@dataclass(frozen=True)
class Progress:
    """Replies so far, by side: what they say, and what they cost once they have ended."""

    texts: Mapping[str, str]
    costs: Mapping[str, str]

    @classmethod
    def start(cls, sides: Iterable[str]) -> "Progress":
        """Nothing is said yet."""
        nothing = dict.fromkeys(sides, "")
        return cls(nothing, nothing)


def follow(replies: Mapping[str, Reply], stop: threading.Event) -> Iterator[Progress]:
    """How far the replies are after every piece.

    Raises:
        Exception: What one of the replies ended with.
    """
    so_far = Progress.start(replies)
    for piece in write_together(replies, stop):
        if piece.error is not None:
            raise piece.error
        texts = {**so_far.texts, piece.side: so_far.texts[piece.side] + piece.text}
        cost = cost_in_words(replies[piece.side].timings) if piece.ended else ""
        so_far = Progress(texts, {**so_far.costs, piece.side: cost})
        yield so_far


def check_question(question: str) -> None:
    """Raises ValueError unless something is asked."""
    if not question.strip():
        raise ValueError("Write a question about the photo.")
