"""Training checkpoints: folders that are whole or absent, and what a run saves in them and takes up again.

A checkpoint is a folder `step-00001200` with the student's and the averaged weights (safetensors), the optimizer's state
(a tensor pickle, opened with `weights_only=True`) and `state.json`.
"""

import json
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..util.files import replacing
from .learner import Learner

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


@dataclass(frozen=True)
class RunCheckpoints:
    """The checkpoints of a run.

    Attributes:
        folder: Where they live.
        learner: What is saved, and taken up again.
        fingerprint: From `Origin.fingerprint`.
        keep: How many to leave.
        accelerator: Of this process.
    """

    folder: Path
    learner: Learner
    fingerprint: Mapping[str, Any]
    keep: int
    accelerator: Accelerator

    def save(self) -> None:
        """Where the learner is; on all processes at once, of which the first one writes."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        learner, scaler = self.learner, self.accelerator.scaler
        tensors = {"student": learner.student.state_dict()}
        if learner.average is not None:
            tensors["averaged"] = learner.average.module.state_dict()
        optimizer: dict[str, Any] = {"optimizer": learner.optimizer.state_dict()}
        if scaler is not None:
            optimizer["scaler"] = scaler.state_dict()
        state = {"fingerprint": self.fingerprint}
        save_checkpoint(self.folder, learner.step, tensors, optimizer, state, self.keep)

    def take_up(self) -> None:
        """Brings the learner to where the newest checkpoint is; without any, it stays before its first step.

        Raises:
            ValueError: The checkpoint is damaged, or of a run with other settings; each is named with both values.
        """
        learner, scaler = self.learner, self.accelerator.scaler
        checkpoints = list_checkpoints(self.folder)
        if not checkpoints:
            return
        tensors, optimizer, state = load_checkpoint(checkpoints[-1], self.accelerator.device)
        then = {**self.fingerprint, **state["fingerprint"]}  # older ones say less
        if changes := differences(then, self.fingerprint):
            raise ValueError(
                f"{checkpoints[-1]} was made with other settings ({changes}); give the same ones to resume."
            )
        learner.student.load_state_dict(tensors["student"])
        if learner.average is not None:
            learner.average.module.load_state_dict(tensors["averaged"])
        learner.optimizer.load_state_dict(optimizer["optimizer"])
        if scaler is not None:
            scaler.load_state_dict(optimizer["scaler"])
        learner.step = state["step"]
