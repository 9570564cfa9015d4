"""Intervals against scipy's bootstrap, which draws the same photos from the same seed."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap

from sfvlm.util.statistics import RESAMPLES, mean_interval, paired_comparison

Values = NDArray[np.float64]
RNG = np.random.default_rng(7)
PHOTOS = np.sort(RNG.integers(60, size=300))  # five questions a photo on average, of some one, of some a dozen
FIRST, SECOND = (RNG.random(300) < share for share in (0.7, 0.6))


def by_photo(scores: Values) -> Values:
    """Sums of scores, a photo each."""
    return np.bincount(PHOTOS, weights=scores)[np.unique(PHOTOS)]


def of_scipy(samples: tuple[Values, ...], statistic: Callable[..., Values], *, paired: bool) -> tuple[float, float]:
    """The percentile interval."""
    found = bootstrap(
        samples,
        statistic,
        paired=paired,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return found.confidence_interval.low, found.confidence_interval.high


def test_an_interval_that_draws_photos_is_scipys_of_sums_and_counts() -> None:
    def mean(sums: Values, counts: Values, axis: int) -> Values:
        return sums.sum(axis) / counts.sum(axis)

    expected = of_scipy((by_photo(FIRST), by_photo(np.ones(300))), mean, paired=True)
    found = mean_interval(FIRST.astype(float), PHOTOS.tolist())
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)


def test_intervals_of_a_paired_difference_and_ratio_are_scipys() -> None:
    sums = by_photo(FIRST), by_photo(SECOND), by_photo(np.ones(300))

    def difference(first: Values, second: Values, counts: Values, axis: int) -> Values:
        return second.sum(axis) / counts.sum(axis) - first.sum(axis) / counts.sum(axis)

    def ratio(first: Values, second: Values, counts: Values, axis: int) -> Values:
        return second.sum(axis) / first.sum(axis)

    found = paired_comparison(FIRST.astype(float), SECOND.astype(float), PHOTOS.tolist())
    assert found.retained is not None
    for ours, statistic in ((found.difference, difference), (found.retained, ratio)):
        assert (ours.low, ours.high) == pytest.approx(of_scipy(sums, statistic, paired=True), abs=1e-12)


def test_an_interval_within_strata_is_scipys_of_one_sample_a_stratum() -> None:
    """Of one question a photo, since scipy pairs all samples or none."""
    scores = FIRST.astype(float)
    strata = np.repeat([0, 1, 2], [50, 100, 150])

    def mean(*samples: Values, axis: int) -> Values:
        return np.asarray(sum(sample.sum(axis) for sample in samples) / 300)

    expected = of_scipy(tuple(scores[strata == one] for one in range(3)), mean, paired=False)
    found = mean_interval(scores, list(range(300)), strata=strata.tolist())
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)
