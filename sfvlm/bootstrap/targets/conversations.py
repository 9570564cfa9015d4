"""What a host was asked and answered about photos, written in its own chat template, as token ids.

turns --chat template--> text --cut at the photo's mark--> ids in front of it, ids behind it, places of the answers in these
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...hosts.reader import Texts
from ...hosts.template import assistant_message, lacks_start, user_message, written
from ...util.errors import shortened

Turn = tuple[str, str]  # prompt, answer


class Cut(NamedTuple):
    """A text about one photo as ids, cut where the photo stands."""

    before: list[int]
    after: list[int]
    offsets: list[tuple[int, int]]  # in the text, of `after`


def cut(processor: Any, text: str) -> Cut:
    """Tokenizes a text with one mark of a photo.

    Raises:
        ValueError: The mark is missing, or there are several: the chat template has not one place for a photo.
    """
    special = lacks_start(processor, text)
    encoded = processor.tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if ids.count(processor.image_token_id) != 1:
        raise ValueError(f"The host's chat template has not one place for a photo; it makes {text[:80]!r}.")
    photo = ids.index(processor.image_token_id)
    return Cut(ids[:photo], ids[photo + 1 :], offsets[photo + 1 :])


class Conversations:
    """The turns about each photo as one conversation in the host's own chat template.

    Which turn comes first changes from epoch to epoch, because later ones are told of the photo by those before them.

    Args:
        processor: The host's.
        turns: By photo.
        seed: Of the turns' order.
    """

    def __init__(self, processor: Any, turns: Sequence[Sequence[Turn]], seed: int) -> None:
        self.processor, self.turns, self.seed = processor, turns, seed

    def batch(self, index: Tensor, view: Tensor) -> Texts:
        """The conversations about these photos (B,), in these epochs (B,).

        Raises:
            ValueError: The chat template cannot be followed.
        """
        pieces = [self._encode(int(photo), int(epoch)) for photo, epoch in zip(index, view, strict=True)]
        before = pieces[0][0]
        if any(piece[0] != before for piece in pieces):
            raise ValueError("The host's chat template puts other words before one photo than before another.")
        longest = max(len(after) for _, after, _ in pieces)
        pad = self.processor.tokenizer.pad_token_id
        row, place, weight = [], [], []
        for number, (_, _, answers) in enumerate(pieces):
            for span in answers:
                row += [number] * len(span)
                place += span
                weight += [1 / len(span)] * len(span)
        return Texts(
            before=torch.tensor(before),
            after=torch.tensor([after + [pad] * (longest - len(after)) for _, after, _ in pieces]),
            row=torch.tensor(row),
            place=torch.tensor(place),
            weight=torch.tensor(weight),
        )

    def _encode(self, index: int, epoch: int) -> tuple[list[int], list[int], list[list[int]]]:
        """Ids before the photo, ids after it, and where in these each answer stands."""
        turns = list(self.turns[index])
        random.Random(f"{self.seed} {epoch} {index}").shuffle(turns)
        messages: list[dict[str, Any]] = []
        spans: list[tuple[int, int]] = []
        text = ""
        for number, (prompt, answer) in enumerate(turns):
            messages.append(user_message(prompt, images=1 - min(number, 1)))
            asked = written(self.processor, messages)
            messages.append(assistant_message(answer))
            text = written(self.processor, messages, add_generation_prompt=False)
            spans.append((_start_of_answer(asked, text), len(text)))
        parts = cut(self.processor, text)
        places = [
            [place for place, (begin, end) in enumerate(parts.offsets) if begin >= start and start < end <= stop]
            for start, stop in spans
        ]
        return parts.before, parts.after, list(filter(None, places))


def check_template(processor: Any) -> None:
    """Raises ValueError unless answers can be told from what is written around them in the host's chat template."""
    Conversations(processor, [[("?", "yes"), ("?", "no")]], 0).batch(torch.tensor([0]), torch.tensor([0]))
    turns = [user_message("?", 1), assistant_message("yes")]
    text = written(processor, turns, add_generation_prompt=False)
    said = text[_start_of_answer(written(processor, turns[:1]), text) :].lstrip()
    if not said.startswith("yes"):
        raise ValueError(
            f"The host's chat template begins an answer by {shortened(said)!r}, with more than a prompt for one ends with: let it "
            "write that where add_generation_prompt is set."
        )


def _start_of_answer(asked: str, text: str) -> int:
    """Where the answer begins in an answered prompt; LLaVA-OneVision's template puts other white space in front of one.

    Raises:
        ValueError: They differ in more.
    """
    if text.startswith(asked):
        return len(asked)
    prompt = asked.rstrip()
    if not text.startswith(prompt):
        raise ValueError("The host's chat template writes a prompt otherwise once it is answered.")
    return len(text) - len(text[len(prompt) :].lstrip())
