"""A patch embedding for another patch size (FlexiViT, arXiv 2212.08013, section 3.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.compiler.assume_constant_result
def _kernel_resampling(old: int, new: int, device: torch.device) -> Tensor:
    """(new, old): what to multiply a kernel's rows and columns with, so that it answers a resized picture as before.

    For enlarged pictures the pseudo-inverse of bilinear enlargement, for reduced ones its transpose: going up and down
    again is the identity (FlexiViT, arXiv 2212.08013, section 3.4).
    """
    small, large = sorted((old, new))
    enlarge = F.interpolate(torch.eye(small, dtype=torch.float64)[None], size=large, mode="linear")[
        0
    ].T  # (large, small)
    return (torch.linalg.pinv(enlarge).T if new > old else enlarge.T).float().to(device)


def resample_kernel(kernel: Tensor, side: int) -> Tensor:
    """A patch embedding for another patch size: (D, 3, p, p) -> (D, 3, side, side)."""
    if kernel.shape[-1] == side:
        return kernel
    weights = _kernel_resampling(kernel.shape[-1], side, kernel.device)
    return (weights @ kernel.float() @ weights.T).to(kernel.dtype)
