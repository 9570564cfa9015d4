"""How a student of a teacher is built: its configuration, before any tensor is there."""

import math
from typing import Any

from ..encoder.configuration import SparseFormerConfig
from ..util.choices import Focusing
from .open import Teacher

# What measurement prefers (docs/results/tried.md): a host wants tokens from everywhere, one vector for the photo the best of all, and more
# context for them.
HOSTS_CHOICE, OWN_CHOICE = dict(even_share=1.0, context_share=0.5), dict(even_share=0.2, context_share=1.0)


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
