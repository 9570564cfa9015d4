"""A host's reply while it is written: its pieces as they come, and what it cost."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer


@dataclass(frozen=True)
class Timings:
    """What one reply cost; times are None where there was nothing to time."""

    tokens_per_image: float  # that the LLM reads; their mean where photos are tiled
    prompt_tokens: int  # those included
    new_tokens: int
    encode_ms: float | None  # tower and projector
    first_token_ms: float | None  # from the call of `stream`, image processing and encoding included
    tokens_per_second: float | None  # after the first


class Reply:
    """A reply while it is written: iterate over its pieces, once; then `timings` says what it cost."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        lock: threading.Lock,
        inputs: dict[str, Tensor],
        settings: dict[str, Any],
        stop: threading.Event,
        started: float,
        facts: dict[str, Any],
    ) -> None:
        self._model, self._lock, self._inputs, self._settings, self._facts = model, lock, inputs, settings, facts
        self._streamer = _TimedStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._started = started
        self._stops = (stop, threading.Event())  # the caller's, who may use it again, and ours
        self._encode_times: list[float] = []
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        thread = threading.Thread(target=self._generate, daemon=True)
        thread.start()
        try:
            yield from filter(None, self._streamer)
        finally:  # also where the reader leaves early
            self._stops[1].set()
            thread.join()
        if self._error is not None:
            raise self._error

    @property
    def timings(self) -> Timings:
        """What the reply cost so far."""
        times, encode = self._streamer.times, self._encode_times
        return Timings(
            **self._facts,
            new_tokens=len(times),
            encode_ms=1000 * (encode[1] - encode[0]) if len(encode) > 1 else None,
            first_token_ms=1000 * (times[0] - self._started) if times else None,
            tokens_per_second=(len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None,
        )

    def _generate(self) -> None:
        criteria = StoppingCriteriaList([_StopsOn(self._stops)])
        try:
            with self._lock, ExitStack() as hooks:
                if not any(event.is_set() for event in self._stops):
                    self._time_encoding(hooks)
                    self._model.generate(
                        **self._inputs, **self._settings, streamer=self._streamer, stopping_criteria=criteria
                    )
        except Exception as error:  # belongs to the reader's thread
            self._error = error
        finally:
            self._streamer.end()

    def _time_encoding(self, hooks: ExitStack) -> None:
        def stamp(*_: Any) -> None:
            if self._model.device.type == "cuda":
                torch.cuda.synchronize(self._model.device)
            self._encode_times.append(time.perf_counter())

        body: nn.Module = self._model.model
        begin = body.get_submodule("vision_tower").register_forward_pre_hook(stamp)
        end = body.get_submodule("multi_modal_projector").register_forward_hook(stamp)
        hooks.callback(begin.remove)
        hooks.callback(end.remove)


class _TimedStreamer(TextIteratorStreamer):
    """Also notes when each token came; the first thing `generate` puts is the prompt."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        super().__init__(tokenizer, **options)
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.times.append(time.perf_counter())
        super().put(value)


class _StopsOn(StoppingCriteria):
    def __init__(self, events: Sequence[threading.Event]) -> None:
        self.events = events

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), any(event.is_set() for event in self.events), device=input_ids.device)
