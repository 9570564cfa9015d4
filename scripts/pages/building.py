"""Fills pages and draws plots, or says where they and the results files disagree."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from sfvlm.util.files import write_text

from .figures import FIGURES
from .files import Results
from .markers import filled, places, unmarked, wide_tables
from .plots import PLOTS, drawn_from
from .tables import TABLES

IMAGES = "docs/images"


class Writer:
    """Writes what stands in markers, and remembers of which files each name was made."""

    def __init__(self, root: Path) -> None:
        self.results = Results(root / "results")
        self.made: dict[tuple[str, str], str] = {}
        self.files: dict[tuple[str, str], list[str]] = {}

    def __call__(self, kind: str, name: str) -> str:
        """The figure or table of that name.

        Raises:
            ValueError: There is none, or its file lacks what it needs.
        """
        known = FIGURES if kind == "figure" else TABLES
        if name not in known:
            raise ValueError(f"no {kind} is called {name}: it belongs into scripts/pages/{kind}s.py")
        if (kind, name) not in self.made:
            before, self.results.asked = self.results.asked, {}
            try:
                self.made[kind, name] = known[name](self.results)
            finally:
                self.files[kind, name] = list(self.results.asked)
                self.results.asked = before | self.results.asked
        return self.made[kind, name]


def pages_of(root: Path) -> list[Path]:
    """All pages that people read and that show figures."""
    found = [root / "README.md", *(root / "docs").rglob("*.md"), *(root / "sfvlm/weights").glob("*/README.md")]
    return sorted(page for page in found if page.is_file())


def build(root: Path) -> list[Path]:
    """Writes all pages and plots that change; returns them.

    Raises:
        ValueError: A name is unknown, a file lacks something or is used by nothing: one line each.
    """
    write, changed, problems = Writer(root), [], []
    for page in pages_of(root):
        text = page.read_text(encoding="utf-8")
        try:
            places(text)
            new = filled(text, write)
        except ValueError as error:
            problems.append(f"{page.relative_to(root)}: {error}.")
            continue
        if new != text:
            write_text(page, new)
            changed.append(page)
    for name, plot in PLOTS.items():
        path = root / IMAGES / f"{name}.png"
        try:
            data = plot.data(write.results)
        except ValueError as error:
            problems.append(f"{IMAGES}/{name}.png: {error}.")
            continue
        if drawn_from(path) != digest(data):
            path.parent.mkdir(parents=True, exist_ok=True)
            plot.draw(data, path, digest(data))
            changed.append(path)
    problems += [] if problems else _idle(root, write)
    if problems:
        raise ValueError("\n".join(["The pages cannot be built:", *problems]))
    return changed


def check(root: Path) -> None:
    """Compares all pages and plots with the results files.

    Raises:
        ValueError: They disagree: a line for each place, with its page, its name, both texts and the files.
    """
    problems = list(_disagreements(root))
    if problems:
        raise ValueError("\n".join(["Pages and results disagree; `make pages` fills them from the files:", *problems]))


def digest(data: object) -> str:
    """What a plot was drawn from, as a hash."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _disagreements(root: Path) -> Iterator[str]:
    write, is_whole = Writer(root), True
    for page in pages_of(root):
        name, text = page.relative_to(root), page.read_text(encoding="utf-8")
        try:
            found = places(text)
        except ValueError as error:
            yield f"{name}: {error}."
            is_whole = False
            continue
        for place in found:
            try:
                right = write(place.kind, place.name)
            except ValueError as error:
                yield f"{name}: {error}."
                is_whole = False
                continue
            if place.text != right.strip():
                files = ", ".join(f"results/{each}" for each in write.files[place.kind, place.name])
                yield f"{name}: the {place.kind} {place.name} says {_first_difference(place.text, right)} ({files})."
        for line in unmarked(text):
            yield f"{name}: a measured figure stands in no marker: {line}"
        for line in wide_tables(text):
            yield f"{name}: a table has more than seven columns: {line}"
    for name, plot in PLOTS.items():
        try:
            data = plot.data(write.results)
        except ValueError as error:
            yield f"{IMAGES}/{name}.png: {error}."
            is_whole = False
            continue
        if drawn_from(root / IMAGES / f"{name}.png") != digest(data):
            yield f"{IMAGES}/{name}.png was drawn from other numbers than the files hold."
    if is_whole:
        yield from _idle(root, write)


def _idle(root: Path, write: Writer) -> Iterator[str]:
    """Names and plots that no page shows, and files that nothing is made of."""
    texts = [page.read_text(encoding="utf-8") for page in pages_of(root)]
    shown = {(place.kind, place.name) for text in texts for place in places(text)}
    for kind, known in (("figure", FIGURES), ("table", TABLES)):
        for name in known:
            if (kind, name) not in shown:
                yield f"The {kind} {name} of scripts/pages/{kind}s.py is on no page."
    for name in PLOTS:
        if not any(f"images/{name}.png" in text for text in texts):
            yield f"{IMAGES}/{name}.png is on no page."
    for name in write.results.names():
        if name not in write.results.asked:
            yield f"results/{name} is used by nothing: a figure, table or plot shows it, or it goes."


def _first_difference(said: str, right: str) -> str:
    """The first line of a text that differs from what it should be, and that one."""
    lines, wanted = said.split("\n"), right.strip().split("\n")
    for line, other in zip(lines, wanted, strict=False):
        if line != other:
            return f"{line!r}, and the files give {other!r}"
    return f"{len(lines)} lines, and the files give {len(wanted)}"
