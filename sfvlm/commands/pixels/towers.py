"""What the commands of pixels open: segmentation models, towers with their guides, the teacher and the cheap ways, classes' names."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...alternatives.methods import METHODS, check_count
from ...alternatives.towers import reduce
from ...dense.guide import Guide, open_guide
from ...encoder.folder import open_student
from ...encoder.sparseformer import SparseFormerModel
from ...photos.class_names import read_classes
from ...segmentation.configuration import SegmenterConfig
from ...segmentation.model import SparseFormerForSemanticSegmentation
from ...segmentation.towers import Tower
from ...teachers.open import DenseTransformer, Teacher, open_teacher
from ...util.files import read_json
from ...util.tensors import opened_strictly
from ...zoo.names import resolve


class Opened(NamedTuple):
    """A tower, and what belongs to it.

    Attributes:
        tower: Sparse or dense.
        guide: Of a sparse one that has one.
        source: As it was given.
    """

    tower: SparseFormerModel | DenseTransformer
    guide: Guide | None
    source: str


def is_segmenter(source: str) -> bool:
    """Whether it is the folder of a trained segmentation model."""
    path = Path(source) / "config.json"
    return path.is_file() and read_json(path).get("model_type") == SegmenterConfig.model_type


def open_segmenter(folder: str | Path) -> SparseFormerForSemanticSegmentation:
    """A trained segmentation model, strictly.

    Raises:
        ValueError: Its tensors are not those of its configuration.
    """
    return opened_strictly(SparseFormerForSemanticSegmentation, folder, "segmentation model")


def open_tower(source: str, guide: Path | None = None, *, boxes_alone: bool = False) -> Opened:
    """A SparseFormer with its guide, from its own folder or from another one; or a teacher, as bootstrapping takes it.

    Raises:
        ValueError: It is neither.
    """
    found = resolve(source)
    path = Path(found) / "config.json"
    if path.is_file() and read_json(path).get("model_type") == "sparseformer":
        student = open_student(found)
        opened = None if boxes_alone else open_guide(Path(found) if guide is None else guide, student.config)
        if guide is not None and opened is None and not boxes_alone:
            raise ValueError(f"There is no guide in {guide}: make one with scripts/train_guide.py.")
        return Opened(student, opened, source)
    if guide is not None:
        raise ValueError(f"A guide is for SparseFormers, and {source} is none: leave out --guide.")
    return Opened(open_teacher(source).model, None, source)


def teacher_of(sources: Sequence[str], given: str | None) -> Teacher:
    """The dense tower beside some models: as it is given, or the one that they name.

    Raises:
        ValueError: They name none, or several.
    """
    if given is not None:
        return open_teacher(given)
    named: dict[str, str] = {}
    for source in sources:
        for name in ("segmentation.json", "bootstrap.json"):
            path = Path(resolve(source)) / name
            if path.is_file() and isinstance(teacher := read_json(path).get("teacher"), str):
                named[teacher] = source
                break
    if len(named) != 1:
        found = f"they name several ({', '.join(named)})" if named else "none of them names one"
        raise ValueError(f"There must be one dense tower beside {', '.join(sources)}, and {found}: give --teacher.")
    return open_teacher(next(iter(named)))


def cheap_ways(teacher: Teacher, budgets: Sequence[int]) -> list[tuple[str, Tower]]:
    """Every cheap way to each budget, where it can give so many tokens, by name."""
    found: list[tuple[str, Tower]] = []
    config = teacher.config
    for count in budgets:
        for name in METHODS:
            try:
                check_count(name, count, config.teacher_grid**2, config.num_hidden_layers)
            except ValueError:  # such as a grid of a number that is no square: the way has no such budget
                continue
            found.append((f"reduce:{name}@{count}", reduce(teacher, name, count, read_layer=-1)))
    return found


def names_in(path: Path | None) -> tuple[str, ...] | None:
    """Class names in a file; None without one.

    Raises:
        ValueError: There is no such file, or it holds none.
    """
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"The file {path} does not exist.")
    return read_classes(path).names
