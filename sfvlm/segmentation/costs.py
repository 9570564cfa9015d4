"""What a map of a photo costs: multiply-adds with all that makes the map, and time, models in turns."""

import statistics
import time
from collections.abc import Mapping

import torch
from torch import nn

from ..alternatives.costs import macs

ROUNDS = 5


def costs(models: Mapping[str, nn.Module], image_size: int, rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Of each model, a photo of that side: `gmacs`, and `milliseconds` at batch 1, the median of some rounds.

    The models take turns, so that what else the machine does meets all of them. Enlarging to pixels is not in it: it is the same for all.
    """
    found = {name: {"gmacs": macs(model, image_size) / 1e9} for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, model in models.items():
                parameter = next(model.parameters())
                pixels = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
                before = time.perf_counter()
                model(pixels)
                if parameter.device.type == "cuda":
                    torch.cuda.synchronize(parameter.device)
                if number:  # the first one warms up
                    seconds[name].append(time.perf_counter() - before)
    for name, each in seconds.items():
        found[name]["milliseconds"] = 1000 * statistics.median(each)
    return found
