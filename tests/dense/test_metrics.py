"""Scores of maps: the arithmetic of mmsegmentation and `evaluate`, to the digit; what is averaged; how sure the mean is."""

import numpy as np
import pytest

from sfvlm.dense.metrics import IGNORED, Tally, kept, scores


def mixed_masks(photos: int = 7, classes: int = 6) -> list[tuple[np.ndarray, np.ndarray]]:
    """Maps and masks of many sizes, half right, with ignored pixels; class 4 is predicted and never true, class 5 neither."""
    rng, pairs = np.random.default_rng(0), []
    for _ in range(photos):
        size = rng.integers(5, 30, size=2)
        true = rng.integers(0, classes - 2, size=size)
        predicted = np.where(rng.random(size) < 0.5, true, rng.integers(0, classes - 1, size=size))
        true[rng.random(size) < 0.1] = IGNORED
        pairs.append((predicted, true))
    return pairs


def tally_of(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int = 6) -> Tally:
    tally = Tally(classes)
    for predicted, true in pairs:
        tally.add(predicted, true)
    return tally


def counted_pixel_by_pixel(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int = 6) -> dict[str, list[float]]:
    """What `evaluate`'s mean_iou and mmsegmentation's IoUMetric define, without their histograms: sets of pixels of each class."""
    iou, accuracy = [], []
    for number in range(classes):
        ours, theirs = set(), set()
        for photo, (predicted, true) in enumerate(pairs):
            for place in np.ndindex(*true.shape):
                if true[place] != IGNORED:
                    ours |= {(photo, place)} if predicted[place] == number else set()
                    theirs |= {(photo, place)} if true[place] == number else set()
        iou.append(len(ours & theirs) / len(ours | theirs) if ours | theirs else float("nan"))
        accuracy.append(len(ours & theirs) / len(theirs) if theirs else float("nan"))
    return {"iou": iou, "accuracy": accuracy}


def test_iou_and_accuracy_are_those_of_a_count_pixel_by_pixel():
    pairs = mixed_masks()
    found, expected = scores(tally_of(pairs)), counted_pixel_by_pixel(pairs)
    np.testing.assert_allclose(found.iou, expected["iou"], rtol=1e-12)
    np.testing.assert_allclose(found.class_accuracy, expected["accuracy"], rtol=1e-12)
    assert found.miou_of_named == pytest.approx(np.nanmean(expected["iou"]), rel=1e-12)
    assert found.mean_accuracy == pytest.approx(np.nanmean(expected["accuracy"]), rel=1e-12)


def test_iou_is_scikit_learns_jaccard_score():
    sklearn = pytest.importorskip("sklearn.metrics")
    pairs = mixed_masks()
    true, predicted = (np.concatenate([pair[place][pair[1] != IGNORED] for pair in pairs]) for place in (1, 0))
    expected = sklearn.jaccard_score(true, predicted, labels=range(5), average=None)
    np.testing.assert_allclose(scores(tally_of(pairs)).iou[:5], expected, rtol=1e-12)


@pytest.mark.reference
def test_iou_is_torchmetrics_whose_mark_of_absent_classes_is_minus_one():
    torch = pytest.importorskip("torch")
    metric = pytest.importorskip("torchmetrics.segmentation").MeanIoU(
        num_classes=6, per_class=True, input_format="index"
    )
    pairs = mixed_masks()
    # It knows no ignored pixels, and takes the mean over photos: one photo of all asked pixels is the benchmark's count.
    predicted, true = (
        torch.tensor(np.concatenate([p[place][p[1] != IGNORED] for p in pairs]))[None, None] for place in (0, 1)
    )
    theirs = metric(predicted, true).numpy()
    ours = scores(tally_of(pairs)).iou
    present = ~np.isnan(ours)
    np.testing.assert_allclose(ours[present], theirs[present], rtol=1e-6)
    assert (theirs[~present] <= 0).all()  # -1, or 0 in older ones: no NaN, so that its mean is another


def test_classes_that_never_occur_are_averaged_by_mmsegmentation_if_predicted_and_not_in_ours():
    found = scores(tally_of(mixed_masks()))
    assert found.averaged == (0, 1, 2, 3)
    assert found.iou[4] == 0 and np.isnan(found.iou[5])
    assert found.miou.value == pytest.approx(found.iou[:4].mean())
    assert found.miou_of_named == pytest.approx(found.iou[:4].sum() / 5)


def test_pixels_are_summed_over_photos_before_they_are_divided():
    tally = Tally(2)
    tally.add(np.zeros((1, 9), int), np.zeros((1, 9), int))
    tally.add(np.zeros((1, 1), int), np.ones((1, 1), int))
    assert scores(tally).iou.tolist() == [0.9, 0.0]


def test_the_interval_is_of_drawings_of_photos():
    """Where all photos score alike there is nothing to be unsure of, and else the interval holds the value."""
    alike = tally_of(mixed_masks(1) * 5)
    same = scores(alike).miou
    assert same.low == pytest.approx(same.value) and same.high == pytest.approx(same.value)
    unlike = scores(tally_of(mixed_masks())).miou
    assert unlike.low < unlike.value < unlike.high


def test_the_share_that_is_kept_is_drawn_together():
    ours = tally_of(mixed_masks())
    same = kept(ours, ours)
    assert same.ratio is not None and (same.ratio.low, same.ratio.value, same.ratio.high) == (1, 1, 1)
    assert same.difference.high == 0
    perfect = tally_of([(np.where(true == IGNORED, 0, true), true) for _, true in mixed_masks()])
    ratio = kept(ours, perfect).ratio
    assert ratio is not None and ratio.value == pytest.approx(scores(ours).miou.value) and ratio.high < 1


def test_tallies_of_other_masks_are_not_compared():
    with pytest.raises(ValueError, match="different masks"):
        kept(tally_of(mixed_masks()), tally_of(mixed_masks()[::-1]))


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        (np.zeros((3, 4)), np.zeros((4, 4)), "The map is 4 x 3 and its mask 4 x 4"),
        (np.zeros((1, 1)), np.full((1, 1), 2), "mask has the index 2, and there are 2 classes"),
        (np.full((1, 1), 7), np.zeros((1, 1)), "map has the index 7"),
    ],
)
def test_what_does_not_fit_is_refused(predicted: np.ndarray, true: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        Tally(2).add(predicted.astype(int), true.astype(int))


def test_masks_that_are_ignored_throughout_have_no_score():
    tally = Tally(2)
    with pytest.raises(ValueError, match="no photo"):
        scores(tally)
    tally.add(np.zeros((2, 2), int), np.full((2, 2), IGNORED))
    with pytest.raises(ValueError, match="Every pixel"):
        scores(tally)
