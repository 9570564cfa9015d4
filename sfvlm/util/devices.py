"""Which device to compute on."""

import torch


def usable_device(name: str | None = None) -> torch.device:
    """The device of that name, by default CUDA where there is one.

    Raises:
        ValueError: It cannot be used.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"The device {name!r} cannot be used: {str(error).strip().splitlines()[0]}") from error
    return device
