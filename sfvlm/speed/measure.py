"""What things cost, measured so that two of them can be compared: in turns, in one process, on changing inputs.

    in_turns({...})          A B A B ..., warm-ups first        -> what each run measured
    cost_rows(...)           medians, extremes, and how many times less than the first   -> rows of a results file
    cost_table(rows)         one line a measure, one column a thing; or the other way round

A measure's name ends in its unit, one of `UNITS`: `encode_seconds`, `read_bytes`. What is measured of hosts: `sfvlm.speed.hosts`;
of encoders alone: `sfvlm.speed.encoders`; random models of published sizes to measure: `sfvlm.speed.shapes`.

Not torch.utils.benchmark: its `Timer` ends with one thing before it begins the next, and measures neither phases nor memory.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from ..util.files import write_json
from ..util.provenance import making

Measured = TypeVar("Measured")
Measures = dict[str, float]
Row = dict[str, Any]  # model, source, batch_size, measures: name -> median, min, max, values, times_less


class Unit(NamedTuple):
    """How the measures of a unit are shown.

    Attributes:
        factor, sign: Of the number in a table.
        title: What a measure is called, from the part of its name before the unit.
        less_is_better: Whether it makes sense how many times less than the first it is.
    """

    factor: float
    sign: str
    title: str = "{}"
    less_is_better: bool = True


UNITS = {
    "seconds": Unit(1e3, "ms"),
    "bytes": Unit(1e-6, "MB"),
    "tokens": Unit(1, "", "{} tokens"),
    "parameters": Unit(1e-6, "M", "{} parameters"),
    "macs": Unit(1e-9, "G", "{} MACs"),
    "joules": Unit(1, "J", "energy a {}"),
    "throughput": Unit(1, "photos/s", "{} throughput", less_is_better=False),
    "hours": Unit(1, "h", less_is_better=False),
    "share": Unit(100, "%", "share of the {} reached", less_is_better=False),
}
LINE_RATIOS = ("seconds", "macs", "joules")


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
        Of every measure `values` as they came, `median`, `min`, `max`, and `times_less`: the first thing's value by this
        one's, the median over the turns, so that a machine that slows down slows both; None where one is 0, the first has
        no such measure, or more of it is better.
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
    compared = UNITS[name.rpartition("_")[2]].less_is_better
    base = values if first is None else first.get(name, {}).get("values", [])
    ratio = None
    if compared and base and all(base) and all(values):
        ratio = statistics.median(one / other for one, other in zip(base, values, strict=True))
    median = statistics.median(values)
    return {"median": median, "min": min(values), "max": max(values), "values": values, "times_less": ratio}


def cost_table(rows: Sequence[Row], *, line_a_row: bool = False) -> str:
    """Rows of one batch size as text, with how many times less than the first beside each number.

    Args:
        rows: From `cost_rows`.
        line_a_row: A line a thing, for many things, with such ratios of `LINE_RATIOS` alone; else a line a measure.
    """
    names = dict.fromkeys(name for row in rows for name in row["measures"])
    lines = [[f"batch {rows[0]['batch_size']}", *(row["model"] for row in rows)]]
    for name in names:
        what, _, unit = name.rpartition("_")
        has_ratios = unit in LINE_RATIOS or not line_a_row
        cells = [_cell(row["measures"].get(name), unit, has_ratio=has_ratios and row is not rows[0]) for row in rows]
        lines.append([UNITS[unit].title.format(what.replace("_", " ")), *cells])
    if line_a_row:
        lines = list(zip(*lines, strict=True))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(summary: Mapping[str, Any] | None, unit: str, *, has_ratio: bool) -> str:
    """As 512 ms (498 ... 530) 7.5 x; the extremes where they differ, and are of something measured."""
    if summary is None:
        return ""
    factor, sign, _, is_compared = UNITS[unit]
    median, low, high = (_number(summary[key] * factor) for key in ("median", "min", "max"))
    spread = f" ({low} ... {high})" if is_compared and low != high else ""
    less = "" if not has_ratio or summary["times_less"] is None else f"  {summary['times_less']:.2g} x"
    return f"{median} {sign}".rstrip() + spread + less


def _number(value: float) -> str:
    """Three digits at least, and all those before the point."""
    return f"{value:.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def write_costs(path: Path, rows: Sequence[Row], facts: Mapping[str, Any], device: torch.device) -> None:
    """Writes rows, how they came about and `facts` as JSON; the file is whole or absent."""
    write_json(path, {"rows": list(rows), **making(device), **facts})
