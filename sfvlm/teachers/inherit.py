"""Which teacher tensor becomes which student tensor: literal tables, strict both ways, with a report.

Every teacher tensor is either inherited or dropped on purpose; every student tensor is either inherited or on the explicit
list of fresh ones. Anything else is an error.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoder.configuration import SparseFormerConfig
from ..encoder.sparseformer import SparseFormerModel
from ..util.choices import Focusing
from ..util.files import read_json
from ..util.tensors import check_keys
from ..zoo.names import resolve
from .open import Teacher

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

# What measurement prefers (RESULTS.md): a host wants tokens from everywhere, one vector for the photo the best of all, and more
# context for them.
HOSTS_CHOICE, OWN_CHOICE = dict(even_share=1.0, context_share=0.5), dict(even_share=0.2, context_share=1.0)

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


def student_config(
    teacher: SparseFormerConfig,
    *,
    focusing: Focusing = "chosen",
    num_tokens: int = 49,
    truncate: int | None = None,
    for_host: bool = False,
    **overrides: Any,
) -> SparseFormerConfig:
    """The configuration of a student of this teacher.

    Args:
        teacher: The teacher's configuration.
        focusing: Which focusing stage.
        num_tokens: The budget; a square number but for fresh focusing.
        truncate: Leading teacher blocks left out; by default a third for fresh focusing, which replaces them, and none for
            the others, which start from them.
        for_host: A LLaVA shall read the tokens, and not only the pooled vector matters: decides how patches are chosen.
        overrides: Other fields of the configuration.

    Raises:
        ValueError: The budget is not square where it must be, or nothing would be left of the teacher.
    """
    depth = teacher.num_hidden_layers
    if truncate is None:
        truncate = depth // 3 if focusing == "fresh" else 0
    if not 0 <= truncate < depth:
        raise ValueError(f"Truncating {truncate} of the teacher's {depth} blocks leaves none.")
    side = math.isqrt(num_tokens)
    if focusing != "fresh" and side * side != num_tokens:
        raise ValueError(
            f"num_tokens is {num_tokens}; {focusing} focusing starts from a square grid: try {side**2} or {(side + 1) ** 2}."
        )
    width = teacher.hidden_size
    fields = teacher.to_dict()
    for name in ("transformers_version", "architectures", "model_type", "dtype"):
        fields.pop(name, None)
    fields |= dict(
        focusing=focusing,
        num_tokens=num_tokens,
        num_hidden_layers=depth - truncate,
        focusing_size=max(64, round(width / 2 / 64) * 64),
        glimpse_size=teacher.teacher_patch_size,
        crop_rounding="down",  # of the preprocessor that is written beside it
    )
    if focusing == "chosen":
        fields |= dict(context_blocks=round((depth - truncate) * 2 / 3), proportional_attention=True)
        fields |= HOSTS_CHOICE if for_host else OWN_CHOICE
    if focusing == "fresh":
        fields |= dict(pre_norm=False)
    return SparseFormerConfig(**(fields | overrides))


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


def check_descent(config: SparseFormerConfig, teacher: Teacher, source: str) -> None:
    """Whether a student of this configuration can be one of this teacher.

    Raises:
        ValueError: They differ in what is inherited.
    """
    names = ["hidden_size", "projection_dim", "num_classes", "pooling"]
    names += [] if config.focusing == "fresh" else ["teacher_grid", "teacher_patch_size"]
    if other := [name for name in names if getattr(config, name) != getattr(teacher.config, name)]:
        raise ValueError(
            f"The SparseFormer in {source} and the teacher {teacher.source} differ in {', '.join(other)}: name the teacher "
            "that it was made from (--teacher)."
        )


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


@torch.compiler.assume_constant_result
def _kernel_resampling(old: int, new: int, device: torch.device) -> Tensor:
    """(new, old): what to multiply a kernel's rows and columns with, so that it answers a resized picture as before.

    For enlarged pictures the pseudo-inverse of bilinear enlargement, for reduced ones its transpose: going up and down
    again is the identity (FlexiViT, arXiv 2212.08013, section 3.4).
    """
    small, large = sorted((old, new))
    enlarge = F.interpolate(torch.eye(small, dtype=torch.float64)[None], size=large, mode="linear")[
        0
    ].T  # (large, small)
    return (torch.linalg.pinv(enlarge).T if new > old else enlarge.T).float().to(device)


def resample_kernel(kernel: Tensor, side: int) -> Tensor:
    """A patch embedding for another patch size: (D, 3, p, p) -> (D, 3, side, side)."""
    if kernel.shape[-1] == side:
        return kernel
    weights = _kernel_resampling(kernel.shape[-1], side, kernel.device)
    return (weights @ kernel.float() @ weights.T).to(kernel.dtype)
