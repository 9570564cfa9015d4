"""What became of every tensor of a teacher and its student: `inheritance.json` in the student's folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One student tensor: its teacher tensor (None: fresh), whether it is trained, and its size."""

    student: str
    teacher: str | None
    trained: bool
    parameters: int


@dataclass(frozen=True)
class InheritanceReport:
    """What became of every tensor; `inheritance.json` in the output folder."""

    teacher: str
    teacher_sha256: str
    rows: tuple[Row, ...]
    dropped: tuple[tuple[str, int], ...]  # teacher tensors left behind on purpose, with their sizes
    earlier: str | None = None  # the student whose weights took the place of the teacher's, if any

    def count(self, *, inherited: bool | None = None, trained: bool | None = None) -> int:
        """Parameters of the student, filtered."""
        return sum(
            row.parameters
            for row in self.rows
            if (inherited is None or (row.teacher is not None) == inherited)
            and (trained is None or row.trained == trained)
        )

    def summary(self) -> str:
        """A table of parameters in millions, for people."""
        lines = [
            ("inherited, frozen", self.count(inherited=True, trained=False)),
            ("inherited, tuned", self.count(inherited=True, trained=True)),
            ("fresh", self.count(inherited=False)),
            ("dropped from the teacher", sum(size for _, size in self.dropped)),
        ]
        return "\n".join(f"{name:<26}{size / 1e6:9.3f} M" for name, size in lines)

    def save(self, folder: Path) -> None:
        rows = [row._asdict() for row in self.rows]
        (folder / "inheritance.json").write_text(json.dumps(asdict(self) | {"rows": rows}, indent=1) + "\n")
