"""Sliding windows: a photo of any size, seen in squares that overlap, whose scores are averaged where they do.

Source: mmsegmentation's `slide_inference`: windows at the end are shifted back to fit; a photo smaller than a window is one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .maps import resized


def slide(run: Callable[[Tensor], Tensor], pixels: Tensor, window: int, stride: int) -> Tensor:
    """Scores of a whole photo from its windows.

    Args:
        run: Pixels (B, 3, h, w) -> scores (B, K, any size), of each window.
        pixels: (B, 3, H, W).
        window: Side of a window in pixels.
        stride: Pixels from one to the next.

    Returns:
        (B, K, H, W).

    Raises:
        ValueError: The stride leaves gaps, or a number is not positive.
    """
    if window < 1 or not 1 <= stride <= window:
        raise ValueError(
            f"A window of {window} pixels every {stride} is none: the stride is from 1 to the window's side."
        )
    height, width = pixels.shape[-2:]
    total: Tensor | None = None
    counts = pixels.new_zeros(1, 1, height, width, dtype=torch.float32)
    for top in starts(height, window, stride):
        for left in starts(width, window, stride):
            part = (..., slice(top, min(top + window, height)), slice(left, min(left + window, width)))
            seen = pixels[part]
            scores = resized(run(seen).float(), (seen.shape[-2], seen.shape[-1]))
            total = scores.new_zeros(*scores.shape[:2], height, width) if total is None else total
            total[part] += scores
            counts[part] += 1
    assert total is not None
    return total / counts


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side, the last one shifted back so that it ends with it."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(0, min(number * stride, length - window)) for number in range(count)]
