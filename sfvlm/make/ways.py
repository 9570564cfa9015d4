"""The ways to read a photo that were measured, each with what it costs and how near it stays: what the two result files say of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..util.files import read_json
from ..util.statistics import Interval
from .bench import DENSE, SPARSE
from .place import Place

ABOUT = {
    DENSE: "the LLaVA as it is",
    SPARSE: "the tower made here",
    "resolution": "the photo at fewer pixels",
    "larger-patch": "larger patches",
    "stride": "evenly spaced tokens of the dense tower",
    "average": "averages of the dense tower's tokens",
    "cls-attention": "those that the class token attends to, VisionZip",
    "diversity": "the most diverse tokens, DivPrune",
    "random": "tokens of the dense tower drawn at random",
    "merging": "similar tokens merged early, ToMe",
    "merging-decreasing": "fewer tokens merged from block to block, ToMe",
    "merging-gradual": "as many tokens merged in every block, ToMe",
}


@dataclass(frozen=True)
class Way:
    """A way to read a photo.

    Attributes:
        name: `DENSE`, `SPARSE`, or an alternative's.
        tokens: Of a photo, that the language model reads.
        macs: Multiply-adds of the tower for a photo.
        first_word: Seconds from the photo to the first word, the median.
        sooner: How many times sooner than with the dense tower: the median of turns.
        cache_bytes: Keys and values of a prompt with a photo.
        divergence: Nats a word from the dense LLaVA's next words; None of the dense one.
        same_words: Share of words that come first in both; None of the dense one.
        difference: Its divergence less that of the tower made here, photo by photo; None of these two.
    """

    name: str
    tokens: float
    macs: float
    first_word: float
    sooner: float
    cache_bytes: float
    divergence: Interval | None = None
    same_words: Interval | None = None
    difference: Interval | None = None

    @property
    def about(self) -> str:
        """In words."""
        return ABOUT.get(self.name, "")

    @property
    def is_nearer(self) -> bool:
        """Than the tower made here, beyond chance."""
        return self.difference is not None and self.difference.high < 0

    @property
    def is_farther(self) -> bool:
        """The other way round."""
        return self.difference is not None and self.difference.low > 0


@dataclass(frozen=True)
class Ways:
    """All that were measured: the dense one, the new one, and the alternatives, nearest first."""

    dense: Way
    sparse: Way
    others: tuple[Way, ...]

    @property
    def all(self) -> tuple[Way, ...]:
        return self.dense, self.sparse, *self.others


def read_ways(place: Place) -> Ways:
    """From `fidelity.json` and `speed.json`."""
    near = {row["model"]: row["metrics"] for row in read_json(place.fidelity)["results"]}
    found = {row["model"]: _way(row, near.get(row["model"], {})) for row in read_json(place.speed)["rows"]}
    others = [way for name, way in found.items() if name not in (DENSE, SPARSE)]
    others.sort(key=lambda way: way.divergence.value if way.divergence else 0.0)
    return Ways(found[DENSE], found[SPARSE], tuple(others))


def share(value: float, digits: int = 0) -> str:
    """As 35 %."""
    return f"{100 * value:.{digits}f} %"


def _way(row: Mapping[str, Any], near: Mapping[str, float]) -> Way:
    measures = row["measures"]
    first_word = measures["first_token_seconds"]
    return Way(
        name=row["model"],
        tokens=measures["image_tokens"]["median"],
        macs=measures["tower_macs"]["median"],
        first_word=first_word["median"],
        sooner=first_word["times_less"] or 1.0,
        cache_bytes=measures["kv_cache_bytes"]["median"],
        **{name: _interval(near, name) for name in ("divergence", "same_words", "difference")},
    )


def _interval(metrics: Mapping[str, float], name: str) -> Interval | None:
    if name not in metrics:
        return None
    return Interval(metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"])
