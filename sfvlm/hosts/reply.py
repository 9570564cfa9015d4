"""A host's reply while it is written: its pieces as they come, and what it cost.

Replies that are written at the same time take turns, a word each: the model computes for one of them at a time, and the
clock of the others stands still meanwhile.
"""

import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from .generation import generate

if TYPE_CHECKING:
    from .host import Host


@dataclass(frozen=True)
class Timings:
    """What one reply cost, without the waiting for other replies; times are None where there was nothing to time."""

    tokens_per_image: float  # that the LLM reads; their mean where photos are tiled
    prompt_tokens: int  # those included
    new_tokens: int
    encode_ms: float | None  # tower and projector
    first_token_ms: float | None  # since its clock was made, image processing and encoding included
    tokens_per_second: float | None  # after the first
    cache_bytes: int  # keys and values of prompt and reply


class Turns:
    """One at a time, first come, first served; who has the turn can let the others go first in between."""

    def __init__(self) -> None:
        self._guard, self._taken = threading.Lock(), False
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        called = threading.Event()
        with self._guard:
            if self._taken:
                self._waiting.append(called)
            else:
                called.set()
            self._taken = True
        called.wait()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._taken = bool(self._waiting)
            if self._waiting:
                self._waiting.popleft().set()

    def pass_on(self) -> None:
        """Lets those who wait go first."""
        if self._waiting:
            self.__exit__()
            self.__enter__()


class Clock:
    """Seconds since it was made, without those in which it was stopped."""

    def __init__(self) -> None:
        self._start, self._stopped = time.perf_counter(), 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        return (time.perf_counter() if self._since is None else self._since) - self._start - self._stopped

    def stop(self) -> None:
        self._since = time.perf_counter()

    def go_on(self) -> None:
        if self._since is not None:
            self._stopped += time.perf_counter() - self._since
            self._since = None


class Reply:
    """A reply while it is written: iterate over its pieces, once; then `timings` says what it cost.

    Leaving early returns at once; the host is free again when the token that is being written is.

    Args:
        host: Who replies.
        inputs, settings: What `generation.generate` takes.
        stop: Setting it ends the reply.
        clock: Runs since the reply was asked for.
        tokens_per_image: Of `Timings`.
    """

    def __init__(
        self,
        host: "Host",
        inputs: dict[str, Tensor],
        settings: GenerationConfig,
        stop: threading.Event,
        clock: Clock,
        tokens_per_image: float,
    ) -> None:
        self._host, self._inputs, self._settings = host, inputs, settings
        self._clock, self._tokens_per_image = clock, tokens_per_image
        self._streamer = _TimedStreamer(host.processor.tokenizer, host.turns, clock, settings.eos_token_id or [])
        self._stops = (stop, threading.Event())  # the caller's, who may use it again, and ours
        self._encode_times: list[float] = []
        self._error: BaseException | None = None
        clock.stop()

    def __iter__(self) -> Iterator[str]:
        thread = threading.Thread(target=self._generate, daemon=True)
        thread.start()
        try:
            yield from filter(None, self._streamer)
            thread.join()
        finally:
            # Who leaves early does not wait for the thread: a server closes this on its event loop, and that would freeze it.
            self._stops[1].set()
        if self._error is not None:
            raise self._error

    @property
    def tokens(self) -> list[int]:
        """Token ids so far, the one that ends a reply included."""
        return list(self._streamer.tokens)

    @property
    def timings(self) -> Timings:
        """What the reply cost so far."""
        times, encode = self._streamer.times, self._encode_times
        prompt_tokens = self._inputs["input_ids"].shape[1]
        return Timings(
            tokens_per_image=self._tokens_per_image,
            prompt_tokens=prompt_tokens,
            new_tokens=len(times),
            encode_ms=1000 * (encode[1] - encode[0]) if len(encode) > 1 else None,
            first_token_ms=1000 * times[0] if times else None,
            tokens_per_second=(len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None,
            cache_bytes=(prompt_tokens + len(times)) * self._host.bytes_per_token,
        )

    def _generate(self) -> None:
        criteria = StoppingCriteriaList([_StopsOn(self._stops)])
        try:
            with self._host.turns, ExitStack() as hooks:
                self._clock.go_on()
                if not any(event.is_set() for event in self._stops):
                    self._time_encoding(hooks)
                    generate(
                        self._host.model,
                        self._inputs,
                        self._settings,
                        streamer=self._streamer,
                        stopping_criteria=criteria,
                    )
        except Exception as error:  # belongs to the reader's thread
            # Its frames would hold the cache and activations: reply and error are a cycle.
            traceback.clear_frames(error.__traceback__)
            self._error = error
        finally:
            self._streamer.end()

    def _time_encoding(self, hooks: ExitStack) -> None:
        ours = threading.get_ident()

        def stamp(*_: Any) -> None:
            if threading.get_ident() != ours:
                return  # a photo of another reply, which takes its turn between two words of this one
            if self._host.model.device.type == "cuda":
                torch.cuda.synchronize(self._host.model.device)
            self._encode_times.append(self._clock())

        body: nn.Module = self._host.model.model
        begin = body.get_submodule("vision_tower").register_forward_pre_hook(stamp)
        end = body.get_submodule("multi_modal_projector").register_forward_hook(stamp)
        hooks.callback(begin.remove)
        hooks.callback(end.remove)


class _TimedStreamer(TextIteratorStreamer):
    """Also notes when each token came, and gives the turn to others then; the first thing `generate` puts is the prompt."""

    def __init__(self, tokenizer: Any, turns: Turns, clock: Clock, ends: Sequence[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.turns, self.clock, self.ends = turns, clock, ends
        self.times: list[float] = []
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        is_prompt = self.next_tokens_are_prompt
        if is_prompt or value.item() not in self.ends:  # an end may be a word for the tokenizer
            super().put(value)
        if not is_prompt:
            self.times.append(self.clock())
            self.tokens += value.flatten().tolist()
            self.clock.stop()
            self.turns.pass_on()
            self.clock.go_on()


class _StopsOn(StoppingCriteria):
    def __init__(self, events: Sequence[threading.Event]) -> None:
        self.events = events

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), any(event.is_set() for event in self.events), device=input_ids.device)
