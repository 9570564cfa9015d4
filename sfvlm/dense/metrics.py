"""How good maps of classes are: IoU of each class, as mmsegmentation counts it, and how sure the mean is.

    predicted, true (H, W) of each photo -> Tally: pixels a class in each photo -> scores | retained: numbers with intervals

Pixels are summed over all photos before anything is divided: a photo's own IoU is not asked for. Photos are drawn for the
intervals, as in `sfvlm.util.statistics`, because pixels of one photo stand or fall together.

Shapes: N photos, K classes, R drawings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..util.statistics import RESAMPLES, Interval, interval

IGNORED = 255  # the index of pixels that count for nothing
Counts = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass
class Tally:
    """Pixels by class of the photos seen so far.

    Attributes:
        num_classes: K.
        right: For each photo (K,) pixels of a class that are predicted so.
        predicted: For each photo (K,) pixels that are predicted so.
        true: For each photo (K,) pixels that are so.
    """

    num_classes: int
    right: list[Counts] = field(default_factory=list)
    predicted: list[Counts] = field(default_factory=list)
    true: list[Counts] = field(default_factory=list)

    def add(self, predicted: NDArray[np.integer], true: NDArray[np.integer]) -> None:
        """Counts one photo.

        Args:
            predicted: (H, W) classes, 0 to K - 1.
            true: (H, W) classes, or `IGNORED` where nothing is asked.

        Raises:
            ValueError: The two differ in size, or an index is none of the classes.
        """
        if predicted.shape != true.shape:
            raise ValueError(
                f"The map is {_size(predicted)} and its mask {_size(true)}: scores are taken at the mask's size."
            )
        asked = true != IGNORED
        ours, theirs = predicted[asked].astype(np.int64), true[asked].astype(np.int64)
        for what, values in (("map", ours), ("mask", theirs)):
            if values.size and not (values.min() >= 0 and values.max() < self.num_classes):
                worst = int(values.max() if values.max() >= self.num_classes else values.min())
                raise ValueError(f"The {what} has the index {worst}, and there are {self.num_classes} classes, from 0.")
        self.right.append(np.bincount(theirs[ours == theirs], minlength=self.num_classes))
        self.predicted.append(np.bincount(ours, minlength=self.num_classes))
        self.true.append(np.bincount(theirs, minlength=self.num_classes))

    def __len__(self) -> int:
        return len(self.true)

    def stacked(self) -> Values:
        """(3, N, K): right, predicted, true.

        Raises:
            ValueError: No photo was counted.
        """
        if not len(self):
            raise ValueError("There is no photo with a mask to score.")
        return np.array([self.right, self.predicted, self.true], dtype=np.float64)


class Scores(NamedTuple):
    """What a tally comes to. A class that there is nothing to divide by for is NaN.

    Attributes:
        miou: Mean of `iou` over the classes that occur in the masks, with its 95 % interval over photos.
        miou_of_named: The same over the classes that occur in masks or in maps. mmsegmentation and `evaluate` average these: one that
            is predicted and never occurs counts as 0.
        averaged: Which classes `miou` averages.
        mean_accuracy: Mean over them of the share of a class's pixels that are right.
        accuracy: Share of all pixels that are right.
        iou, class_accuracy: (K,) of each class.
    """

    miou: Interval
    miou_of_named: float
    averaged: tuple[int, ...]
    mean_accuracy: float
    accuracy: float
    iou: Values
    class_accuracy: Values


def scores(tally: Tally, resamples: int = RESAMPLES, seed: int = 0) -> Scores:
    """Every score of a tally.

    Raises:
        ValueError: No photo was counted, or every pixel of the masks is ignored.
    """
    counts = tally.stacked()
    total = counts.sum(axis=1)  # (3, K)
    occur = total[2] > 0
    if not occur.any():
        raise ValueError(f"Every pixel of the {len(tally)} masks is {IGNORED}, which is ignored.")
    iou, accuracy = _iou(total), _ratio(total[0], total[2])
    drawn = np.concatenate(
        [_iou(each)[:, occur] for each in _drawings(counts, resamples, seed)]
    )  # (R, classes that occur)
    return Scores(
        miou=interval(float(iou[occur].mean()), _mean(drawn)),
        miou_of_named=float(np.nanmean(iou)),
        averaged=tuple(np.flatnonzero(occur).tolist()),
        mean_accuracy=float(np.nanmean(accuracy)),
        accuracy=float(total[0].sum() / total[2].sum()),
        iou=iou,
        class_accuracy=accuracy,
    )


class Kept(NamedTuple):
    """One model's mIoU against another's on the same photos, drawn together."""

    difference: Interval
    ratio: Interval | None  # None where the other scores nothing


def kept(ours: Tally, theirs: Tally, resamples: int = RESAMPLES, seed: int = 0) -> Kept:
    """How much of the mIoU of `theirs` is left in `ours`, over the classes that occur in the masks.

    Raises:
        ValueError: They are not of the same masks.
    """
    both = [ours.stacked(), theirs.stacked()]
    if both[0].shape != both[1].shape or not np.array_equal(both[0][2], both[1][2]):
        raise ValueError("The two tallies are of different masks, and cannot be compared photo by photo.")
    occur = both[0][2].sum(axis=0) > 0
    means, drawn = [], []
    for counts in both:
        means.append(float(_iou(counts.sum(axis=1))[occur].mean()))
        drawn.append(np.concatenate([_mean(_iou(each)[:, occur]) for each in _drawings(counts, resamples, seed)]))
    ratio = None
    something = drawn[1] > 0  # of a drawing in which the other scores nothing there is no share
    if means[1] > 0 and something.any():
        ratio = interval(means[0] / means[1], drawn[0][something] / drawn[1][something])
    return Kept(interval(means[0] - means[1], drawn[0] - drawn[1]), ratio)


def _drawings(counts: Values, resamples: int, seed: int) -> Sequence[Values]:
    """Counts (3, N, K) of so many drawings of N photos with replacement, in chunks of (3, R, K)."""
    rng, photos = np.random.default_rng(seed), counts.shape[1]
    chunks = []
    for start in range(0, resamples, 250):
        drawn = rng.integers(photos, size=(min(250, resamples - start), photos))
        times = np.stack([np.bincount(row, minlength=photos) for row in drawn]).astype(np.float64)  # (R, N)
        chunks.append(times @ counts)
    return chunks


def _iou(counts: Values) -> Values:
    """Right, predicted and true pixels (3, ..., K) to the IoU (..., K)."""
    right, predicted, true = counts
    return _ratio(right, predicted + true - right)


def _ratio(part: Values, whole: Values) -> Values:
    """NaN where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(iou: Values) -> Values:
    """(R, K) to (R,): a drawing may lack a class, and every drawing has one."""
    return np.nanmean(iou, axis=1)


def _size(array: NDArray[np.integer]) -> str:
    return " x ".join(map(str, array.shape[::-1]))
