"""One step: a batch of views to a loss, and the loss to other weights.

    batch --> pixels (B, 3, S, S) --+-- teacher, host --> Target --+--> loss, its parts --> gradients --> weights, average
                                    +-- student -------> output --+

Which rates and which budget it has depends on its number alone.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..encoder.sparseformer import SparseFormerOutput
from ..photos.batches import Selection, ViewBatch
from .alignment import align
from .batches import pixels_of
from .checkpoints import uninterrupted
from .learner import Learner
from .optimization import rate_at
from .options import BootstrapOptions
from .targets.conversations import Conversations
from .targets.teacher import TeacherTargets


class NonFiniteLoss(ValueError):
    """The loss or its gradient was not a number: the run stopped before the step that would have spoilt the weights."""


@dataclass(frozen=True)
class Step:
    """What a step is made of.

    Attributes:
        learner: Is changed by it.
        targets, conversations: What the teacher and the host say of the photos; no conversations without a host.
        photos: Trained on, which a message names.
        checkpoints: Folder that a message names.
        options: Of the run.
        accelerator: Of this process.
    """

    learner: Learner
    targets: TeacherTargets
    conversations: Conversations | None
    photos: Selection
    checkpoints: Path
    options: BootstrapOptions
    accelerator: Accelerator

    def __call__(self, batch: ViewBatch, interrupts: Sequence[int]) -> tuple[dict[str, Tensor], SparseFormerOutput]:
        """Takes the step.

        Args:
            batch: This process's part of it.
            interrupts: Of this process, where several have to stop at the same step.

        Returns:
            The parts of the loss by name, and their sum as `loss`, of this process; what the student said.

        Raises:
            NonFiniteLoss: With the step and photos of the batch, before anything is changed.
            KeyboardInterrupt: Some process was interrupted.
        """
        self._set_rates()
        loss, parts, output = self._forward(batch)
        broken, interrupted = self._anywhere(not torch.isfinite(loss.detach()), bool(interrupts))
        if broken:
            raise self._no_number("loss", loss, batch)
        if interrupted:
            raise KeyboardInterrupt
        self._backward(loss, batch)
        self._change_weights()
        return parts | {"loss": loss.detach()}, output

    def _set_rates(self) -> None:
        factor = rate_at(self.learner.step, self.options)
        for group, peak in zip(self.learner.optimizer.param_groups, self.learner.peaks, strict=True):
            group["lr"] = peak * factor

    def _forward(self, batch: ViewBatch) -> tuple[Tensor, dict[str, Tensor], SparseFormerOutput]:
        targets, model = self.targets, self.learner.model
        pixels = pixels_of(batch, targets.config, self.accelerator)
        model.train()
        with self.accelerator.autocast():
            target = targets(batch, pixels, self.conversations)
            wants_tokens = bool(targets.objective.tokens or targets.host)
            budget = budget_at(self.learner.step, self.options)
            output = model(pixels, budget, output_hidden_states=wants_tokens)
            loss, parts = align(output, target, targets.objective, targets.host)
        return loss, parts, output

    def _backward(self, loss: Tensor, batch: ViewBatch) -> None:
        self.accelerator.backward(loss)
        parameters, most = self.learner.model.parameters(), self.options.clip_grad_norm or math.inf
        norm: Any = self.accelerator.clip_grad_norm_(parameters, most)
        if self.accelerator.scaler is None and not torch.isfinite(norm):  # a scaler leaves such steps out
            raise self._no_number("gradient's norm", norm, batch)

    def _change_weights(self) -> None:
        learner = self.learner
        with uninterrupted():  # weights, their average and the step's number change together
            learner.optimizer.step()
            learner.optimizer.zero_grad(set_to_none=True)
            learner.step += 1
            if learner.average is not None:
                learner.average.update(learner.student, learner.step)

    def _anywhere(self, *said: bool) -> list[bool]:
        """Whether any process says so, of several things."""
        flags = torch.tensor(said, device=self.accelerator.device).float()
        counts: Any = self.accelerator.reduce(flags, "sum")  # it knows no maximum
        return [count > 0 for count in counts.tolist()]

    def _no_number(self, what: str, value: Tensor, batch: ViewBatch) -> NonFiniteLoss:
        keys = ", ".join(self.photos.key(int(index)) for index in batch["index"][:4])
        return NonFiniteLoss(
            f"The {what} is {value.item()} at step {self.learner.step + 1} (photos {keys}, ...). The last good checkpoint stays "
            f"in {self.checkpoints}; begin again with lower rates, in another folder."
        )


def budget_at(step: int, options: BootstrapOptions) -> int | None:
    """A step's budget, the same on all processes; None for the student's own."""
    return random.Random(f"{options.seed} {step}").choice(options.budgets) if options.budgets else None
