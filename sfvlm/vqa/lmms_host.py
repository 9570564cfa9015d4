"""A host as lmms-eval (0.7) asks it; only lmms-eval's own process imports this module."""

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from tqdm import tqdm
from transformers import GenerationConfig

from ..hosts.host import open_host
from ..hosts.template import Message
from ..photos.decode import to_rgb
from ..photos.views import too_long

# Settings that are read, or say nothing to who takes the likeliest word; and values by which the others do nothing.
READ, NEUTRAL = {"max_new_tokens", "do_sample", "temperature", "num_beams", "top_p", "top_k"}, (None, 0, 1, False, True)
MAX_NEW_TOKENS = 1024  # where a task gives no length, as in lmms-eval's own LLaVA


class SfvlmHost(lmms):
    """A host as lmms-eval asks it.

    Args:
        pretrained: A host's folder or hub id.
        batch_size: Questions at once.
        device: Default cuda where there is one.
        dtype: Default the checkpoint's own, but float32 on a CPU.
        bits: 4 or 8, by bitsandbytes.
        max_batch_size: What lmms-eval passes along; batches have one size here.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        bits: Any = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}, and sfvlm needs a number of questions: --batch_size 8.")
        # lmms-eval gives each process its share of the questions by rank, and gathers them itself.
        self._rank, self._world_size, place = (
            int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        if self._world_size > 1 and torch.cuda.is_available():
            device = f"cuda:{place}"
        self.host = open_host(pretrained, dtype=dtype, device=device, bits=bits)
        self.batch_size_per_gpu = int(batch_size)

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size

    @property
    def device(self) -> Any:
        return self.host.model.device

    @property
    def tokenizer(self) -> Any:
        return self.host.processor.tokenizer

    @property
    def config(self) -> Any:
        return self.host.model.config

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def max_length(self) -> int:
        return self.config.get_text_config().max_position_embeddings

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests; those of one length are asked together. A photo that no host can be shown is
        answered by nothing, which a warning says.

        Raises:
            ValueError: A task wants sampling or beams, or anything else by which answers are no greedy ones.
        """
        texts: list[str] = [""] * len(requests)
        unshown: dict[int, str] = {}  # by place, why
        with tqdm(total=len(requests), disable=self.rank != 0, desc="sfvlm") as bar:
            for places in self._batches(requests):
                settings = requests[places[0]].args[2]
                asked = {place: self._conversation(requests[place]) for place in places}
                strips = {place: why for place, (_, images) in asked.items() if (why := _too_long(images)) is not None}
                unshown |= strips
                whole = [place for place in places if place not in strips]
                answers = self.host.answer_messages(
                    [asked[place][0] for place in whole],
                    [asked[place][1] for place in whole],
                    max_new_tokens=int(settings.get("max_new_tokens", MAX_NEW_TOKENS)),
                )
                for place, answer in zip(whole, answers, strict=True):
                    context, _, settings, *_ = requests[place].args
                    texts[place] = _until(answer, settings.get("until"))
                    self.cache_hook.add_partial("generate_until", (context, settings), texts[place])
                bar.update(len(places))
        if unshown:
            place, why = next(iter(unshown.items()))
            number, task = requests[place].args[3:5]
            warnings.warn(
                f"{len(unshown)} questions are answered by nothing, because their photos cannot be shown; the first of them is {number} "
                f"of {task}: its photo {why}.",
                stacklevel=2,
            )
        return texts

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        raise NotImplementedError("sfvlm answers questions; it does not score given answers.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> Any:
        raise NotImplementedError("sfvlm answers questions of one round.")

    def _batches(self, requests: Sequence[Any]) -> Iterator[list[int]]:
        """Places in `requests` whose answers may be equally long."""
        by_settings: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            settings = request.args[2]
            others = [
                name
                for name in vars(GenerationConfig()).keys() & settings.keys() - READ
                if settings[name] not in NEUTRAL
            ]
            if settings.get("do_sample") or settings.get("temperature") or settings.get("num_beams", 1) > 1 or others:
                raise ValueError(f"sfvlm answers greedily; the task {request.args[4]} asks for {settings}.")
            by_settings.setdefault(str(settings.get("max_new_tokens")), []).append(place)
        for places in by_settings.values():
            for start in range(0, len(places), self.batch_size_per_gpu):
                yield places[start : start + self.batch_size_per_gpu]

    def _conversation(self, request: Any) -> tuple[list[Message], list[Any]]:
        """Messages and photos of a request: (context, doc_to_messages, settings, doc_id, task, split)."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages: list[Message] = []
        images: list[Any] = []
        for message in doc_to_messages(self.task_dict[task][split][doc_id]):
            parts = []
            for part in message["content"]:
                if part["type"] not in ("image", "text"):
                    raise ValueError(f"sfvlm reads photos and text; the task {task} has {part['type']}.")
                parts.append({"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["text"]})
                images += [to_rgb(part["url"])] if part["type"] == "image" else []
            messages.append({"role": message["role"], "content": parts})
        return messages, images


def _too_long(images: Sequence[Any]) -> str | None:
    """Why one of these photos cannot be shown; None where all can."""
    return next(filter(None, map(too_long, images)), None)


def _until(text: str, stops: str | Sequence[str] | None) -> str:
    """The text before the first of the stop strings."""
    for stop in [stops] if isinstance(stops, str) else stops or ():
        if stop and stop.strip():
            text = text.split(stop)[0]
    return text.strip()
