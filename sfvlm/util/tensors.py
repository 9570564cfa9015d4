"""Tensors by name: whether two sets of them agree, and a hash of one. And equal rows, which a module computes once."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import reason


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


def opened_strictly(kind: Any, folder: str | Path, title: str) -> Any:
    """A model of one of our classes from its folder, ready to be asked; every tensor has its place.

    Args:
        kind: The class, with transformers' `from_pretrained`.
        folder: Holds its configuration and its tensors.
        title: What it is, as in "The TITLE in FOLDER cannot be opened".

    Raises:
        ValueError: A file is damaged, or the tensors are not those of the configuration.
    """
    try:
        model, info = kind.from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # readers of damaged files raise their own kinds
        raise ValueError(f"The {title} in {folder} cannot be opened: {reason(error)}") from error
    check_loaded(info, f"in {folder}")
    return model.eval()


def tensor_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and float32 values, in sorted order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def equal_rows_once(module: nn.Module, name: str) -> Iterator[None]:
    """Inside, a module computes equal rows of its input `name`, or of its first one, once: several questions about one photo.

    Every tensor of its output is taken to have a row for each of the input's.
    """
    places: list[Tensor | None] = []

    def before(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = given[name] if name in given else args[0]
        first, place = _first_rows(rows)
        places.append(None if len(first) == len(rows) else place)
        if len(first) == len(rows):
            return args, given
        chosen = rows[first]
        return (args, given | {name: chosen}) if name in given else ((chosen, *args[1:]), given)

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        place = places.pop()
        return output if place is None else _rows_of(output, place)

    hooks = module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first_rows(rows: Tensor) -> tuple[list[int], Tensor]:
    """The rows that no earlier one equals, and for each row its place among those."""
    first: list[int] = []
    places = []
    for number, row in enumerate(rows):
        place = next((place for place, other in enumerate(first) if torch.equal(rows[other], row)), len(first))
        if place == len(first):
            first.append(number)
        places.append(place)
    return first, torch.tensor(places, device=rows.device)


def _rows_of(output: Any, places: Tensor) -> Any:
    """The rows at these places of every tensor in a tuple or model output; what is none stays."""
    if isinstance(output, Tensor):
        return output[places]
    if isinstance(
        output, Mapping
    ):  # transformers' outputs; of one that is a dataclass too, fields and keys are the same
        changed = {key: _rows_of(value, places) for key, value in output.items()}
        return type(output)(**changed)
    if isinstance(output, tuple | list):
        return type(output)(_rows_of(each, places) for each in output)
    return output
