"""Weights and pixels made by a formula, so that a golden case needs no stored tensors and no random generator."""

import math
import zlib

import torch


def golden_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A smooth pseudo-random tensor that depends on its name and shape alone; boxes and norm weights stay sensible."""
    count = math.prod(shape)
    phase = zlib.crc32(name.encode()) % 1000
    values = torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + phase)
    values = (values * 43758.5453).frac().reshape(shape).float()  # -1 ... 1
    if name == "initial_roi.weight":
        start = values[:, :2].abs() * 0.5
        return torch.cat([start, start + 0.2 + values[:, 2:].abs() * 0.3], dim=1)
    is_norm = len(shape) == 1 and name.endswith("weight")
    return 1 + 0.1 * values if is_norm else 0.05 * values
