"""How a segmentation model is trained: the options of a run, which are the flags of its command too."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Tuned = Literal["head", "lora", "all"]

# What a resumed run may change: it still ends on the bits of an uninterrupted one.
FREE = ("eval_every", "save_every", "keep_checkpoints", "log_every", "workers", "device")


@dataclass(frozen=True)
class SegmentationOptions:
    """How a segmentation model is trained."""

    tune: Tuned = "head"
    """What learns: the head alone (a linear probe; the tower stays as it is), the tower by LoRA too, or all of both."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 16
    """Photos a step."""
    learning_rate: float = 1e-3
    """Peak rate of the head, and of LoRA."""
    tower_learning_rate: float = 5e-5
    """Peak rate of the tower's own weights, with --tune all."""
    weight_decay: float = 1e-4
    """AdamW's."""
    warmup: float = 0.05
    """Share of the steps over which rates rise; then they fall along a cosine."""
    lora_rank: int = 16
    """Rank of LoRA's updates."""
    label_side: int = 112
    """Masks are made so many pixels a side for the loss, and scores are enlarged to them."""
    whole: float = 0.5
    """Share of the views that show the whole photo; the others show a crop."""
    smallest_crop: float = 0.4
    """Least share of the photo's area that a crop shows."""
    flip: bool = True
    """Whether views are mirrored half of the time."""
    colour: float = 0.3
    """By how much brightness, contrast and saturation change; 0 leaves them."""
    cached_views: int = 4
    """With --tune head, each photo has so many fixed views, and the tower sees each once; 0 for new ones every time."""
    precision: Literal["no", "bf16"] = "no"
    """Of the tower's arithmetic while training."""
    seed: int = 0
    """Of the head, the order and the views."""
    eval_every: int = 0
    """Steps between evaluations on --val; 0 for one at the end."""
    save_every: int = 200
    """Steps between checkpoints."""
    keep_checkpoints: int = 1
    """How many checkpoints to leave."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    workers: int = 0
    """Processes that decode photos; 0 decodes in between."""
    device: str | None = None
    """Default cuda where there is one."""

    def check(self) -> None:
        """Raises ValueError where a number is out of its range."""
        for name in ("steps", "batch_size", "lora_rank", "label_side", "save_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 1.")
        for name in ("cached_views", "eval_every", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 0.")
        for name in ("whole", "smallest_crop", "warmup", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1.")
        if not self.smallest_crop:
            raise ValueError("smallest_crop is 0, and a crop shows something: give a share above 0.")

    @property
    def caches(self) -> bool:
        """Whether the tower sees each view of a photo once."""
        return self.tune == "head" and self.cached_views > 0

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run may not change."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}
