"""Fills the figures and tables of the pages from the files in results/, and draws the plots.

    python scripts/build_pages.py             # writes README.md, docs/**/*.md, the cards of the shipped models, docs/images/*.png
    python scripts/build_pages.py --check     # writes nothing; exit code 2 and a line for each page and file that disagree

A few seconds. A page says where a figure stands, scripts/pages says which file it comes from:

    Of its score <!-- figure: swap-mean -->97.7 %<!-- end --> is left.

    <!-- table: swap -->
    ... written by this script ...
    <!-- end -->

    ![What it shows](images/budgets.png)

A table or paragraph of numbers that nobody measured, such as settings, says so above it: <!-- given: what they are -->.
"""

from dataclasses import dataclass
from pathlib import Path

from pages.building import build, check

from sfvlm.cli import run

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Options:
    """Fill the pages from results/, or say where the two disagree."""

    check: bool = False
    """Write nothing, and end with exit code 2 where a page and the files disagree."""
    root: Path = ROOT
    """The checkout."""


def pages(options: Options) -> None:
    """Fills or checks all pages and plots."""
    if options.check:
        check(options.root)
        print("All pages say what the files in results/ say.")
        return
    for path in build(options.root):
        print(f"Wrote {path.relative_to(options.root)}.")


if __name__ == "__main__":
    run(pages, Options)
