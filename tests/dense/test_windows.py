"""Sliding windows: they cover a photo as mmsegmentation's do, and scores that do not depend on the window stay as they are."""

import pytest
import torch

from sfvlm.dense.windows import slide, starts


def test_the_last_window_is_shifted_back_to_fit():
    assert starts(500, 224, 112) == [0, 112, 224, 276]
    assert starts(224, 224, 112) == [0]
    assert starts(100, 224, 112) == [0]


@pytest.mark.parametrize(("height", "width"), [(20, 31), (8, 40), (5, 6)])
def test_scores_that_each_pixel_has_by_itself_are_those_of_the_whole_photo(height: int, width: int):
    pixels = torch.randn(2, 3, height, width)
    torch.testing.assert_close(slide(lambda part: 2 * part, pixels, 8, 5), 2 * pixels)


def test_where_windows_overlap_scores_are_averaged():
    numbers = iter(range(10))
    found = slide(lambda part: torch.full((1, 1, 1, 1), float(next(numbers))), torch.zeros(1, 3, 4, 6), 4, 2)
    assert found[0, 0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]


@pytest.mark.parametrize(("window", "stride"), [(8, 9), (8, 0), (0, 1)])
def test_windows_that_leave_gaps_are_refused(window: int, stride: int):
    with pytest.raises(ValueError, match="stride is from 1"):
        slide(lambda part: part, torch.zeros(1, 3, 9, 9), window, stride)
