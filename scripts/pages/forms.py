"""How numbers are written on the pages."""

from collections.abc import Mapping, Sequence
from typing import Any


def percent(value: float, digits: int = 1) -> str:
    """A share as 97.7 %."""
    return f"{100 * value:.{digits}f} %"


def whole_percent(value: float) -> str:
    """A share as 35 %."""
    return percent(value, 0)


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def with_interval(found: Mapping[str, float], name: str = "value", form: str = "{:.1f}", factor: float = 100) -> str:
    """A number and its 95 % interval, as 97.7 (95.7 to 100.1), from NAME, NAME_low, NAME_high or value, low, high."""
    ends = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    value, low, high = (form.format(factor * found[key]) for key in (name, *ends))
    return f"{value} ({low} to {high})"


def milliseconds(seconds: float) -> str:
    """A time as 37 ms."""
    value = 1000 * seconds
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def times(value: float) -> str:
    """A factor as 13.6 times, or 5.8: three digits at most."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def markdown(lines: Sequence[Sequence[Any]]) -> str:
    """Rows of cells, the first of which are headings, as a table of at most seven columns.

    Raises:
        ValueError: There are more columns, or rows differ in length.
    """
    widths = {len(line) for line in lines}
    if len(widths) > 1 or max(widths) > 7:
        raise ValueError(f"A table has rows of {sorted(widths)} cells: all must have the same number, at most 7.")
    rows = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])
