"""`metrics.jsonl`: what a run said of itself, a line of JSON every few steps and for every evaluation."""

import json
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..encoder import roi
from ..encoder.sparseformer import SparseFormerOutput
from ..util.files import append_text, write_text
from .learner import Learner
from .optimization import rate_at
from .options import BootstrapOptions


class MetricsLog:
    """Lines of numbers, each with its `step`, in a file that a resumed run continues."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, values: dict[str, float]) -> None:
        """Appends a line."""
        append_text(self.path, json.dumps(rounded(values)) + "\n")

    def rewind(self, step: int) -> None:
        """Drops the lines of steps that a resumed run will do again, and one that a killed run left unfinished."""
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if line.endswith("}")]
            write_text(self.path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))


class RunLog:
    """What a run says as it goes: lines in `metrics.jsonl`, the same to what `report_to` names, and a bar.

    All processes call it, for its means are theirs together; the first one writes.

    Args:
        metrics: The file.
        learner: Where it is when the run begins, or goes on.
        options: Of the run.
        accelerator: Of this process.
    """

    def __init__(
        self, metrics: MetricsLog, learner: Learner, options: BootstrapOptions, accelerator: Accelerator
    ) -> None:
        self._metrics, self._learner, self._options, self._accelerator = metrics, learner, options, accelerator
        self._tracks = options.report_to != "none"
        if self._tracks:
            settings = {
                name: value if isinstance(value, int | float | str) else json.dumps(value)
                for name, value in options.to_dict().items()
            }
            accelerator.init_trackers("sfvlm", config=settings)
        self._bar: Any = tqdm(
            total=options.steps, initial=learner.step, unit="step", disable=not accelerator.is_main_process,
            smoothing=0.05,
        )  # fmt: skip
        self._rate = Rate(options.batch_size, learner.step)

    def step(self, parts: dict[str, Tensor], output: SparseFormerOutput) -> None:
        """After each step: the bar goes on, and every few steps there is a line.

        Args:
            parts: Of this process's loss, and their sum as `loss`.
            output: Of the student.
        """
        step = self._learner.step
        if step % self._options.log_every == 0 or step == self._options.steps:
            assert output.token_rois is not None
            speed = self._rate.at(step)
            mean = {name: self._accelerator.reduce(value, "mean").item() for name, value in parts.items()}  # type: ignore[union-attr]
            boxes = {f"box_{name}": value for name, value in roi.spread(output.token_rois[-1]).items()}
            rate = {"rate": self._learner.peaks[0] * rate_at(step - 1, self._options)}
            self._write(mean | boxes | rate | {"photos_a_second": speed})
            self._bar.set_postfix(loss=f"{mean['loss']:.4f}", box=f"{boxes['box_size']:.3f}", photos_s=f"{speed:.0f}")
        self._bar.update()

    def evaluation(self, result: dict[str, float]) -> None:
        """A line of an evaluation, whose time is not counted among that of the steps."""
        self._write({f"eval_{name}": value for name, value in result.items()})
        self._rate.restart(self._learner.step)

    def close_bar(self) -> None:
        """No more steps come."""
        self._bar.close()

    def end(self) -> None:
        """Nothing more comes."""
        if self._tracks:
            self._accelerator.end_training()

    def _write(self, values: dict[str, float]) -> None:
        if not self._accelerator.is_main_process:
            return
        self._metrics.add({"step": self._learner.step} | values)
        if self._tracks:
            self._accelerator.log(values, step=self._learner.step)


class Rate:
    """Photos a second since it was last asked.

    Args:
        batch_size: Photos a step.
        step: Where the run is.
    """

    def __init__(self, batch_size: int, step: int) -> None:
        self.batch_size = batch_size
        self.restart(step)

    def restart(self, step: int) -> None:
        """Leaves out what has passed: it was not spent on steps."""
        self._step, self._seconds = step, time.perf_counter()

    def at(self, step: int) -> float:
        """Up to this step, and from there on anew."""
        photos, before = self.batch_size * (step - self._step), self._seconds
        self.restart(step)
        return photos / (self._seconds - before)


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Six significant digits of each float; whole numbers stay."""
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}
