"""How a student is trained: the options of a run, which are the flags of its command too."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..util.choices import TuneMethod
from .objective import Objective

if TYPE_CHECKING:
    from ..encoder.configuration import SparseFormerConfig

# What a resumed run may change: it still ends on the bits of an uninterrupted one. (On what kind of device it runs is compared
# itself, so that `cpu` may be said or not where there is nothing else.)
FREE = (
    "eval_every",
    "save_every",
    "keep_checkpoints",
    "log_every",
    "workers",
    "report_to",
    "cpu",
    "teacher_cache",
    "leave_out",
)

LEAST = dict.fromkeys(
    ("batch_size", "log_every", "save_every", "keep_checkpoints", "host_turns", "lora_rank"), 1
) | dict.fromkeys(("steps", "eval_every", "held_back", "most_photos", "cached_views", "workers", "clip_grad_norm"), 0)


@dataclass(frozen=True)
class BootstrapOptions:
    """How a student is trained."""

    steps: int = 2000
    """Optimizer steps."""
    batch_size: int = 32
    """Photos a step, over all processes."""
    learning_rate: float = 1e-4
    """Peak rate of inherited weights."""
    fresh_learning_rate: float = 1e-3
    """Peak rate of fresh weights."""
    box_learning_rate: float = 1e-3
    """Peak rate of the boxes every photo starts from."""
    proportion_learning_rate: float = 1e-2
    """Peak rate of what attention makes up for patches that are not looked at: few numbers, which have far to go."""
    weight_decay: float = 0.05
    """AdamW's, on matrices only."""
    warmup: float = 0.05
    """Share of the steps over which rates rise; then they fall along a cosine."""
    clip_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    ema_decay: float = 0.0
    """Decay of the averaged weights that are evaluated and exported instead; 0 for none."""
    tune: TuneMethod = "full"
    """How inherited blocks are tuned: in full, or by LoRA (merged on export)."""
    lora_rank: int = 16
    """Rank of the LoRA updates."""
    objective: Objective = field(default_factory=Objective)
    """What is matched."""
    budgets: tuple[int, ...] = ()
    """Budgets the student is trained at, one drawn each step; none: its own alone."""
    host_turns: int = 4
    """Prompts a host is asked about each photo, whose answers the student shall keep."""
    host_prompts: Path | None = None
    """File of these prompts, one a line; default general ones, and those a photo's source brings along."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Share of a photo's area a training view shows."""
    cached_views: int = 0
    """Views a photo has in all; their pooled teacher outputs are kept on disk. 0: a new view every epoch, no cache."""
    teacher_cache: Path | None = None
    """Folder of that cache, OUT/teacher-cache by default. Runs with the same teacher, photos and seed may share it."""
    most_photos: int = 0
    """Use so many of the photos at most, drawn by the seed; a host is asked about every one that is used. 0: all."""
    leave_out: Path | None = None
    """File with the names of photos that are neither trained on nor held back, one a line: those that shall measure the student."""
    held_back: int = 256
    """Photos never trained on, for the evaluation during the run (a tenth at most)."""
    eval_every: int = 250
    """Steps between evaluations on them; 0 for the end only."""
    save_every: int = 250
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """How many to keep."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Automatic mixed precision."""
    compile: bool = False
    """torch.compile the student and the teacher."""
    workers: int = 1
    """Processes that decode photos."""
    seed: int = 0
    """Of views and order."""
    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    """Also log there."""
    cpu: bool = False
    """Stay on the CPU though there is an accelerator."""

    def check(self, config: "SparseFormerConfig") -> None:
        """Whether a student of this configuration can be trained so.

        Raises:
            ValueError: A number is out of its range, a budget is none that the photo or the objective allows, or patches are chosen
                at another size than the teacher's.
        """
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is {self.warmup}; it is a share of the steps, from 0 to 1.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it is from 0, for no average, to less than 1.")
        least, most = self.crop_scale
        if not 0 < least <= most <= 1:
            raise ValueError(f"crop_scale is {least} to {most}; shares of a photo rise, from more than 0 to at most 1.")
        if config.focusing == "chosen" and config.image_size // config.teacher_patch_size != config.teacher_grid:
            own = config.teacher_grid * config.teacher_patch_size
            raise ValueError(
                f"image_size is {config.image_size}; chosen focusing is trained at its teacher's {own} pixels."
            )
        if self.objective.salient == "words" and not self.objective.answers:
            raise ValueError("The objective's salient is words, and those are a host's answers, whose weight is 0.")
        if self.objective.salient == "words" and (config.focusing != "chosen" or not self.objective.saliency):
            raise ValueError(
                f"The objective's salient is words, and nothing is to guess them: its saliency is {self.objective.saliency:g}, "
                f"the focusing {config.focusing}; a first look guesses with chosen focusing and a saliency above 0."
            )
        on_grid = config.focusing != "chosen" and bool(self.objective.tokens or self.objective.projected)
        for budget in self.budgets or (config.budget,):
            config.check_budget(budget)
            side = math.isqrt(budget)
            if on_grid and side * side != budget:
                raise ValueError(
                    f"Objectives of tokens need square budgets; {budget} is none: try {side**2} or {(side + 1) ** 2}."
                )

    def to_dict(self) -> dict[str, Any]:
        """As JSON gives it back: lists for tuples, text for paths."""
        return json.loads(json.dumps(asdict(self), default=str))

    def binding(self) -> dict[str, Any]:
        """`to_dict` without what a resumed run may change."""
        return {name: value for name, value in self.to_dict().items() if name not in FREE}
