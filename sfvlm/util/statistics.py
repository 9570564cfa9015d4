"""How sure a score is, and a difference of two: bootstrap intervals that draw photos, not questions.

Questions about one photo stand or fall together, so that resampling them one by one would promise too much.

Not scipy.stats.bootstrap, whose numbers these are where it can: it pairs all samples or none, and so cannot keep a photo's questions
together and draw within strata.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float

    def metrics(self, name: str) -> dict[str, float]:
        """As results files have it."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


@dataclass(frozen=True)
class Comparison:
    """Two models on the same questions, the second against the first."""

    difference: Interval  # second - first
    retained: Interval | None  # second / first; None where the first scores nothing
    better: int  # questions the second scores higher on
    worse: int


def mean_interval(
    scores: Sequence[float],
    photos: Sequence[Hashable],
    resamples: int = RESAMPLES,
    seed: int = 0,
    strata: Sequence[Hashable] = (),
) -> Interval:
    """The mean of N scores of questions about `photos` (N,), each its photo; photos are drawn within their `strata` (N,)."""
    (mean,), (drawn,) = resampled_means([scores], photos, resamples, seed, strata)
    return interval(mean, drawn)


def paired_comparison(
    first: Sequence[float],
    second: Sequence[float],
    photos: Sequence[Hashable],
    resamples: int = RESAMPLES,
    seed: int = 0,
    strata: Sequence[Hashable] = (),
) -> Comparison:
    """Scores (N,) and (N,) of two models on the same N questions; both are drawn together, within strata."""
    means, (theirs, ours) = resampled_means([first, second], photos, resamples, seed, strata)
    retained = None
    if means[0] > 0 and theirs.min() > 0:
        retained = interval(means[1] / means[0], ours / theirs)
    return Comparison(
        difference=interval(means[1] - means[0], ours - theirs),
        retained=retained,
        better=sum(second_score > first_score for first_score, second_score in zip(first, second, strict=True)),
        worse=sum(second_score < first_score for first_score, second_score in zip(first, second, strict=True)),
    )


def resampled_means(
    scores: Sequence[Sequence[float]],
    photos: Sequence[Hashable],
    resamples: int = RESAMPLES,
    seed: int = 0,
    strata: Sequence[Hashable] = (),
) -> tuple[Values, Values]:
    """Scores of M models on the same N questions: their means (M,), and those of R drawings of photos (M, R).

    All models are drawn together, so that what is computed from a drawing is paired.
    """
    values = np.array(scores, dtype=np.float64)  # (M, N)
    sums, counts = _by_photo(values, photos)
    drawn = [each / number for each, number in _resampled(sums, counts, _members(photos, strata), resamples, seed)]
    return values.mean(axis=1), np.concatenate(drawn, axis=1)


def _by_photo(scores: Values, photos: Sequence[Hashable]) -> tuple[Values, Values]:
    """Scores (M, N) to their sums over each photo (M, G), and how many questions it has (G,)."""
    if scores.shape[1] != len(photos) or not len(photos):
        raise ValueError(f"There are {scores.shape[1]} scores of questions about {len(photos)} photos.")
    numbers = {photo: number for number, photo in enumerate(dict.fromkeys(photos))}
    index = np.array([numbers[photo] for photo in photos])
    sums = [np.bincount(index, weights=row) for row in scores]
    return np.array(sums, dtype=np.float64), np.bincount(index).astype(np.float64)


def _members(photos: Sequence[Hashable], strata: Sequence[Hashable]) -> list[NDArray[np.intp]]:
    """Numbers of the photos of each stratum; of all of them, where there are no strata."""
    of_photo = list(dict(zip(photos, strata or [None] * len(photos), strict=True)).values())
    return [np.flatnonzero([one == each for one in of_photo]) for each in dict.fromkeys(of_photo)]


def _resampled(
    sums: Values, counts: Values, members: Sequence[NDArray[np.intp]], resamples: int, seed: int
) -> Iterator[tuple[Values, Values]]:
    """Chunks of R resamples: sums (M, R) and question counts (R,) of as many photos, drawn with replacement."""
    rng, size = np.random.default_rng(seed), len(counts)
    chunk = max(1, 2_000_000 // size)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = np.concatenate(
            [part[rng.integers(len(part), size=(rows, len(part)))] for part in members], axis=1
        )  # (R, G)
        yield sums[:, drawn].sum(axis=-1), counts[drawn].sum(axis=-1)


def interval(value: float, resampled: Values) -> Interval:
    """A value between the percentiles of its drawings (R,)."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))
