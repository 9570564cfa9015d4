"""What things cost, measured so that two of them can be compared: in turns, in one process, on changing inputs.

    in_turns({...})          A B A B ..., warm-ups first        -> what each run measured
    cost_rows(...)           medians, extremes, and how many times less than the first   -> rows of a results file
    cost_table(rows)         one line a measure, one column a thing

A measure's name ends in its unit: `_seconds`, `_bytes`, `_tokens`, `_parameters`, `_macs`. What is measured of hosts and of
encoders alone: `sfvlm.speed_hosts`; random models of published sizes to measure: `sfvlm.speed_shapes`.
"""

import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from .files import write_text

Measured = TypeVar("Measured")
Measures = dict[str, float]
Row = dict[str, Any]  # model, source, batch_size, measures: name -> median, min, max, values, times_less
# Unit -> its factor and sign in a table, and how a line is called.
UNITS = {
    "seconds": (1e3, "ms", "{}"),
    "bytes": (1e-6, "MB", "{}"),
    "tokens": (1, "", "{} tokens"),
    "parameters": (1e-6, "M", "{} parameters"),
    "macs": (1e-9, "G", "{} MACs"),
}


def now(device: torch.device) -> float:
    """Seconds on the clock once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


class Phases:
    """Times the phases of one run; on CUDA it also notes the memory that each takes at most.

    Attributes:
        seconds: Of each phase.
        peaks: Most bytes in use during each phase, above those in use when the run began. Empty off CUDA, where torch
            does not count what it allocates.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: Measures = {}
        self.peaks: Measures = {}
        self._counts = device.type == "cuda"
        self._before = torch.cuda.memory_allocated(device) if self._counts else 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What runs inside is a phase of that name."""
        if self._counts:
            torch.cuda.reset_peak_memory_stats(self.device)
        start = now(self.device)
        yield
        self.seconds[name] = now(self.device) - start
        if self._counts:
            self.peaks[name] = torch.cuda.max_memory_allocated(self.device) - self._before


def in_turns(actions: Sequence[Callable[[int], Measured]], repeats: int, warmups: int = 1) -> list[list[Measured]]:
    """Runs the actions in turns: all of them in their order, then all again.

    Args:
        actions: Each gets the number of the turn, counted from 0 with the warm-ups, so that its input can change.
        repeats: Turns whose results are kept.
        warmups: Turns before them.

    Returns:
        What each action returned, turn by turn, without the warm-ups.
    """
    results: list[list[Measured]] = [[] for _ in actions]
    for turn in range(warmups + repeats):
        for action, kept in zip(actions, results, strict=True):
            result = action(turn)
            if turn >= warmups:
                kept.append(result)
    return results


def cost_rows(
    things: Sequence[tuple[str, str]],
    batch_size: int,
    facts: Sequence[Measures],
    runs: Sequence[Sequence[Measures]],
) -> list[Row]:
    """Rows of a results file, one a thing.

    Args:
        things: Name and source of each.
        batch_size: Photos at once.
        facts: What does not change from run to run.
        runs: What each run of each thing measured.

    Returns:
        Of every measure `values` as they came, `median`, `min`, `max`, and `times_less`: the first thing's median by this
        one's, or None where either is 0 or the first has no such measure.
    """
    rows: list[Row] = []
    for (name, source), fixed, measured in zip(things, facts, runs, strict=True):
        values = {key: [value] for key, value in fixed.items()}
        values |= {key: [run[key] for run in measured] for key in measured[0]}
        first = rows[0]["measures"] if rows else None
        measures = {key: _summary(each, key, first) for key, each in values.items()}
        rows.append({"model": name, "source": source, "batch_size": batch_size, "measures": measures})
    return rows


def _summary(values: list[float], name: str, first: Mapping[str, Any] | None) -> dict[str, Any]:
    median = statistics.median(values)
    base = median if first is None else first.get(name, {}).get("median")
    ratio = base / median if base and median else None
    return {"median": median, "min": min(values), "max": max(values), "values": values, "times_less": ratio}


def cost_table(rows: Sequence[Row]) -> str:
    """Rows of one batch size as text: a line a measure, and how many times less than the first beside each number."""
    names = dict.fromkeys(name for row in rows for name in row["measures"])
    lines = [[f"batch {rows[0]['batch_size']}", *(row["model"] for row in rows)]]
    for name in names:
        what, _, unit = name.rpartition("_")
        cells = [_cell(row["measures"].get(name), unit, is_first=row is rows[0]) for row in rows]
        lines.append([UNITS[unit][2].format(what.replace("_", " ")), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(summary: Mapping[str, Any] | None, unit: str, *, is_first: bool) -> str:
    """As 512 ms (498 ... 530) 7.5 x; the extremes where they differ."""
    if summary is None:
        return ""
    scale, sign, _ = UNITS[unit]
    median, low, high = (_number(summary[key] * scale) for key in ("median", "min", "max"))
    spread = f" ({low} ... {high})" if low != high else ""
    less = "" if is_first or summary["times_less"] is None else f"  {summary['times_less']:.2g} x"
    return f"{median} {sign}".rstrip() + spread + less


def _number(value: float) -> str:
    """Three digits at least, and all those before the point."""
    return f"{value:.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def machine(device: torch.device) -> dict[str, Any]:
    """What the measuring ran on: processor, threads, device, versions."""
    names = ("sfvlm", "torch", "transformers")
    return {
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names},
    }


def _processor() -> str:
    """The processor's name, as Linux has it; elsewhere as Python does."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_costs(path: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """Writes rows and `facts` as JSON; the file is whole or absent."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    write_text(path, json.dumps({"rows": list(rows), **facts, "date": date}, indent=1) + "\n")
