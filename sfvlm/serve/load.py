"""What servers do under load: requests a second and the time to the first word, one server beside the others.

Every request shows another photo, so that no cache answers for the encoder. Servers take turns, level by level and round by
round, so that a slow drift of the machine is in all of them.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .endpoint import Endpoint, as_url

QUESTION = "Describe the photo."


@dataclass
class Level:
    """What one server did with so many requests at once.

    Attributes:
        seconds: That each round took.
        first, whole: Seconds to the first word of each request, and to its last.
        prompt_tokens, new_tokens: Of each request.
    """

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)

    def row(self, server: Endpoint, concurrency: int, requests: int) -> dict[str, Any]:
        """Its line in a table and in a results file; times in milliseconds."""
        return {
            "server": server.source,
            "concurrency": concurrency,
            "requests": len(self.whole),
            "requests_a_second": requests / statistics.median(self.seconds),
            "first_word_ms": 1e3 * statistics.median(self.first),
            "latency_ms": 1e3 * statistics.median(self.whole),
            "latency_95_ms": 1e3 * float(np.percentile(self.whole, 95)),
            "prompt_tokens": statistics.median(self.prompt_tokens),
            "new_tokens": statistics.median(self.new_tokens),
        }


def measure_load(
    servers: Sequence[Endpoint],
    levels: Sequence[int],
    *,
    requests: int,
    rounds: int,
    new_tokens: int,
    side: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Rows of `Level.row`, level by level, the servers of each in their order.

    Args:
        servers: The first is what the others are compared with (`faster`: how many times its requests a second).
        levels: Requests at once.
        requests: Of a round, at least twice as many as at once.
        rounds: Of each level and server, after one that is not counted.
        new_tokens: Words of every answer, where the server lets one ask for that.
        side: Of the photos, in pixels.
        tell: Gets a line a round.

    Raises:
        ValueError: A server is gone, or refuses a request.
    """
    draw = np.random.default_rng(0)
    for concurrency in levels:
        count = max(requests, 2 * concurrency)
        found = [Level() for _ in servers]
        for number in range(rounds + 1):
            for server, level in zip(servers, found, strict=True):
                urls = [as_url(noise(draw, side)) for _ in range(count)]
                taken = _round(server, urls, concurrency, new_tokens)
                if number:
                    level.seconds += taken.seconds
                    for name in ("first", "whole", "prompt_tokens", "new_tokens"):
                        getattr(level, name).extend(getattr(taken, name))
                tell(f"{server.source}: {count} requests, {concurrency} at once, {taken.seconds[0]:.1f} s")
        rows = [level.row(server, concurrency, count) for server, level in zip(servers, found, strict=True)]
        for row in rows:
            yield row | {"faster": row["requests_a_second"] / rows[0]["requests_a_second"]}


def noise(draw: np.random.Generator, side: int) -> Image.Image:
    """A photo unlike all others: coarse noise, enlarged, which takes as long to send and to read as a real one."""
    coarse = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def _round(server: Endpoint, urls: Sequence[str], concurrency: int, new_tokens: int) -> Level:
    level = Level()
    start = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        for first, whole, prompt, new in pool.map(lambda url: server.timed(url, QUESTION, new_tokens), urls):
            level.first.append(first)
            level.whole.append(whole)
            level.prompt_tokens.append(prompt)
            level.new_tokens.append(new)
    level.seconds.append(time.perf_counter() - start)
    return level
