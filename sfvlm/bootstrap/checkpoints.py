"""Training checkpoints: folders that are whole or absent.

A checkpoint is a folder `step-00001200` with the student's and the averaged weights (safetensors), the optimizer's state
(a tensor pickle, opened with `weights_only=True`) and `state.json`.
"""

import json
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..util.files import replacing

PREFIX = "step-"


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which settings of `now` a resumed work was begun with otherwise, with both values; empty where there are none."""
    return ", ".join(f"{name}: {then.get(name)} then, {now[name]} now" for name in now if then.get(name) != now[name])


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    optimizer: dict[str, Any],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Writes `folder/step-N` and removes all but the newest `keep` ones.

    Args:
        folder: Where checkpoints live.
        step: Steps done.
        tensors: Name -> state dict, each saved as `name.safetensors`.
        optimizer: The optimizer's (and scaler's) state.
        state: Anything else, as JSON.
        keep: How many checkpoints to leave.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(f".{PREFIX}*"):  # of a process that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    final = folder / f"{PREFIX}{step:08d}"
    with replacing(final) as temporary:
        temporary.mkdir()
        for name, content in tensors.items():
            save_file(
                {key: tensor.detach().cpu().contiguous().clone() for key, tensor in content.items()},
                temporary / f"{name}.safetensors",
            )
        torch.save(optimizer, temporary / "optimizer.pt")
        (temporary / "state.json").write_text(json.dumps(state | {"step": step}))
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "state.json").is_file())


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Inside, Ctrl-C waits for the end: what belongs together is then saved together. Gives a list that holds what waits."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals reach that one alone
        yield asked
        return
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        signal.raise_signal(signal.SIGINT)


def load_checkpoint(
    path: Path, device: torch.device
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], dict[str, Any]]:
    """Reads tensors by name, the optimizer's state, and the JSON state.

    Raises:
        ValueError: A file of the checkpoint is damaged.
    """
    try:
        tensors = {file.stem: load_file(file, device=str(device)) for file in sorted(path.glob("*.safetensors"))}
        optimizer = torch.load(path / "optimizer.pt", map_location=device, weights_only=True)
        state = json.loads((path / "state.json").read_text())
    except Exception as error:  # each reader raises its own kind for a damaged file
        raise ValueError(
            f"The checkpoint {path} is damaged ({error}); remove it to resume from the one before."
        ) from error
    return tensors, optimizer, state
