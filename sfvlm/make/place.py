"""The folder of a run: what is in it, what of it is done, and how long that took.

    make.json            what was asked, and each step with its time: written anew whenever a step begins or ends
    held-back.txt        the names of the photos that are measured on
    tower/               the SparseFormer, with its checkpoints
    llava/               the LLaVA with that tower
    fidelity.json        how near it stays, beside the alternatives; fidelity/answers.jsonl has the dense LLaVA's answers
    speed.json           what a reply costs
    examples/            photos with both answers
    report.html          all of that on one page

Each step writes what it makes whole or not at all, and is marked when it is whole.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..bootstrap.checkpoints import differences
from ..util.alone import LOCK
from ..util.files import check_writable, make_folder, read_json, write_json
from ..util.provenance import provenance

MARKS = "make.json"
PACKAGES = ("sfvlm", "torch", "transformers", "pillow")


@dataclass(frozen=True)
class Spent:
    """Time that a step took, over all runs that worked on it.

    Attributes:
        seconds: Of the runs that ended by themselves or were interrupted.
        at_least: Whether a run was killed, whose time nobody knows.
    """

    seconds: float
    at_least: bool


class Place:
    """The folder of a run.

    Args:
        folder: Where it lies.
        marks: What its `make.json` says.
    """

    def __init__(self, folder: Path, marks: dict[str, Any]) -> None:
        self.folder, self.marks = folder, marks
        self.held_back = folder / "held-back.txt"
        self.tower, self.llava, self.examples = folder / "tower", folder / "llava", folder / "examples"
        self.fidelity, self.speed = folder / "fidelity.json", folder / "speed.json"
        self.report = folder / "report.html"

    @property
    def answers(self) -> Path:
        """What the dense LLaVA said of the photos held back."""
        return self.fidelity.with_suffix("") / "answers.jsonl"

    def is_done(self, step: str) -> bool:
        """Whether a step is whole."""
        return bool(self._of(step).get("done"))

    def spent(self, step: str) -> Spent:
        """What it took."""
        mark = self._of(step)
        killed = mark.get("killed", 0) + (not mark.get("done") and mark.get("running") is not None)
        return Spent(mark.get("seconds", 0.0), bool(killed))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Inside, a step is worked on; it is done at the end, unless something fails. Its time is kept in either case."""
        mark = self.marks["steps"].setdefault(name, {"seconds": 0.0, "killed": 0, "done": None, "running": None})
        mark["killed"] += mark["running"] is not None  # a run that could not even say that it ended
        mark["running"] = _now()
        self._write()
        started, is_whole = time.monotonic(), False
        try:
            yield
            is_whole = True
        finally:
            mark["seconds"] = round(mark["seconds"] + time.monotonic() - started, 1)
            mark["running"] = None
            mark["done"] = _now() if is_whole else None
            self._write()

    def remember(self, name: str, value: Any) -> None:
        """Keeps what the report shall say, and a later run would not find again."""
        self.marks[name] = value
        self._write()

    def _of(self, step: str) -> dict[str, Any]:
        return self.marks["steps"].get(step, {})

    def _write(self) -> None:
        write_json(self.folder / MARKS, self.marks)


def open_place(folder: Path, asked: Mapping[str, Any]) -> Place:
    """The folder of a run, new or begun before by the same arguments.

    Args:
        folder: May be missing or empty.
        asked: What the run depends on, as JSON gives it back.

    Raises:
        ValueError: It holds something else, or was begun with other arguments; or it cannot be written.
    """
    path = folder / MARKS
    if path.is_file():
        marks = read_json(path)
        then = marks.get("asked")
        if not isinstance(then, dict) or not isinstance(marks.get("steps"), dict):
            raise ValueError(f"{path} is damaged: it does not say what was asked. Give another --out.")
        if changes := differences(then, asked):
            raise ValueError(
                f"{folder} was begun with other arguments ({changes}): give the same ones, or another --out."
            )
        check_writable(folder)
        return Place(folder, marks)
    if folder.exists() and (not folder.is_dir() or any(each.name != LOCK for each in folder.iterdir())):
        raise ValueError(f"{folder} holds something that `sfvlm make` did not put there: give another --out.")
    make_folder(folder)
    check_writable(folder)
    place = Place(folder, {"asked": dict(asked), "steps": {}, **provenance(*PACKAGES)})
    write_json(path, place.marks)
    return place


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
