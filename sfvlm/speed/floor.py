"""The least time an encoder could take on a machine: what its products and its memory allow, both measured.

    ceiling = measure_ceiling(device, torch.float32)       -> operations and bytes a second
    floor_seconds(macs, read_bytes, ceiling)               -> seconds

A floor is what remains when the multiply-adds run as fast as a large matrix product does on this device, at this dtype and
number of threads, or when every weight and every pixel is read once, whichever takes longer. What it leaves out: norms,
softmax, activations, sampling and resizing; whatever is written between layers and read again; what starting a kernel takes; and
that narrow products (few tokens, heads of 64) are slower than large square ones. A model whose weights stay in a cache can
be faster than memory allows; one that computes in fewer bits can be faster than these products.
"""

from typing import NamedTuple

import torch

from .measure import now

PRODUCT_SIDES = (512, 1024, 2048, 4096, 8192)
LONG_ENOUGH = 0.05  # seconds of a product, after which larger ones are not tried
BUFFER_BYTES = {"cpu": 2**29}  # far more than a last-level cache holds
LARGE_BUFFER_BYTES = 2**31  # of other devices, so that starting the sum is nothing beside it
TRIES = 5


class Ceiling(NamedTuple):
    """What a device does at most, as measured: operations a second (a multiply-add is two) and bytes a second."""

    operations: float
    bandwidth: float


def floor_seconds(macs: int, read_bytes: int, ceiling: Ceiling) -> float:
    """The least time for so many multiply-adds and so many bytes read."""
    return max(2 * macs / ceiling.operations, read_bytes / ceiling.bandwidth)


@torch.inference_mode()
def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """Measures a device at a dtype, with the process's number of threads: the best of several."""
    return Ceiling(_best_product(device, dtype), _best_read(device))


def _best_product(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the fastest square product: sides grow until one takes long enough to be timed well."""
    best = 0.0
    for side in PRODUCT_SIDES:
        left, right = torch.randn(2, side, side, device=device).to(dtype)
        seconds = []
        for _ in range(1 + TRIES):
            start = now(device)
            torch.matmul(left, right)
            seconds.append(now(device) - start)
        best = max(best, 2 * side**3 / min(seconds[1:]))
        if min(seconds[1:]) > LONG_ENOUGH:
            break
    return best


def _best_read(device: torch.device) -> float:
    """Bytes a second of the fastest sum over a large buffer."""
    size = BUFFER_BYTES.get(device.type, LARGE_BUFFER_BYTES)
    buffer = torch.ones(size // 4, device=device)
    seconds = []
    for _ in range(1 + TRIES):
        start = now(device)
        buffer.sum()
        seconds.append(now(device) - start)
    return size / min(seconds[1:])
