"""The flags of `sfvlm retained`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class RetainedCommand:
    """Join results of eval/vqa.py: the share of the first model's score that each other one retains, on average too."""

    results: Annotated[list[Path], tyro.conf.Positional]
    """Files that eval/vqa.py --out wrote, one a benchmark, all with the same first model; models go by their names."""
    of: str | None = None
    """The model whose lead over each other one is asked for, as the results name it; default the second."""
    out: Path | None = None
    """A .json file to write."""
