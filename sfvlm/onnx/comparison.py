"""How near a file comes to the model it was made from, on photos of which both must say the same."""

from pathlib import Path

import torch
from torch import Tensor

from ..encoder.focusing import ChosenFocusing
from .graph import Graph
from .session import OnnxEncoder

CHECKED_BATCHES = (1, 3)


def clear_photos(graph: Graph, size: int) -> Tensor:
    """Random pixels, (4, 3, size, size), of which the model and its copy must say the same.

    Where patches are chosen, rounding decides between two that are nearly equally worth a look, and either is right. So these
    are the photos, of some more, whose choice changes the least when the guesses are shaken.
    """
    count, focusing = sum(CHECKED_BATCHES), graph.model.focusing
    chooses = isinstance(focusing, ChosenFocusing)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3 * count if chooses else count, 3, size, size, generator=generator)
    saliency = graph.model(pixels, num_tokens=graph.num_tokens).saliency
    if not chooses or saliency is None:
        return pixels
    plain, firm = _choice(focusing, saliency, graph.num_tokens), torch.zeros(len(pixels))
    for size_of_shake in (1e-5, 1e-4, 1e-3, 1e-2):
        for _ in range(4):
            shaken = saliency + size_of_shake * torch.randn(saliency.shape, generator=generator)
            firm += (_choice(focusing, shaken, graph.num_tokens) == plain).all(dim=1)
    return pixels[firm.topk(count).indices]


def _choice(focusing: ChosenFocusing, saliency: Tensor, num_tokens: int) -> Tensor:
    cells = focusing.choose(saliency, num_tokens)
    return torch.cat([cells, focusing.choose_context(saliency, cells)], dim=1)


def compare(file: Path, graph: Graph, photos: Tensor) -> dict[str, float]:
    """Output -> the largest difference between file and model over all batches, in the output's largest value."""
    encoder, worst = OnnxEncoder(file), dict.fromkeys(graph.names, 0.0)
    for batch in photos.split(CHECKED_BATCHES):
        found = encoder(batch)
        for name, expected in zip(graph.names, graph(batch), strict=True):
            scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            difference = ((torch.from_numpy(found[name]) - expected).abs().max() / scale).item()
            # A number that is none must not pass for a small one.
            worst[name] = max(worst[name], torch.inf if difference != difference else difference)
    return worst
