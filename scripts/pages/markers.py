"""Markers in pages: where generated figures and tables stand, and what must not stand outside of them.

Of its score <!-- figure: swap-mean -->97.7 %<!-- end --> is left.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

CODE = re.compile(r"^(```|~~~).*?^\1[^\n]*$|``[^\n]*?``|`[^`\n]*`", re.M | re.S)
MARKED = re.compile(r"<!-- (table|figure): ([\w-]+) -->(.*?)<!-- end -->", re.S)
BEGIN = re.compile(r"<!-- (?:table|figure): ([\w-]+) -->")
GIVEN = re.compile(r"<!-- given: [^>]+ -->")
ROW = re.compile(r"^\|.*\|\s*$")
# What only a measurement gives: a number with decimals, a share, a time, a factor.
MEASURED = re.compile(r"^\W*\d[\d,]*(\.\d+)?\s*(%|ms|s|seconds|minutes|times|x)(?![\w-])|^\W*\d+\.\d+(?![\w.])")
IN_PROSE = re.compile(r"\d+\.\d+\s*%|\d\s*ms\b")


@dataclass(frozen=True)
class Place:
    """A marker of a page, and what stands in it."""

    kind: str  # table or figure
    name: str
    text: str


def places(page: str) -> list[Place]:
    """All markers of a page, but those in code, which are examples.

    Raises:
        ValueError: One has no end.
    """
    blank = _without_code(page)
    found = [Place(each[1], each[2], page[each.start(3) : each.end(3)].strip()) for each in MARKED.finditer(blank)]
    begun = [each[1] for each in BEGIN.finditer(blank)]
    if begun != [place.name for place in found]:
        open_ones = [name for name in begun if name not in [place.name for place in found]]
        raise ValueError(f"the marker {(open_ones or begun)[0]} has no <!-- end -->")
    return found


def filled(page: str, write: Callable[[str, str], str]) -> str:
    """The page with `write(kind, name)` in all its markers."""
    parts, end = [], 0
    for each in MARKED.finditer(_without_code(page)):
        text = write(each[1], each[2])
        parts += [page[end : each.start(3)], f"\n{text}\n" if each[1] == "table" else text]
        end = each.end(3)
    return "".join([*parts, page[end:]])


def unmarked(page: str) -> Iterator[str]:
    """Measured figures that stand in no marker: rows of tables, and shares or times with decimals in prose.

    A table or paragraph of numbers that nobody measured has a line `<!-- given: what they are -->` above it.
    """
    text = MARKED.sub(lambda each: re.sub(r"[^\n]", " ", each[0]), _without_code(page))
    is_given = is_first = False  # whether the block is, and whether the line is above its first one
    for line, shown in zip(text.split("\n"), page.split("\n"), strict=True):
        if GIVEN.search(line):
            is_given = is_first = True
        elif not line.strip():
            is_given = is_given and is_first
        else:
            is_first = False
            cells = line.strip().strip("|").split("|") if ROW.match(line) else []
            if not is_given and (any(MEASURED.match(cell.strip()) for cell in cells) or IN_PROSE.search(line)):
                yield shown.strip()


def wide_tables(page: str, most: int = 7) -> Iterator[str]:
    """The heads of tables with more than `most` columns."""
    lines = _without_code(page).split("\n")
    for above, line in pairwise(lines):
        if re.fullmatch(r"\|(\s*:?-+:?\s*\|)+\s*", line) and line.count("|") - 1 > most:
            yield above.strip()


def _without_code(page: str) -> str:
    """The page with blanks instead of code, so that places stay what they are."""
    return CODE.sub(lambda each: re.sub(r"[^\n]", " ", each[0]), page)
