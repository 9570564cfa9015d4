"""Tensors by name: whether two sets of them agree, and a hash of one."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def check_keys(given: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    """Raises one ValueError that lists missing, unknown and wrongly shaped tensors, if there are any."""
    missing = sorted(wanted.keys() - given.keys())
    unknown = sorted(given.keys() - wanted.keys())
    shapes = [
        f"{key} is {tuple(given[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in sorted(given.keys() & wanted.keys())
        if given[key].shape != wanted[key].shape
    ]
    problems = [
        f"{title}: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
        for title, names in (("missing", missing), ("unknown", unknown), ("shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(f"The tensors of {what} do not fit: {'; '.join(problems)}.")


def check_loaded(info: Mapping[str, Any], what: str, computed: tuple[str, ...] = ()) -> None:
    """Raises one ValueError from what transformers' `output_loading_info` says did not fit.

    Args:
        info: Kind of problem -> names of tensors.
        what: The model, as it is called in the message.
        computed: Endings of names that old checkpoints hold beside the parameters.
    """
    problems = []
    for kind, names in info.items():
        found: Iterable[str] = map(str, names) if kind != "error_msgs" else ()
        if kind == "unexpected_keys":
            found = (name for name in found if not name.endswith(computed))
        if listed := sorted(found):
            problems.append(f"{kind.replace('_', ' ')}: {', '.join(listed[:6])}")
    if problems:
        raise ValueError(f"The tensors {what} do not fit its configuration ({'; '.join(problems)}).")


def tensor_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and float32 values, in sorted order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
