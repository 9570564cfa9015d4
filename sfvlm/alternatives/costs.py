"""What a photo costs a model: multiply-adds, counted as it runs, and how many tokens its blocks see."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..encoder.sparseformer import SparseFormerModel
from ..teachers.open import DenseTransformer


class Cost(NamedTuple):
    """What one photo costs."""

    macs: int  # see `macs`
    tokens: int  # image tokens that leave the last block
    mean_tokens: float  # image tokens that enter a block, averaged over the blocks


def macs(module: nn.Module, image_size: int) -> int:
    """Multiply-adds that one more photo of that side costs, by running one and two of them.

    Counted: linear layers, convolutions, and both products of attention; matching in token merging. Not counted: grid
    sampling, resizing, norms, activations, softmax, and what is done once for a model or for a batch of any size, such as
    resampling a kernel.
    """
    parameter = next(module.parameters())
    shape = (3, image_size, image_size)
    return macs_a_photo(
        lambda photos: module(torch.zeros(photos, *shape, device=parameter.device, dtype=parameter.dtype))
    )


def macs_a_photo(run: Callable[[int], object]) -> int:
    """Multiply-adds that one more photo costs, from running one and two of them; `macs` says what counts.

    Args:
        run: Runs so many photos.
    """

    def flops(photos: int) -> int:
        # Plain attention is made of products that the counter knows; not all fused kernels are in older releases of
        # torch. And without gradients the counter stumbles over views of parameters that a module returns.
        with torch.enable_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run(photos)
        return counter.get_total_flops()

    with torch.no_grad():
        run(1)  # what is made once for a model is there then
    return (flops(2) - flops(1)) // 2


@torch.no_grad()
def cost(module: nn.Module, image_size: int) -> Cost:
    """What a square photo of that side costs: for a dense teacher, a control, or a SparseFormer at its own budget."""
    parameter = next(module.parameters())
    pixels = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    if isinstance(module, SparseFormerModel):
        hidden, extra = module(pixels, output_hidden_states=True).hidden_states, module.config.has_cls_token
    else:
        hidden, extra = module(pixels).hidden_states, _has_cls_token(module)
    counts = [tokens.shape[1] - int(extra) for tokens in hidden]
    seen = sum(counts[:-1])
    for sparse in module.modules():  # itself, or inside what gives it a budget
        if isinstance(sparse, SparseFormerModel):  # context is in its blocks, and not in what they hand over
            seen += sparse.config.context_size(counts[-1]) * sparse.config.context_blocks
    return Cost(macs(module, image_size), counts[-1], seen / (len(counts) - 1))


def _has_cls_token(module: nn.Module) -> bool:
    return bool(module.config.has_cls_token if isinstance(module, DenseTransformer) else module.has_cls_token)
