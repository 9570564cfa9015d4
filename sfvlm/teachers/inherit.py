"""Which teacher tensor becomes which student tensor: literal tables, strict both ways, with a report.

Every teacher tensor is either inherited or dropped on purpose; every student tensor is either inherited or on the explicit
list of fresh ones. Anything else is an error.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..encoder.configuration import SparseFormerConfig
from ..encoder.sparseformer import SparseFormerModel
from ..util.files import read_json
from ..util.tensors import check_keys
from ..zoo.names import resolve
from .kernels import resample_kernel
from .open import Teacher
from .report import InheritanceReport, Row

Table = dict[str, str | None]

# `{}` stands for a block's number; a name that ends in `*` for everything that starts so; `None` for dropped on purpose.
HEAD: Table = {"head.*": "head.*"}

INHERITED: Table = {
    "patch.weight": "focusing.kernel",  # resampled to the glimpse size
    "patch.bias": "focusing.bias",
    "positions": "focusing.positions",  # as a map, read at box centres; the class token's own goes into it
    "cls_token": "cls_token",
    "pre_norm.*": "pre_norm.*",
    "blocks.{}.*": "blocks.{}.*",
    **HEAD,
}

FRESH: Table = {
    "patch.weight": None,  # what a fresh focusing stage replaces
    "patch.bias": None,
    "positions": None,
    "cls_token": "cls_token",
    "pre_norm.*": None,
    "blocks.{}.*": "blocks.{}.*",
    **HEAD,
}

TABLES: dict[str, Table] = {"inherited": INHERITED, "chosen": INHERITED, "fresh": FRESH}

# Student tensors that have no counterpart in a teacher.
FRESH_TENSORS: dict[str, tuple[str, ...]] = {
    "inherited": ("focusing.token_roi.weight", "focusing.refiner.*", "focusing.memory_norm.*", "focusing.memory.*"),
    "chosen": (
        "focusing.saliency_norm.*",
        "focusing.saliency.*",
        "focusing.memory_norm.*",
        "focusing.memory.*",
        "proportional.*",
    ),
    "fresh": ("focusing.*",),
}


def inherit(
    teacher: Teacher, config: SparseFormerConfig, tuned_blocks: int | None = None, seed: int = 0
) -> tuple[SparseFormerModel, InheritanceReport]:
    """Builds a student and fills it from the teacher; freezes what is not to be trained.

    Args:
        teacher: An open teacher.
        config: The student's configuration, from `student_config`.
        tuned_blocks: Leading student blocks that are trained; by default two thirds of them. The rest and the head stay frozen.
        seed: Of the fresh weights; the global generator is left as it was.

    Raises:
        ValueError: A tensor of either side is in no table, or a shape disagrees.
    """
    torch_state = {key: tensor.clone() for key, tensor in teacher.model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = SparseFormerModel(config)
    state = student.state_dict()
    truncated = teacher.config.num_hidden_layers - config.num_hidden_layers
    origin: dict[str, str] = {}
    dropped: list[tuple[str, int]] = []
    for key, tensor in torch_state.items():
        target = _target(key, TABLES[config.focusing], truncated)
        if target is None:
            dropped.append((key, tensor.numel()))
        else:
            origin[target] = key
    fresh = {key for key in state if key not in origin and _matches(key, FRESH_TENSORS[config.focusing])}
    filled = {target: _transform(target, torch_state[key], torch_state, config) for target, key in origin.items()}
    check_keys(filled | {key: state[key] for key in fresh}, state, f"the student of {teacher.source}")
    student.load_state_dict(filled | {key: state[key] for key in fresh})

    blocks = round(config.num_hidden_layers * 2 / 3) if tuned_blocks is None else tuned_blocks
    trained = freeze(student, blocks)
    rows = tuple(Row(key, origin.get(key), key in trained, state[key].numel()) for key in state)
    return student, InheritanceReport(teacher.source, teacher.sha256, rows, tuple(dropped))


def take_over(
    student: SparseFormerModel, report: InheritanceReport, earlier: SparseFormerModel, source: str
) -> InheritanceReport:
    """Fills a student, in place, with the weights of an earlier one of the same teacher, to train on from there.

    Args:
        student, report: From `inherit`, with the earlier one's configuration, which `check_descent` has seen.
        earlier: As `open_student` opens it.
        source: Where that was, a folder or a name of the zoo.

    Returns:
        The report, which names it and counts as trained what either run trained.

    Raises:
        ValueError: It is another teacher's: what was never trained differs.
    """
    untrained = _untrained(Path(resolve(source)), report)
    weights = earlier.state_dict()
    for name, tensor in student.state_dict().items():
        if name in untrained and not torch.allclose(tensor, weights[name], rtol=4e-3, atol=1e-5):  # of 16 bits
            raise ValueError(
                f"The SparseFormer in {source} is not made from {report.teacher}: its {name} is another. Give its own teacher."
            )
    student.load_state_dict(weights)
    rows = tuple(row._replace(trained=row.trained or row.student not in untrained) for row in report.rows)
    return replace(report, rows=rows, earlier=source)


def _untrained(folder: Path, report: InheritanceReport) -> set[str]:
    """What an earlier student still has from its teacher: by its own report, or where it has none, its head."""
    file = folder / "inheritance.json"
    if not file.is_file():
        return {row.student for row in report.rows if row.student.startswith("head.")}
    try:
        return {row["student"] for row in read_json(file)["rows"] if not row["trained"]}
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"{file} is no report of an inheritance: {error!r}; remove it to go by the tensors' names."
        ) from error


def freeze(student: SparseFormerModel, tuned_blocks: int) -> set[str]:
    """Leaves the focusing stage, proportional attention, the class token and the leading blocks trainable; returns their names.

    Raises:
        ValueError: There are not so many blocks.
    """
    depth = student.config.num_hidden_layers
    if not 0 <= tuned_blocks <= depth:
        raise ValueError(f"tuned_blocks is {tuned_blocks}, but the student has {depth} blocks.")
    prefixes = (
        "focusing.",
        "proportional.",
        "cls_token",
        "pre_norm.",
        *(f"blocks.{number}." for number in range(tuned_blocks)),
    )
    trained = set()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
        if parameter.requires_grad:
            trained.add(name)
    return trained


def is_fresh(name: str, focusing: str) -> bool:
    """Whether a student tensor of that name has no counterpart in a teacher."""
    return _matches(name, FRESH_TENSORS[focusing]) and not _matches(
        name, tuple(target for target in TABLES[focusing].values() if target is not None)
    )


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern for pattern in patterns)


def _target(key: str, table: Table, truncated: int) -> str | None:
    """The student's name for a teacher tensor, None for one dropped on purpose; an unknown one raises ValueError."""
    parts = key.split(".")
    if parts[0] == "blocks":
        number = int(parts[1]) - truncated
        template = table.get("blocks.{}.*")
        if template is None or number < 0:
            return None
        return template.replace("{}", str(number)).replace("*", ".".join(parts[2:]))
    if key in table:
        return table[key]
    wildcard = f"{parts[0]}.*"
    if wildcard not in table:
        raise ValueError(f"The teacher tensor {key!r} is in no inheritance table.")
    template = table[wildcard]
    return None if template is None else template.replace("*", ".".join(parts[1:]))


def _transform(target: str, tensor: Tensor, teacher: dict[str, Tensor], config: SparseFormerConfig) -> Tensor:
    """The few tensors that change shape on the way."""
    if target == "focusing.kernel":
        return resample_kernel(tensor, config.glimpse_size)
    if target == "focusing.positions":
        side = config.teacher_grid
        return tensor[len(tensor) - side * side :].T.reshape(-1, side, side).contiguous()
    if target == "cls_token":
        return tensor + teacher["positions"][0]  # a class token's position never changes, so it is one vector
    return tensor
