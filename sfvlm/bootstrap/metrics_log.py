"""`metrics.jsonl`: what a run said of itself, a line of JSON every few steps and for every evaluation."""

import json
import time
from pathlib import Path

from ..util.files import append_text, write_text


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
